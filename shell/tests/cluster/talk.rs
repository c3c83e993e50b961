//! A shell that is talked to: it is typed to, and what it prints is waited for.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How long something that must come may take.
const COMES_WITHIN: Duration = Duration::from_secs(60);

/// A shell at its prompt.
pub(crate) struct Talk {
    child: Child,
    /// What it prints.
    lines: mpsc::Receiver<String>,
    /// Where its notices go, to be shown when the test fails.
    notices: Option<PathBuf>,
}

impl Talk {
    pub(crate) fn begin(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let printed = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in printed.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, lines, notices: None }
    }

    /// As [`Talk::begin`], with its notices and errors in a file.
    pub(crate) fn begin_with_notices(command: &mut Command, file: &Path) -> Self {
        let mut begun = Self::begin(command.stderr(File::create(file).unwrap()));
        begun.notices = Some(file.to_owned());
        begun
    }

    /// Types lines; the first line printed from then on that begins so.
    pub(crate) fn ask(&mut self, typed: &str, beginning: &str) -> String {
        self.ask_all(typed, beginning).pop().unwrap()
    }

    /// Types lines; what is printed up to the first line that begins so.
    pub(crate) fn ask_all(&mut self, typed: &str, beginning: &str) -> Vec<String> {
        writeln!(self.child.stdin.as_mut().unwrap(), "{typed}").unwrap();
        let deadline = Instant::now() + COMES_WITHIN;
        let mut lines = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => lines.push(line),
                Err(error) => panic!("{error} for `{beginning}` after `{typed}`; there were {lines:?}"),
            }
            if lines.last().is_some_and(|line| line.starts_with(beginning)) {
                return lines;
            }
        }
    }

    /// Leaves the prompt.
    pub(crate) fn end(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }

    /// Types lines after which it ends by itself; how it ended.
    pub(crate) fn end_after(mut self, typed: &str) -> ExitStatus {
        let mut input = self.child.stdin.take().unwrap();
        writeln!(input, "{typed}").unwrap();
        drop(input);
        self.child.wait().unwrap()
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        // After a failure: its nodes end with it, also one that stands still.
        if matches!(self.child.try_wait(), Ok(None)) {
            let _gone = kill_process(Pid::from_child(&self.child), Signal::TERM);
            let _ended = self.child.wait();
        }
        if let Some(file) = &self.notices
            && std::thread::panicking()
        {
            eprintln!("--- what the shell said\n{}", std::fs::read_to_string(file).unwrap_or_default());
        }
    }
}
