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

impl Need {
    /// The same on one of so many workers, where what is asked of all together is known, of
    /// which the smallest has `least_bytes`; 0 where that is not known. No more than its limit on
    /// one. Two always fit: one that asks for much is not to hold up all others for as long as
    /// a single one runs.
    pub fn on_one_of(self, workers: usize, least_bytes: u64, limit_bytes: u64) -> Self {
        let part = self.memory_bytes / workers.max(1) as u64;
        let most = if least_bytes > 0 { least_bytes / 2 } else { u64::MAX };
        Self { memory_bytes: part.min(most).min(limit_bytes), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_worker_has_a_part_and_two_queries_fit_on_the_smallest() {
        let need = Need { class: Class::Long, memory_bytes: 800, session: 1, priority: Priority::Normal };
        let on = |workers, least_bytes, limit| need.on_one_of(workers, least_bytes, limit).memory_bytes;
        assert_eq!((on(4, 1_000, 900), on(4, 300, 900), on(4, 0, 900)), (200, 150, 200));
        assert_eq!((on(1, 1_000, 900), on(0, 0, 900), on(4, 1_000, 90)), (500, 800, 90));
    }
}
