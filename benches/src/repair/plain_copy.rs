//! What a machine can do at best: files copied over loopback TCP, as
//! `cat FILE | nc HOST` into `nc -l > FILE` would, each written through to the
//! disk at its end.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

/// Bytes that are read or written at a time.
const BUFFER_BYTES: usize = 128 << 10;

/// What was copied, and how long it took.
#[derive(Clone, Copy, Debug)]
pub(super) struct Copied {
    pub(super) bytes: u64,
    pub(super) took: Duration,
}

/// Copies files into a directory, so many at a time, each through a connection
/// of its own.
///
/// # Errors
/// When a file cannot be read or written.
pub(super) fn copy(files: &[PathBuf], into: &Path, at_a_time: usize) -> Result<Copied> {
    let next = AtomicUsize::new(0);
    let began = Instant::now();
    let bytes: Result<Vec<u64>> = std::thread::scope(|scope| {
        let lane = || -> Result<u64> {
            let listener = TcpListener::bind("127.0.0.1:0").context("listen on loopback")?;
            let mut bytes = 0;
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(file) = files.get(number) else { return Ok(bytes) };
                bytes += copy_one(&listener, file, &into.join(number.to_string()))?;
            }
        };
        let lanes: Vec<_> = (0..at_a_time).map(|_| scope.spawn(lane)).collect();
        let ended = lanes.into_iter().map(|lane| lane.join().map_err(|_| anyhow!("a copy panicked"))?);
        ended.collect()
    });
    Ok(Copied { bytes: bytes?.into_iter().sum(), took: began.elapsed() })
}

fn copy_one(listener: &TcpListener, from: &Path, to: &Path) -> Result<u64> {
    let address = listener.local_addr()?;
    // Before anybody waits for it.
    let mut file = File::open(from).with_context(|| format!("open {}", from.display()))?;
    let mut sender = TcpStream::connect(address)?;
    std::thread::scope(|scope| {
        // With its end the connection is closed.
        let sending = scope.spawn(move || pass_on(&mut file, &mut sender));
        let received = receive(listener, to);
        let sent: Result<u64> = sending.join().map_err(|_| anyhow!("a sender panicked"))?;
        sent.with_context(|| format!("send {}", from.display()))?;
        received.with_context(|| format!("receive {}", to.display()))
    })
}

fn receive(listener: &TcpListener, to: &Path) -> Result<u64> {
    let (mut connection, _) = listener.accept()?;
    let mut file = File::create(to)?;
    let bytes = pass_on(&mut connection, &mut file)?;
    file.sync_all()?;
    Ok(bytes)
}

/// Not with `std::io::copy`, which has the kernel do it where it can.
fn pass_on(from: &mut impl Read, to: &mut impl Write) -> Result<u64> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut bytes = 0;
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(bytes),
            count => {
                to.write_all(&buffer[..count])?;
                bytes += count as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_copied_whole_and_once() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        std::fs::create_dir(&from).unwrap();
        std::fs::create_dir(&to).unwrap();
        let contents: Vec<Vec<u8>> =
            (0..5_u8).map(|number| vec![number; usize::from(number) * 100_000]).collect();
        let files: Vec<PathBuf> = (0..contents.len()).map(|number| from.join(format!("f{number}"))).collect();
        for (file, content) in files.iter().zip(&contents) {
            std::fs::write(file, content).unwrap();
        }
        let copied = copy(&files, &to, 2).unwrap();
        assert_eq!(copied.bytes, 1_000_000);
        for (number, content) in contents.iter().enumerate() {
            assert!(std::fs::read(to.join(number.to_string())).unwrap() == *content, "file {number}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let error = copy(&[dir.path().join("gone")], dir.path(), 2).unwrap_err();
        assert!(error.to_string().ends_with("gone"), "{error}");
    }
}
