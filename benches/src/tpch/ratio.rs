//! Shoal's time over a peer's. A query that the peer fails, or answers otherwise than the
//! oracle, is in neither of them, and the ratio says so.

use std::collections::BTreeSet;

use super::Measured;
use crate::report::Summary;

/// Of one peer.
#[derive(Debug)]
pub(super) struct Ratio {
    /// Queries that there were.
    queries: usize,
    /// Those that are in neither time.
    left_out: BTreeSet<usize>,
    /// Milliseconds of all others. What Shoal failed is no number, and neither is the ratio then.
    shoal_ms: f64,
    peer_ms: f64,
}

impl Ratio {
    /// Of the queries with these numbers, in the order of the times.
    pub(super) fn between(queries: &[usize], shoal: &Measured, peer: &Measured) -> Self {
        let left_out: BTreeSet<usize> = peer.failed.union(&peer.wrong).copied().collect();
        let total_ms = |ms: &[f64]| {
            let numbered = queries.iter().zip(ms);
            numbered.filter(|(number, _)| !left_out.contains(number)).map(|(_, ms)| ms).sum()
        };
        let (shoal_ms, peer_ms) = (total_ms(&shoal.ms), total_ms(&peer.ms));
        Self { queries: queries.len(), left_out, shoal_ms, peer_ms }
    }

    /// Adds `ratio_PEER` to a last line; where queries are left out, also how many are in it and which are not.
    pub(super) fn add_to(&self, summary: Summary, peer: &str) -> Summary {
        let key = peer.replace('=', ":");
        let summary = summary.with_number(&format!("ratio_{key}"), self.shoal_ms / self.peer_ms);
        if self.left_out.is_empty() {
            return summary;
        }
        summary
            .with(&format!("in_ratio_{key}"), format!("{}/{}", self.in_it(), self.queries))
            .with(&format!("left_out_{key}"), self.names())
    }

    /// A line for a person, where there is something to say.
    pub(super) fn what_is_left_out(&self, peer: &str) -> Option<String> {
        (!self.left_out.is_empty()).then(|| {
            format!(
                "{peer} failed or was wrong in {}: its ratio is of the other {} of {} queries, {:.1} ms of shoal over {:.1} ms",
                self.names(),
                self.in_it(),
                self.queries,
                self.shoal_ms,
                self.peer_ms
            )
        })
    }

    fn in_it(&self) -> usize {
        self.queries.saturating_sub(self.left_out.len())
    }

    fn names(&self) -> String {
        let names: Vec<String> = self.left_out.iter().map(|number| format!("q{number}")).collect();
        names.join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(ms: &[f64], failed: &[usize], wrong: &[usize]) -> Measured {
        Measured {
            name: "one".to_owned(),
            right: ms.len() - failed.len() - wrong.len(),
            ms: ms.to_vec(),
            total_ms: ms.iter().sum(),
            cpu_s: 0.0,
            peak_mb: 0.0,
            failed: failed.iter().copied().collect(),
            wrong: wrong.iter().copied().collect(),
            problems: Vec::new(),
        }
    }

    /// The end of the last line for these, and what a person is told.
    fn said(shoal: &Measured, peer: &Measured) -> (String, Option<String>) {
        let ratio = Ratio::between(&[1, 6, 10], shoal, peer);
        (ratio.add_to(Summary::new("tpch"), "peer").as_str().to_owned(), ratio.what_is_left_out("peer"))
    }

    #[test]
    fn all_queries_count_where_all_are_right() {
        let (line, told) =
            said(&measured(&[10.0, 20.0, 30.0], &[], &[]), &measured(&[20.0, 40.0, 60.0], &[], &[]));
        assert_eq!(line, "tpch ratio_peer=0.50");
        assert_eq!(told, None);
    }

    #[test]
    fn what_a_peer_fails_or_answers_wrong_is_on_neither_side_and_is_named() {
        let shoal = measured(&[10.0, 20.0, 30.0], &[], &[]);
        let (line, told) = said(&shoal, &measured(&[20.0, 40.0, f64::NAN], &[10], &[]));
        assert_eq!(line, "tpch ratio_peer=0.50 in_ratio_peer=2/3 left_out_peer=q10");
        let told = told.unwrap();
        assert!(
            told.contains("q10: its ratio is of the other 2 of 3 queries, 30.0 ms of shoal over 60.0 ms"),
            "{told}"
        );

        let (line, _) = said(&shoal, &measured(&[1.0, 40.0, f64::NAN], &[10], &[1]));
        assert_eq!(line, "tpch ratio_peer=0.50 in_ratio_peer=1/3 left_out_peer=q1,q10");
    }

    #[test]
    fn what_shoal_fails_is_not_left_out() {
        let (line, told) =
            said(&measured(&[10.0, f64::NAN, 30.0], &[6], &[]), &measured(&[20.0, 40.0, 60.0], &[], &[]));
        assert_eq!(line, "tpch ratio_peer=NaN");
        assert_eq!(told, None);
    }

    #[test]
    fn a_peer_that_is_right_in_nothing_has_no_ratio() {
        let nan = f64::NAN;
        let (line, _) =
            said(&measured(&[10.0, 20.0, 30.0], &[], &[]), &measured(&[nan, nan, nan], &[1, 6, 10], &[]));
        assert_eq!(line, "tpch ratio_peer=NaN in_ratio_peer=0/3 left_out_peer=q1,q6,q10");
    }
}
