//! What a folder of `--keep` remembers: what the cluster is made of and
//! whether its tables are complete.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::DemoArgs;

const FILE: &str = "demo.toml";
const COORDINATORS_DEFAULT: u32 = 3;
const WORKERS_DEFAULT: u32 = 4;
const REPLICAS_DEFAULT: u32 = 3;
const SCALE_DEFAULT: f64 = 0.1;

/// What the cluster is made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Kept {
    /// Coordinator processes. A folder that says nothing of them was made by a
    /// version that had one, and gets the others.
    #[serde(default = "coordinators_default")]
    pub(super) coordinators: u32,
    /// Worker processes.
    pub(super) workers: u32,
    /// Copies of each shard.
    pub(super) replicas: u32,
    /// Scale of the TPC-H tables; none where there are none.
    pub(super) scale: Option<f64>,
    /// Whether all TPC-H tables are there and full.
    pub(super) complete: bool,
}

fn coordinators_default() -> u32 {
    COORDINATORS_DEFAULT
}

impl Kept {
    /// What this run is to be: what the folder remembers, completed with what
    /// the flags say.
    ///
    /// # Errors
    /// Where the flags ask for another cluster than the folder holds.
    pub(super) fn decide(args: &DemoArgs, folder: Option<&Path>) -> Result<Self> {
        let wanted_scale = args.scale.or_else(|| args.load.is_empty().then_some(SCALE_DEFAULT));
        let Some(mut kept) = folder.map(Self::read).transpose()?.flatten() else {
            let workers = args.workers.unwrap_or(WORKERS_DEFAULT);
            return Ok(Self {
                coordinators: args.coordinators.unwrap_or(COORDINATORS_DEFAULT),
                workers,
                replicas: args.replicas.unwrap_or(REPLICAS_DEFAULT.min(workers)),
                scale: wanted_scale,
                complete: false,
            });
        };
        let folder = folder.unwrap_or(Path::new(".")).display();
        if let Some(scale) = args.scale {
            match kept.scale {
                Some(there) if there != scale => bail!(
                    "{folder} holds TPC-H at scale {there}, not {scale}: leave --scale out, or keep this one elsewhere"
                ),
                Some(_) => {}
                None => (kept.scale, kept.complete) = (Some(scale), false),
            }
        }
        if let Some(replicas) = args.replicas
            && replicas != kept.replicas
        {
            bail!(
                "{folder} holds {} copies of each shard, not {replicas}: leave --replicas out, or keep this one elsewhere",
                kept.replicas
            );
        }
        if let Some(coordinators) = args.coordinators {
            if coordinators < kept.coordinators {
                bail!(
                    "{folder} holds the catalog of {} coordinators: {coordinators} may be too few to decide anything; \
                     leave --coordinators out, or keep this one elsewhere",
                    kept.coordinators
                );
            }
            kept.coordinators = coordinators;
        }
        if let Some(workers) = args.workers {
            if workers < kept.workers {
                bail!(
                    "{folder} holds the data of {} workers: with {workers} some of it might be missing; \
                     leave --workers out, or keep this one elsewhere",
                    kept.workers
                );
            }
            kept.workers = workers;
        }
        Ok(kept)
    }

    /// Remembers this in the folder.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        let text = toml::to_string(self).context("cannot describe the demo as TOML")?;
        let (path, new) = (folder.join(FILE), folder.join("demo.toml.new"));
        fs::write(&new, text).with_context(|| format!("cannot write {}", new.display()))?;
        fs::rename(&new, &path).with_context(|| format!("cannot write {}", path.display()))
    }

    fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(FILE);
        match fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text)
                .map(Some)
                .with_context(|| format!("{} is not what a demo leaves behind", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let empty = match fs::read_dir(folder) {
                    Ok(mut entries) => entries.next().is_none(),
                    Err(_) => true,
                };
                if !empty {
                    bail!(
                        "{} has other things in it: give --keep an empty folder or a new one",
                        folder.display()
                    );
                }
                Ok(None)
            }
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        demo: DemoArgs,
    }

    fn args(flags: &[&str]) -> DemoArgs {
        Line::parse_from(["demo"].iter().chain(flags)).demo
    }

    #[test]
    fn a_fresh_demo_has_tpch_unless_files_are_given() {
        let fresh = |flags: &[&str]| Kept::decide(&args(flags), None).unwrap();
        let expected = Kept { coordinators: 3, workers: 4, replicas: 3, scale: Some(0.1), complete: false };
        assert_eq!(fresh(&[]), expected);
        assert_eq!(fresh(&["--coordinators", "1"]).coordinators, 1);
        assert_eq!(fresh(&["--load", "a.csv"]).scale, None);
        assert_eq!(fresh(&["--load", "a.csv", "--scale", "1"]).scale, Some(1.0));
        assert_eq!(fresh(&["--workers", "2"]).replicas, 2);
    }

    #[test]
    fn a_kept_folder_decides_and_refuses_what_it_cannot_be() {
        let folder = tempfile::tempdir().unwrap();
        let kept = Kept { coordinators: 3, workers: 4, replicas: 3, scale: Some(0.1), complete: true };
        kept.write(folder.path()).unwrap();
        let decide = |flags: &[&str]| {
            Kept::decide(&args(flags), Some(folder.path())).map_err(|error| error.to_string())
        };
        assert_eq!(decide(&[]), Ok(kept.clone()));
        assert_eq!(decide(&["--load", "a.csv"]), Ok(kept.clone()));
        assert_eq!(decide(&["--workers", "6"]).map(|kept| kept.workers), Ok(6));
        assert_eq!(decide(&["--coordinators", "5"]).map(|kept| kept.coordinators), Ok(5));
        assert!(decide(&["--coordinators", "1"]).unwrap_err().contains("catalog of 3 coordinators"));
        assert!(decide(&["--scale", "1"]).unwrap_err().contains("scale 0.1, not 1"));
        assert!(decide(&["--workers", "3"]).unwrap_err().contains("data of 4 workers"));
        assert!(decide(&["--replicas", "2"]).unwrap_err().contains("3 copies"));
    }

    #[test]
    fn a_folder_of_one_coordinator_gets_the_others() {
        let folder = tempfile::tempdir().unwrap();
        let before = "workers = 4\nreplicas = 3\nscale = 0.1\ncomplete = true\n";
        fs::write(folder.path().join(FILE), before).unwrap();
        let kept = Kept::decide(&args(&[]), Some(folder.path())).unwrap();
        assert_eq!((kept.coordinators, kept.workers), (3, 4));
    }

    #[test]
    fn a_folder_with_other_things_in_it_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("thesis.txt"), "precious").unwrap();
        let error = Kept::decide(&args(&[]), Some(folder.path())).unwrap_err();
        assert!(error.to_string().contains("other things in it"), "{error}");
    }
}
