//! Claims about which files can be read.

use std::fs;
use std::os::unix::fs::symlink;

use object_store::ObjectStoreExt;

use super::*;

struct Fixture {
    dir: tempfile::TempDir,
    roots: ImportRoots,
}

/// `in/` is a root, `out/` is not; `in/leak` leads out, `in/fine` stays in.
fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("in");
    for folder in ["in/deep", "out"] {
        fs::create_dir_all(dir.path().join(folder)).unwrap();
    }
    fs::write(root.join("deep/a b%2F+ü.csv"), "0123456789").unwrap();
    fs::write(dir.path().join("out/secret"), "secret").unwrap();
    symlink(dir.path().join("out/secret"), root.join("leak")).unwrap();
    symlink(dir.path().join("out"), root.join("leaks")).unwrap();
    symlink(root.join("deep/a b%2F+ü.csv"), root.join("fine")).unwrap();
    let roots = ImportRoots::new(&[root]);
    Fixture { dir, roots }
}

impl Fixture {
    fn refused(&self, path: &str) -> Failure {
        let path = if path.starts_with('/') { PathBuf::from(path) } else { self.dir.path().join(path) };
        self.roots.open(&path).unwrap_err()
    }
}

#[test]
fn nothing_outside_the_roots_is_opened() {
    let fixture = fixture();
    for (path, part) in [
        ("/etc/passwd", "outside the import roots"),
        ("/no/such/file", "outside the import roots"),
        ("out/secret", "outside the import roots"),
        ("in/leak", "outside the import roots"),
        ("in/leaks/secret", "outside the import roots"),
        ("in/../out/secret", "contains `..`"),
        ("in/deep/../../out/secret", "contains `..`"),
        ("in/deep", "is not a file"),
    ] {
        let failure = fixture.refused(path);
        assert_eq!(failure.code, ErrorCode::Invalid, "{path}");
        assert!(failure.message.contains(part), "{path}: {}", failure.message);
    }
    assert_eq!(fixture.refused("in/nothing").code, ErrorCode::NotFound);
    assert!(
        fixture.refused("/etc/passwd").message.contains(&*fixture.roots.directories()[0].to_string_lossy())
    );
}

#[test]
fn a_pipe_is_not_waited_for() {
    let fixture = fixture();
    // A socket stands for all that is neither file nor directory.
    let path = fixture.dir.path().join("in/socket");
    let _listening = std::os::unix::net::UnixListener::bind(&path).unwrap();
    assert!(fixture.refused("in/socket").message.contains("is not a file"));
}

#[test]
fn without_roots_nothing_is_opened() {
    let failure = ImportRoots::default().open(FilePath::new("/etc/passwd")).unwrap_err();
    assert!(failure.message.contains("no import roots are configured"), "{}", failure.message);
    let relative = fixture().roots.open(FilePath::new("in/fine")).unwrap_err();
    assert!(relative.message.contains("is relative"), "{}", relative.message);
}

#[tokio::test]
async fn any_file_name_is_read_through_the_store() {
    let fixture = fixture();
    let store = ImportStore::on_disk(fixture.roots.clone());
    for file in ["deep/a b%2F+ü.csv", "fine"] {
        let path = fixture.dir.path().join("in").join(file);
        let location = object_path(&path).unwrap();
        assert_eq!(file_path(&location).unwrap(), path);
        assert_eq!(store.head(&location).await.unwrap().size, 10);
        assert_eq!(store.get(&location).await.unwrap().bytes().await.unwrap(), "0123456789");
        assert_eq!(store.get_range(&location, 3..5).await.unwrap(), "34");
    }
    let outside = object_path(FilePath::new("/etc/passwd")).unwrap();
    assert!(store.get(&outside).await.is_err());
    assert!(store.delete(&object_path(FilePath::new("/etc/passwd")).unwrap()).await.is_err());
}
