//! The files of a node, for tests and benchmarks that look at its disk or
//! damage it.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// All files below a directory, sorted; what goes away meanwhile is left out.
pub fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() { open.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    files
}

/// Changes the byte of a file at `at`, as rot would. Whether that took: a file
/// that was replaced meanwhile is another one.
///
/// # Errors
/// When the file cannot be read or written, or is gone.
pub fn flip(path: &Path, at: u64, bits: u8) -> io::Result<bool> {
    let file = File::options().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&[byte[0] ^ bits], at)?;
    let number = file.metadata()?.ino();
    Ok(path.metadata().is_ok_and(|now| now.ino() == number))
}
