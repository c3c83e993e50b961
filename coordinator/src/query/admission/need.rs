//! What a query wants before it runs: of which class it is, how much memory it may
//! take, for whom it runs and how urgent that is.

use std::fmt;
use std::str::FromStr;

/// Whether a query is done with soon. Each class has places of its own, so that neither
/// waits for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// It reads little of its tables, as their segments show, and computes little with it.
    Short,
    /// All others.
    Long,
}

impl Class {
    /// As `system.queries` shows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Short => "short",
            Self::Long => "long",
        }
    }
}

/// How large a share of the turns a session has where others wait, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Priority {
    /// A quarter of a normal one.
    Low,
    /// As much as others.
    #[default]
    Normal,
    /// Four times as much as a normal one.
    High,
}

impl fmt::Display for Priority {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
        })
    }
}

impl FromStr for Priority {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.trim().to_ascii_lowercase().as_str() {
            "low" => Ok(Self::Low),
            "normal" => Ok(Self::Normal),
            "high" => Ok(Self::High),
            _ => Err(format!("`{text}` is no priority; there are low, normal and high")),
        }
    }
}

/// What one query wants.
#[derive(Clone, Copy, Debug)]
pub struct Need {
    /// Of which class it is.
    pub class: Class,
    /// Bytes that it may take on one node; 0 where that is little.
    pub memory_bytes: u64,
    /// The number of its session, which takes turns with others.
    pub session: u64,
    /// How large the share of that session is.
    pub priority: Priority,
}
