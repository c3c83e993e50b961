//! Reads that wait for no disk: of what the system holds in its memory, and of
//! nothing else. So whoever computes can read a few pages without another thread
//! that may wait, which would take longer than to read them.
//!
//! Where the system or its file system cannot do that, nothing is read here.

use std::cell::RefCell;
use std::fs::File;
use std::io::IoSliceMut;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::ReadWriteFlags;

thread_local! {
    /// Where bytes are until they are verified: of each read only a part is
    /// kept, and memory that was just used is the fastest.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Opens a file; none where that needs a look at the disk.
pub(crate) fn open(path: &Path) -> Option<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let opened = rustix::fs::openat2(CWD, path, flags, Mode::empty(), ResolveFlags::CACHED);
    opened.ok().map(File::from)
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
            let rest = &mut [IoSliceMut::new(&mut bytes[filled..])];
            match rustix::io::preadv2(file, rest, offset + filled as u64, ReadWriteFlags::NOWAIT) {
                Ok(0) | Err(_) => return None,
                Ok(more) => filled += more,
            }
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
