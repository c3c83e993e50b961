//! Statements from `-c`, from files and from standard input.

use std::io::{self, BufRead, BufReader};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::hook::BackslashHook;
use super::options::Options;
use super::session::{Flow, Said, Session};
use super::split::{Item, Splitter};
use crate::client::{Client, ClientError};

/// Lines that are read ahead of what runs.
const LINES_AHEAD: usize = 256;

/// Where statements come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The command line.
    Text(String),
    /// A file.
    File(PathBuf),
    /// Standard input.
    Stdin,
}

/// Runs all statements of `inputs`, and says by its exit status what came of
/// it: 0 all went well, 1 a statement failed, 2 the connection, 3 the usage,
/// 130 Ctrl-C.
pub async fn run_script(
    client: Client,
    options: Options,
    hook: Arc<dyn BackslashHook>,
    inputs: Vec<Input>,
) -> ExitCode {
    let mut session = Session::new(client, options, hook, false);
    for input in inputs {
        match run_input(&mut session, input).await {
            Ok(Flow::Continue) => {}
            Ok(Flow::Quit) => break,
            Err(said) => {
                session.say(&said);
                return ExitCode::from(said.into_error().exit_code());
            }
        }
    }
    match session.take_passed_over() {
        Some(error) => ExitCode::from(error.exit_code()),
        None => ExitCode::SUCCESS,
    }
}

/// Runs the statements of one input.
///
/// # Errors
/// The one that stopped it; it was printed.
pub(super) async fn run_input(session: &mut Session, input: Input) -> Result<Flow, Said> {
    let name = match &input {
        Input::File(file) => Some(file.display().to_string()),
        Input::Text(_) | Input::Stdin => None,
    };
    let mut splitter = Splitter::default();
    match input {
        Input::Text(text) => {
            splitter.push(&text);
            splitter.push("\n");
            if run_items(session, &mut splitter, None).await? == Flow::Quit {
                return Ok(Flow::Quit);
            }
        }
        Input::File(file) => {
            let opened = std::fs::File::open(&file)
                .map_err(|error| ClientError::Usage(format!("cannot read {}: {error}", file.display())))?;
            let lines = lines_of(BufReader::new(opened));
            if run_lines(session, &mut splitter, lines, name.as_deref()).await? == Flow::Quit {
                return Ok(Flow::Quit);
            }
        }
        Input::Stdin => {
            let lines = lines_of(BufReader::new(io::stdin()));
            if run_lines(session, &mut splitter, lines, None).await? == Flow::Quit {
                return Ok(Flow::Quit);
            }
        }
    }
    if let Some(sql) = splitter.finish() {
        perform(session, Item::Statement(sql), name.as_deref()).await?;
    }
    Ok(Flow::Continue)
}

async fn run_lines(
    session: &mut Session,
    splitter: &mut Splitter,
    mut lines: mpsc::Receiver<Result<String, ClientError>>,
    name: Option<&str>,
) -> Result<Flow, Said> {
    loop {
        let next = async { Ok(lines.recv().await) };
        match session.interrupts.guard(next).await? {
            None => return Ok(Flow::Continue),
            Some(line) => splitter.push(&line?),
        }
        if run_items(session, splitter, name).await? == Flow::Quit {
            return Ok(Flow::Quit);
        }
    }
}

async fn run_items(session: &mut Session, splitter: &mut Splitter, name: Option<&str>) -> Result<Flow, Said> {
    while let Some(item) = splitter.next_item() {
        if perform(session, item, name).await? == Flow::Quit {
            return Ok(Flow::Quit);
        }
    }
    Ok(Flow::Continue)
}

async fn perform(session: &mut Session, item: Item, name: Option<&str>) -> Result<Flow, Said> {
    match session.perform(item, name).await {
        Ok(flow) => Ok(flow),
        Err(error) => {
            session.pass_over(error).map_err(Said::Already)?;
            Ok(Flow::Continue)
        }
    }
}

/// The lines of a reader, read on a thread of their own: a terminal or pipe
/// that says nothing holds up nobody.
fn lines_of(mut reader: impl BufRead + Send + 'static) -> mpsc::Receiver<Result<String, ClientError>> {
    let (sender, receiver) = mpsc::channel(LINES_AHEAD);
    drop(std::thread::spawn(move || {
        loop {
            let mut line = String::new();
            let read = reader.read_line(&mut line);
            let message = match read {
                Ok(0) => return,
                Ok(_) => Ok(line),
                Err(error) => Err(ClientError::file("cannot read the statements", error)),
            };
            let failed = message.is_err();
            if sender.blocking_send(message).is_err() || failed {
                return;
            }
        }
    }));
    receiver
}
