//! What can be wrong with a node's settings. Each message names the setting,
//! where its value came from, and the way out.

use std::path::PathBuf;

use super::Source;

/// A setting that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What the parser says, with the line.
        message: String,
    },
    /// The file has a key that is no setting of this node.
    #[error(
        "{}:{line}: unknown key `{key}`{}; `shoal {command} --print-config` lists every key",
        path.display(),
        hint.as_deref().map(|near| format!(" (did you mean `{near}`?)")).unwrap_or_default()
    )]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// The key as written.
        key: String,
        /// The nearest key that exists, if one is near.
        hint: Option<&'static str>,
        /// `coordinator` or `worker`.
        command: &'static str,
    },
    /// A value that does not parse.
    #[error("{key} = `{value}` (from {source_}): {message}")]
    Invalid {
        /// The setting.
        key: &'static str,
        /// The value as written.
        value: String,
        /// Where it was written.
        source_: Source,
        /// What would be right.
        message: String,
    },
    /// Settings without a default that nobody gave.
    #[error("{}", .0.iter().map(|key| missing(key)).collect::<Vec<_>>().join("\n       "))]
    Missing(Vec<&'static str>),
    /// A node that would be open to a network without saying so.
    #[error(
        "refusing to listen on {0}: Shoal has no TLS and no passwords yet, so whoever reaches this port can read \
         and change everything. Listen on 127.0.0.1, or give --insecure if you trust everybody on that network"
    )]
    Exposed(std::net::SocketAddr),
    /// An address at which nobody can be reached.
    #[error(
        "listening on {0} does not say where other nodes reach this one: give --advertise http://HOST:{port}",
        port = .0.port()
    )]
    Unreachable(std::net::SocketAddr),
}

fn missing(key: &str) -> String {
    format!(
        "{key} is required: give {}, {} or `{key} = ...` in the configuration file",
        flag(key),
        variable(key)
    )
}

/// The flag of a key: `data_dir` is `--data-dir`.
pub(super) fn flag(key: &str) -> String {
    format!("--{}", key.replace('_', "-"))
}

/// The environment variable of a key: `data_dir` is `SHOAL_DATA_DIR`.
pub(super) fn variable(key: &str) -> String {
    format!("SHOAL_{}", key.to_uppercase())
}
