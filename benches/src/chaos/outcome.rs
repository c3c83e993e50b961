//! What a run came to, and whether that is well. Pure: whatever was counted is
//! given.

use super::faults::Struck;

/// What was counted in a run.
#[derive(Clone, Debug, Default)]
pub(super) struct Outcome {
    pub(super) queries: usize,
    pub(super) wrong: usize,
    pub(super) failed: usize,
    /// Acknowledged rows that are not there, or are there twice.
    pub(super) lost: i64,
    /// Nodes that should run and do not.
    pub(super) crashed: Vec<String>,
    pub(super) struck: Struck,
    /// Whether nobody was to be struck.
    pub(super) no_faults: bool,
    /// How often workers were taken for lost, rightly or not.
    pub(super) times_lost: i64,
}

impl Outcome {
    /// How often a worker was taken for lost though nobody was struck.
    pub(super) fn false_alarms(&self) -> i64 {
        if self.struck.faults == 0 { self.times_lost } else { 0 }
    }

    /// Why the run is not well; nothing where it is.
    pub(super) fn causes(&self) -> Vec<String> {
        let false_alarms = self.false_alarms();
        let causes = [
            (self.queries == 0).then(|| "nothing was asked".to_owned()),
            (self.struck.faults == 0 && !self.no_faults)
                .then(|| "no fault struck, and --no-faults was not given".to_owned()),
            (self.wrong > 0).then(|| format!("{} answers were wrong", self.wrong)),
            (self.failed > 0).then(|| format!("{} statements failed", self.failed)),
            (self.lost != 0).then(|| format!("{} acknowledged rows are missing, or there twice", self.lost)),
            (false_alarms != 0)
                .then(|| format!("workers were taken for lost {false_alarms} times, and nobody was struck")),
            (!self.crashed.is_empty()).then(|| format!("crashed: {}", self.crashed.join(", "))),
        ];
        causes.into_iter().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRUCK: Struck = Struck { faults: 7, flips_tried: 0, flips_done: 0 };

    /// A run as it should be; its faults made the coordinator miss workers.
    fn well() -> Outcome {
        Outcome { queries: 100, struck: STRUCK, times_lost: 9, ..Outcome::default() }
    }

    /// The one cause why it is not well.
    fn cause(outcome: &Outcome) -> String {
        let causes = outcome.causes();
        assert_eq!(causes.len(), 1, "{causes:?}");
        causes.concat()
    }

    #[test]
    fn a_run_without_a_cause_is_well() {
        assert_eq!(well().causes(), Vec::<String>::new());
        let quiet = Outcome { queries: 100, no_faults: true, ..Outcome::default() };
        assert_eq!(quiet.causes(), Vec::<String>::new());
    }

    #[test]
    fn one_wrong_answer_is_enough() {
        assert_eq!(cause(&Outcome { wrong: 1, ..well() }), "1 answers were wrong");
    }

    #[test]
    fn one_failed_statement_is_enough() {
        assert_eq!(cause(&Outcome { failed: 1, ..well() }), "1 statements failed");
    }

    #[test]
    fn one_lost_row_is_enough() {
        assert_eq!(cause(&Outcome { lost: 1, ..well() }), "1 acknowledged rows are missing, or there twice");
    }

    #[test]
    fn one_crashed_node_is_enough_and_is_named() {
        let crashed = vec!["coordinator".to_owned(), "worker-3".to_owned()];
        assert_eq!(cause(&Outcome { crashed, ..well() }), "crashed: coordinator, worker-3");
    }

    #[test]
    fn a_worker_taken_for_lost_counts_only_where_nobody_was_struck() {
        assert_eq!(well().false_alarms(), 0);
        let alarmed = Outcome { struck: Struck::default(), no_faults: true, times_lost: 1, ..well() };
        assert_eq!(alarmed.false_alarms(), 1);
        assert_eq!(cause(&alarmed), "workers were taken for lost 1 times, and nobody was struck");
    }

    #[test]
    fn a_run_in_which_nothing_was_asked_is_not_well() {
        assert_eq!(cause(&Outcome { queries: 0, ..well() }), "nothing was asked");
    }

    #[test]
    fn a_run_without_faults_is_well_only_where_there_should_be_none() {
        let untouched = Outcome { struck: Struck::default(), times_lost: 0, ..well() };
        assert_eq!(cause(&untouched), "no fault struck, and --no-faults was not given");
        assert_eq!(Outcome { no_faults: true, ..untouched }.causes(), Vec::<String>::new());
    }
}
