//! The id of what a worker keeps: coordinators tell by it a copy that was made
//! durable here from one that was on a disk which is gone. It lies among the segments,
//! and goes where they go.

use std::fs;
use std::io;
use std::path::Path;

use shoal_data::data_dir::{make_dir, sync_dir, write_durably};

use crate::Error;

/// Its name, in the directory of the segments: the tables there have numbers.
pub(crate) const FILE: &str = "disk";

/// The id that is kept in the directory of the segments, which is there afterwards; a
/// new one where no table is in there: whatever was there before is gone. Earlier
/// versions kept it beside that directory, in `root`.
///
/// # Errors
/// `Io`.
pub(crate) fn load(root: &Path, segments: &Path) -> Result<String, Error> {
    make_dir(segments)?;
    let (kept, old) = if has_tables(segments) { (read(segments)?, read(root)?) } else { (None, None) };
    let id = match (kept, old) {
        (Some(kept), _) => kept,
        (None, Some(old)) => {
            take_over(root, segments, &old)?;
            old
        }
        (None, None) => {
            let id = uuid::Uuid::new_v4().simple().to_string();
            write_durably(segments, FILE, id.as_bytes())?;
            id
        }
    };
    // Or it would be taken for that of another disk, which has none.
    forget_old(root)?;
    Ok(id)
}

fn has_tables(segments: &Path) -> bool {
    let is_table = |entry: io::Result<fs::DirEntry>| {
        entry.is_ok_and(|entry| entry.file_name().to_string_lossy().parse::<u64>().is_ok())
    };
    fs::read_dir(segments).is_ok_and(|mut entries| entries.any(is_table))
}

/// None where there is none, as a version left it that knew of no id, or half of one.
fn read(dir: &Path) -> Result<Option<String>, Error> {
    let path = dir.join(FILE);
    match fs::read_to_string(&path) {
        Ok(id) => Ok(Some(id).filter(|id| !id.is_empty())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(format!("cannot read {}", path.display()), error)),
    }
}

/// A full disk has room for a name; on another one it is written.
fn take_over(root: &Path, segments: &Path, id: &str) -> Result<(), Error> {
    if fs::rename(root.join(FILE), segments.join(FILE)).is_err() {
        write_durably(segments, FILE, id.as_bytes())?;
    }
    sync_dir(segments).map_err(Error::from)
}

fn forget_old(root: &Path) -> Result<(), Error> {
    let path = root.join(FILE);
    match fs::remove_file(&path) {
        Ok(()) => sync_dir(root).map_err(Error::from),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io(format!("cannot remove {}", path.display()), error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stays_as_long_as_there_is_something() {
        let root = tempfile::tempdir().unwrap();
        let segments = root.path().join("segments");
        let id = || load(root.path(), &segments).unwrap();
        let new = id();
        fs::create_dir_all(segments.join("3")).unwrap();
        let kept = id();
        assert_eq!(kept, new);
        assert_eq!(id(), kept);
        // The disk is not mounted, or somebody has emptied it.
        fs::remove_dir(segments.join("3")).unwrap();
        let empty = id();
        assert_ne!(empty, kept);
        fs::remove_dir_all(&segments).unwrap();
        assert_ne!(id(), empty);
    }

    #[test]
    fn what_has_none_gets_one() {
        let root = tempfile::tempdir().unwrap();
        let segments = root.path().join("segments");
        fs::create_dir_all(segments.join("3")).unwrap();
        let made = load(root.path(), &segments).unwrap();
        assert_eq!(load(root.path(), &segments).unwrap(), made);
        fs::write(segments.join(FILE), "").unwrap();
        let made_anew = load(root.path(), &segments).unwrap();
        assert!(!made_anew.is_empty());
        assert_ne!(made_anew, made);
    }

    #[test]
    fn one_that_lies_beside_the_segments_is_taken_over_once() {
        let root = tempfile::tempdir().unwrap();
        let segments = root.path().join("segments");
        fs::create_dir_all(segments.join("3")).unwrap();
        let id = || load(root.path(), &segments).unwrap();
        fs::write(root.path().join(FILE), "old").unwrap();
        assert_eq!(id(), "old");
        assert!(!root.path().join(FILE).exists());
        assert_eq!(id(), "old");
        // Another disk, with other tables.
        fs::remove_dir_all(&segments).unwrap();
        fs::create_dir_all(segments.join("4")).unwrap();
        assert_ne!(id(), "old");
        // One without any, which is not quite empty.
        fs::remove_dir_all(&segments).unwrap();
        fs::create_dir_all(segments.join("lost+found")).unwrap();
        fs::write(root.path().join(FILE), "old").unwrap();
        assert_ne!(id(), "old");
        assert!(!root.path().join(FILE).exists());
    }

    #[test]
    fn it_goes_where_the_segments_go() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let segments = |root: &tempfile::TempDir| root.path().join("segments");
        fs::create_dir_all(segments(&here).join("3")).unwrap();
        let id = load(here.path(), &segments(&here)).unwrap();
        fs::rename(segments(&here), segments(&there)).unwrap();
        assert_eq!(load(there.path(), &segments(&there)).unwrap(), id);
        assert_ne!(load(here.path(), &segments(&here)).unwrap(), id);
    }
}
