//! Who this worker is: its name and its cluster, the same over restarts.

use std::path::Path;

use serde::{Deserialize, Serialize};
use shoal_data::data_dir::write_durably;
use shoal_proto::WorkerId;

use crate::Error;

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
                let identity = Self { name, cluster: String::new() };
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
}
