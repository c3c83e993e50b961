//! Reads of what the system holds in its memory, and of nothing else. So whoever
//! computes can read a few pages without another thread that may wait, which would
//! take longer than to read them. No byte that is missing is waited for; but the system
//! may begin to read it, on this thread, which waits where a disk takes nothing more.
//! So nobody reads here while a disk does not answer.
//!
//! Where the system or its file system cannot do that, nothing is read here: only Linux
//! can.

use std::cell::RefCell;
use std::fs::File;
use std::path::Path;

thread_local! {
    /// Where bytes are until they are verified: of each read only a part is
    /// kept, and memory that was just used is the fastest.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Opens a file; none where that needs a look at the disk.
#[cfg(target_os = "linux")]
pub(crate) fn open(path: &Path) -> Option<File> {
    use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let opened = rustix::fs::openat2(CWD, path, flags, Mode::empty(), ResolveFlags::CACHED);
    opened.ok().map(File::from)
}

/// Opens a file; none where that needs a look at the disk, which is not known here.
#[cfg(not(target_os = "linux"))]
pub(crate) fn open(_path: &Path) -> Option<File> {
    None
}

/// Reads as many bytes as the system holds from `offset` on; none where it holds none.
#[cfg(target_os = "linux")]
fn read_held(file: &File, bytes: &mut [u8], offset: u64) -> Option<usize> {
    use std::io::IoSliceMut;

    use rustix::io::ReadWriteFlags;

    let into = &mut [IoSliceMut::new(bytes)];
    let read = rustix::io::preadv2(file, into, offset, ReadWriteFlags::NOWAIT);
    read.ok().filter(|bytes| *bytes > 0)
}

/// The same, where nobody knows what the system holds.
#[cfg(not(target_os = "linux"))]
fn read_held(_file: &File, _bytes: &mut [u8], _offset: u64) -> Option<usize> {
    None
}

/// What `take` makes of so many bytes of a file from `offset` on; none where the
/// system does not hold all of them, or the file is shorter.
pub(crate) fn with_bytes<T>(
    file: &File,
    offset: u64,
    length: usize,
    take: impl FnOnce(&[u8]) -> Option<T>,
) -> Option<T> {
    SCRATCH.with_borrow_mut(|scratch| {
        if scratch.len() < length {
            scratch.resize(length, 0);
        }
        let bytes = &mut scratch[..length];
        let mut filled = 0;
        while filled < length {
            filled += read_held(file, &mut bytes[filled..], offset + filled as u64)?;
        }
        take(bytes)
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn only_bytes_that_are_all_there_are_given() {
        let mut written = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = (0..100_000_u32).map(|index| (index % 251) as u8).collect();
        written.write_all(&bytes).unwrap();
        let whole = |bytes: &[u8]| Some(bytes.to_vec());
        // Not every file system can tell what it holds in memory.
        if let Some(file) = open(written.path())
            && let Some(read) = with_bytes(&file, 10, 70_000, whole)
        {
            assert_eq!(read, bytes[10..70_010]);
            assert_eq!(with_bytes(&file, 99_999, 1, whole), Some(bytes[99_999..].to_vec()));
        }
        let file = File::open(written.path()).unwrap();
        assert_eq!(with_bytes(&file, 99_999, 2, whole), None, "the file ends before");
        assert_eq!(with_bytes(&file, 0, 10, |_| None::<()>), None);
        assert!(open(&written.path().with_added_extension("gone")).is_none());
    }
}
