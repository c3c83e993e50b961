//! Coordinators that cannot read what newer ones bring into the catalog.
//!
//! Pure. One that reads a command of the log which it does not know ends itself,
//! so such commands wait until all are up to date.

use std::collections::BTreeSet;

use crate::catalog::{COMMANDS, CoordinatorId};

/// Those that are known to be of an older version.
#[derive(Debug, Default)]
pub struct Older(BTreeSet<CoordinatorId>);

impl Older {
    /// Takes what the other coordinators say that they can read; none is one that
    /// does not answer: it is what it was. Which of them is of an older version.
    pub fn hear(&mut self, answers: &[(CoordinatorId, Option<u32>)]) -> Option<CoordinatorId> {
        let was_older = std::mem::take(&mut self.0);
        let is_older = |(id, reads): &&(CoordinatorId, Option<u32>)| match reads {
            Some(reads) => *reads < COMMANDS,
            None => was_older.contains(id),
        };
        self.0 = answers.iter().filter(is_older).map(|(id, _)| *id).collect();
        self.0.first().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_coordinator_is_one_until_it_says_otherwise_or_is_removed() {
        let mut older = Older::default();
        assert_eq!(older.hear(&[]), None);
        assert_eq!(older.hear(&[(1, Some(COMMANDS)), (3, None)]), None);
        assert_eq!(older.hear(&[(1, Some(COMMANDS)), (3, Some(0))]), Some(3));
        // It is stopped, and may be started as it was.
        assert_eq!(older.hear(&[(1, Some(COMMANDS)), (3, None)]), Some(3));
        assert_eq!(older.hear(&[(1, Some(0)), (3, None)]), Some(1));
        assert_eq!(older.hear(&[(1, Some(COMMANDS)), (3, Some(COMMANDS + 1))]), None);
        assert_eq!(older.hear(&[(1, Some(COMMANDS)), (3, Some(0))]), Some(3));
        assert_eq!(older.hear(&[(1, Some(COMMANDS))]), None);
        assert_eq!(older.hear(&[(1, Some(COMMANDS)), (3, None)]), None);
    }
}
