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

    /// The kind that a number from 0 to 99 stands for: 80 of 100 questions are
    /// lookups, 15 small aggregates, 5 of TPC-H.
    pub(super) fn of(drawn: u32) -> Self {
        match drawn {
            0..80 => Self::Point,
            80..95 => Self::Aggregate,
            _ => Self::Tpch,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_hundred_questions_eighty_are_lookups_and_five_long() {
        let of = |wanted: Class| (0..100).filter(|drawn| Class::of(*drawn) == wanted).count();
        assert_eq!(Class::ALL.map(of), [80, 15, 5]);
        assert_eq!(Class::ALL.map(Class::name), ["point", "aggregate", "tpch"]);
    }
}
