//! A small disk in memory (tmpfs) for one worker, that can be filled up.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// What takes the space.
const FILLER: &str = "filler";

/// A mounted disk. Dropping it unmounts it, and what was on it is gone.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Mounts a new, empty disk of so many bytes at `path`.
    ///
    /// # Errors
    /// Where that is not permitted, as it is only for root.
    pub fn mount(path: &Path, bytes: u64) -> Result<Self> {
        fs::create_dir_all(path).with_context(|| format!("create {}", path.display()))?;
        let options = format!("size={bytes},mode=0700,nodev,nosuid");
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "shoal-small-disk"])
            .arg(path)
            .output()
            .context("run mount")?;
        if !output.status.success() {
            bail!("mount {}: {}", path.display(), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(Self { path: path.to_owned() })
    }

    /// Why no disk can be mounted here; None where one can.
    pub fn refusal() -> Option<String> {
        let tried = tempfile::tempdir().map_err(anyhow::Error::from).and_then(|dir| {
            drop(Self::mount(dir.path(), 1 << 20)?);
            Ok(())
        });
        tried.err().map(|error| format!("{error:#}"))
    }

    /// Takes all the space that is left; how many bytes.
    ///
    /// # Errors
    /// Where writing fails for another reason than a full disk.
    pub fn fill(&self) -> Result<u64> {
        let path = self.path.join(FILLER);
        let mut file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
        match io::copy(&mut io::repeat(0x55), &mut file) {
            Err(error) if error.kind() == ErrorKind::StorageFull => Ok(file.metadata()?.len()),
            Err(error) => Err(error).with_context(|| format!("fill {}", path.display())),
            Ok(_) => bail!("{} has no end", path.display()),
        }
    }

    /// Gives the space back.
    ///
    /// # Errors
    /// Where the file that takes it cannot be removed.
    pub fn empty(&self) -> Result<()> {
        let path = self.path.join(FILLER);
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: also where somebody still looks at it.
        let _unmounted = Command::new("umount").arg("-l").arg(&self.path).output();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_small_disk_is_full_when_it_is_filled_and_gone_in_the_end() {
        if let Some(why) = SmallDisk::refusal() {
            // Not with eprintln!, which nobody sees of a test that passes.
            let _closed = writeln!(io::stderr(), "no small disk was tried: {why}");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let disk = SmallDisk::mount(&path, 2 << 20).unwrap();
        fs::write(path.join("before"), [1; 1 << 20]).unwrap();
        let taken = disk.fill().unwrap();
        assert!((1..=1 << 20).contains(&taken), "{taken}");
        let error = fs::write(path.join("more"), [1; 4096]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StorageFull);
        disk.empty().unwrap();
        fs::write(path.join("more"), [1; 4096]).unwrap();
        drop(disk);
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0, "still mounted");
    }
}
