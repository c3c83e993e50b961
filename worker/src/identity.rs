//! Who this worker is: its name, its cluster and where that is found, the same
//! over restarts.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use shoal_data::data_dir::write_durably;
use shoal_proto::{ErrorCode, Failure, WorkerId};

use crate::Error;
use crate::coordinators::Coordinators;

const FILE: &str = "identity.toml";

/// The identity that a data directory holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// The worker's name.
    pub name: WorkerId,
    /// The cluster that it joined; empty before its first join.
    #[serde(default)]
    pub cluster: String,
    /// URLs of the cluster's coordinators, sorted; none before it was told.
    #[serde(default)]
    pub coordinators: Vec<String>,
}

impl Identity {
    /// Reads the identity of a data directory; makes one where there is none,
    /// under `name` or a new name.
    ///
    /// # Errors
    /// `Invalid` where the directory belongs to a worker of another name;
    /// `Io` where it cannot be read or written.
    pub fn load(dir: &Path, name: Option<&str>) -> Result<Self, Error> {
        let path = dir.join(FILE);
        let identity = match std::fs::read_to_string(&path) {
            Ok(text) => toml::from_str::<Self>(&text)
                .map_err(|error| Error::Invalid(format!("{} is not an identity: {error}", path.display())))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let made = || {
                    let id = uuid::Uuid::new_v4().simple().to_string();
                    format!("worker-{}", &id[..8])
                };
                let name = WorkerId::new(name.map_or_else(made, str::to_owned));
                let identity = Self { name, cluster: String::new(), coordinators: Vec::new() };
                identity.save(dir)?;
                identity
            }
            Err(error) => return Err(Error::io(format!("cannot read {}", path.display()), error)),
        };
        match name {
            Some(name) if name != identity.name.as_str() => Err(Error::Invalid(format!(
                "data directory {} belongs to worker `{}`, not to `{name}`; leave --name out, or choose another --data-dir",
                dir.display(),
                identity.name
            ))),
            _ => Ok(identity),
        }
    }

    /// Makes the identity durable.
    ///
    /// # Errors
    /// `Io`.
    pub fn save(&self, dir: &Path) -> Result<(), Error> {
        let text = toml::to_string(self).map_err(|error| Error::Internal(error.to_string()))?;
        Ok(write_durably(dir, FILE, text.as_bytes())?)
    }
}

/// The identity of a worker that runs, for all that work with a coordinator.
/// What is learned counts once it is durable.
#[derive(Debug)]
pub struct KeptIdentity {
    name: WorkerId,
    dir: PathBuf,
    cluster: OnceLock<String>,
    /// What the file says. Locked while it is written.
    file: Mutex<Identity>,
}

impl KeptIdentity {
    /// The identity that was loaded from `dir`.
    pub fn new(identity: Identity, dir: &Path) -> Self {
        let cluster = match identity.cluster.as_str() {
            "" => OnceLock::new(),
            cluster => OnceLock::from(cluster.to_owned()),
        };
        Self { name: identity.name.clone(), dir: dir.to_owned(), cluster, file: Mutex::new(identity) }
    }

    /// The worker's name.
    pub fn name(&self) -> &WorkerId {
        &self.name
    }

    /// The cluster that it joined; none before its first join.
    pub fn cluster(&self) -> Option<&str> {
        self.cluster.get().map(String::as_str)
    }

    /// Records the cluster at the first join. Blocks.
    ///
    /// # Errors
    /// `Invalid` for another cluster than the first; `Unavailable` where the
    /// coordinator has none yet; `Io`.
    pub fn belong_to(&self, cluster: &str) -> Result<(), Error> {
        if cluster.is_empty() {
            let failure = Failure::new(ErrorCode::Unavailable, "the coordinator has no cluster yet");
            return Err(failure.into());
        }
        let mut file = self.file.lock();
        if file.cluster.is_empty() {
            let joined = Identity { cluster: cluster.to_owned(), ..file.clone() };
            joined.save(&self.dir)?;
            *file = joined;
            self.cluster.get_or_init(|| cluster.to_owned());
        }
        if file.cluster != cluster {
            return Err(Error::Invalid(format!(
                "this worker belongs to cluster {}, and the coordinator to cluster {cluster}",
                file.cluster
            )));
        }
        Ok(())
    }

    /// Records which coordinators there are now. Blocks.
    ///
    /// # Errors
    /// `Io`.
    pub fn keep(&self, coordinators: &Coordinators) -> Result<(), Error> {
        let mut file = self.file.lock();
        // Read under the lock: whoever writes last writes the newest.
        let coordinators = coordinators.kept();
        if coordinators.is_empty() || file.coordinators == coordinators {
            return Ok(());
        }
        let kept = Identity { coordinators, ..file.clone() };
        kept.save(&self.dir)?;
        *file = kept;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_made_name_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let made = Identity::load(dir.path(), None).unwrap();
        assert!(made.name.as_str().starts_with("worker-"));
        assert_eq!(Identity::load(dir.path(), None).unwrap(), made);
    }

    #[test]
    fn a_directory_has_one_owner() {
        let dir = tempfile::tempdir().unwrap();
        let mut identity = Identity::load(dir.path(), Some("w1")).unwrap();
        identity.cluster = "c".to_owned();
        identity.save(dir.path()).unwrap();
        assert_eq!(Identity::load(dir.path(), Some("w1")).unwrap(), identity);
        let refused = Identity::load(dir.path(), Some("w2")).unwrap_err().to_string();
        assert!(refused.contains("belongs to worker `w1`"), "{refused}");
    }

    #[test]
    fn a_file_without_coordinators_is_read() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), "name = \"w1\"\ncluster = \"c\"\n").unwrap();
        let identity = Identity::load(dir.path(), None).unwrap();
        assert_eq!((identity.cluster.as_str(), identity.coordinators.len()), ("c", 0));
    }

    #[test]
    fn the_first_cluster_is_the_only_one() {
        let dir = tempfile::tempdir().unwrap();
        let kept = KeptIdentity::new(Identity::load(dir.path(), Some("w1")).unwrap(), dir.path());
        assert_eq!(kept.cluster(), None);
        let unready = kept.belong_to("").unwrap_err();
        assert_eq!((unready.code(), kept.cluster()), (ErrorCode::Unavailable, None));
        kept.belong_to("c").unwrap();
        kept.belong_to("c").unwrap();
        assert_eq!(kept.cluster(), Some("c"));
        let restarted = KeptIdentity::new(Identity::load(dir.path(), None).unwrap(), dir.path());
        for identity in [kept, restarted] {
            let refused = identity.belong_to("d").unwrap_err();
            assert_eq!(refused.code(), ErrorCode::Invalid);
            assert!(refused.to_string().contains("belongs to cluster c,"), "{refused}");
            assert_eq!(identity.cluster(), Some("c"));
        }
    }

    #[test]
    fn the_newest_list_is_found_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let kept = KeptIdentity::new(Identity::load(dir.path(), None).unwrap(), dir.path());
        let [a, b] = ["http://a:1", "http://b:1"].map(str::to_owned);
        let coordinators = Coordinators::new([a.clone()]);
        let after_restart = || Identity::load(dir.path(), None).unwrap().coordinators;
        kept.keep(&coordinators).unwrap();
        assert!(after_restart().is_empty());
        coordinators.listed(&[b.clone(), a.clone()]);
        kept.keep(&coordinators).unwrap();
        assert_eq!(after_restart(), [a.clone(), b.clone()]);
        // Another start, before which nothing was heard.
        kept.keep(&Coordinators::new([a.clone()])).unwrap();
        assert_eq!(after_restart(), [a, b]);
    }
}
