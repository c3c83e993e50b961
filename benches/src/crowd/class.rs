//! The kinds of questions, and how often each is asked.

/// A kind of question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// One row by the shard key, through a prepared statement.
    Point,
    /// A few groups over a small table.
    Aggregate,
    /// One of the 22 queries.
    Tpch,
}

impl Class {
    /// All of them.
    pub(super) const ALL: [Self; 3] = [Self::Point, Self::Aggregate, Self::Tpch];

    /// As the last line names it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Point => "point",
            Self::Aggregate => "aggregate",
            Self::Tpch => "tpch",
        }
    }

    /// Of twenty questions so many are of each kind: 80 of 100 are lookups, 15 small
    /// aggregates, 5 of TPC-H.
    pub(super) const HAND: [(Self, usize); 3] = [(Self::Point, 16), (Self::Aggregate, 3), (Self::Tpch, 1)];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_hundred_questions_eighty_are_lookups_and_five_long() {
        let all: usize = Class::HAND.iter().map(|(_, times)| times).sum();
        assert_eq!(Class::HAND.map(|(_, times)| 100 * times / all), [80, 15, 5]);
        assert_eq!(Class::HAND.map(|(class, _)| class), Class::ALL);
        assert_eq!(Class::ALL.map(Class::name), ["point", "aggregate", "tpch"]);
    }
}
