//! The id of what a worker keeps: coordinators tell by it a copy that was made
//! durable here from one that was on a disk which is gone.

use std::fs;
use std::io;
use std::path::Path;

use shoal_data::data_dir::write_durably;

use crate::Error;

const FILE: &str = "disk";

/// The id that is kept in `root`; a new one where the directory of the segments has
/// nothing in it, or is not there: whatever was there before is gone.
///
/// # Errors
/// `Io`.
pub(crate) fn load(root: &Path, segments: &Path) -> Result<String, Error> {
    let path = root.join(FILE);
    if fs::read_dir(segments).is_ok_and(|mut entries| entries.next().is_some()) {
        match fs::read_to_string(&path) {
            Ok(id) if !id.is_empty() => return Ok(id),
            Ok(_) => {}
            // As a version left it that knew of no id.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io(format!("cannot read {}", path.display()), error)),
        }
    }
    let id = uuid::Uuid::new_v4().simple().to_string();
    write_durably(root, FILE, id.as_bytes())?;
    Ok(id)
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
        fs::remove_dir(&segments).unwrap();
        assert_ne!(id(), empty);
    }

    #[test]
    fn what_has_none_gets_one() {
        let root = tempfile::tempdir().unwrap();
        let segments = root.path().join("segments");
        fs::create_dir_all(segments.join("3")).unwrap();
        let made = load(root.path(), &segments).unwrap();
        assert_eq!(load(root.path(), &segments).unwrap(), made);
        fs::write(root.path().join(FILE), "").unwrap();
        let made_anew = load(root.path(), &segments).unwrap();
        assert!(!made_anew.is_empty());
        assert_ne!(made_anew, made);
    }
}
