//! Memory that the machine has already. A virtual machine gives free memory back to its
//! host, and to get it again costs several times what it costs to write a file there:
//! whoever copies first would pay for that, and whoever copies where files were just
//! removed would not.

use std::fs::File;
use std::io::Write;

use anyhow::{Context, Result};
use rustix::fs::{MemfdFlags, memfd_create};

/// Bytes that are written at a time.
const PIECE_BYTES: usize = 1 << 20;

/// Memory that is held, and free for others at once when this is dropped: a file in
/// memory, as an allocator might keep it.
#[derive(Debug)]
pub(super) struct WarmMemory {
    _file: File,
}

impl WarmMemory {
    /// As much as copies of so many bytes take, and what moves them.
    ///
    /// # Errors
    /// When it cannot be taken.
    pub(super) async fn for_copies_of(bytes: u64) -> Result<Self> {
        let pieces = usize::try_from(2 * bytes)?.div_ceil(PIECE_BYTES);
        let taking = tokio::task::spawn_blocking(move || -> Result<Self> {
            let mut file =
                File::from(memfd_create("warm", MemfdFlags::CLOEXEC).context("make a file in memory")?);
            let piece = vec![1; PIECE_BYTES];
            for _ in 0..pieces {
                file.write_all(&piece).context("take memory")?;
            }
            Ok(Self { _file: file })
        });
        taking.await.context("memory was not taken")?
    }
}
