//! Where results go: the screen, or a file of `\o`.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::client::ClientError;

/// Bytes that are gathered before they are written.
const BUFFER_BYTES: usize = 64 * 1024;

/// A place for results.
#[derive(Debug, Default)]
pub(super) enum Output {
    /// Standard output.
    #[default]
    Screen,
    /// A file.
    File {
        /// Its name.
        path: PathBuf,
        /// It.
        out: BufWriter<File>,
    },
}

impl Output {
    /// A new, empty file.
    ///
    /// # Errors
    /// `File`, naming it.
    pub(super) fn file(path: &Path) -> Result<Self, ClientError> {
        let file = File::create(path)
            .map_err(|error| ClientError::file(format!("cannot write {}", path.display()), error))?;
        Ok(Self::File { path: path.to_owned(), out: BufWriter::with_capacity(BUFFER_BYTES, file) })
    }

    pub(super) fn is_screen(&self) -> bool {
        matches!(self, Self::Screen)
    }

    /// Lets `write` write, and sends it on its way.
    ///
    /// # Errors
    /// `Output` and `File`; `Content` for values that have no text.
    pub(super) fn write(
        &mut self,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), ClientError> {
        let outcome = match self {
            Self::Screen => {
                let mut out = BufWriter::with_capacity(BUFFER_BYTES, io::stdout().lock());
                write(&mut out).and_then(|()| out.flush())
            }
            Self::File { out, .. } => write(out).and_then(|()| out.flush()),
        };
        outcome.map_err(|error| match (error.kind(), &*self) {
            (io::ErrorKind::InvalidData, _) => {
                ClientError::Content(format!("a value cannot be shown: {error}"))
            }
            (_, Self::Screen) => ClientError::Output(error),
            (_, Self::File { path, .. }) => {
                ClientError::file(format!("cannot write {}", path.display()), error)
            }
        })
    }
}
