//! Where a value came from, and how that is shown.

use std::fmt;
use std::path::PathBuf;

/// Where a value was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// On the command line: the flag.
    Flag(String),
    /// In the environment: the variable.
    Environment(String),
    /// In a TOML file.
    File(PathBuf),
    /// Nowhere.
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => write!(f, "flag {flag}"),
            Self::Environment(variable) => write!(f, "environment {variable}"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

/// One setting as it turned out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Its key.
    pub key: &'static str,
    /// Its value as TOML; none where it is not set and has no default.
    pub value: Option<String>,
    /// Where the value came from.
    pub source: Source,
}

/// The settings as a TOML document, each with where it came from.
pub(super) fn document(command: &str, settings: &[Resolved]) -> String {
    let assignments: Vec<_> = settings
        .iter()
        .map(|setting| match &setting.value {
            Some(value) => format!("{} = {value}", setting.key),
            None => format!("# {} =", setting.key),
        })
        .collect();
    let width = assignments.iter().map(|text| text.chars().count()).max().unwrap_or_default().min(60);
    let mut text = format!("# shoal {command}: every setting, and where its value came from\n");
    for (assignment, setting) in assignments.iter().zip(settings) {
        let source = match (&setting.value, &setting.source) {
            (None, _) => "not set".to_owned(),
            (Some(_), source) => source.to_string(),
        };
        text.push_str(&format!("{assignment:width$}  # {source}\n"));
    }
    text
}
