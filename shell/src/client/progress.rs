//! Where a query is, as the coordinator tells it.

use serde::Deserialize;

/// An answer to `shoal.progress`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Progress {
    /// `queued`, `running`, `finished`, `failed` or `cancelled`.
    pub state: String,
    /// Place in the queue, from 1, while queued.
    pub queue_position: Option<u64>,
    /// Segments opened so far.
    pub segments_done: u64,
    /// Segments that the plan reads; 0 while that is unknown.
    pub segments_total: u64,
    /// Rows read so far, over all workers.
    pub rows: u64,
    /// Bytes read so far, over all workers.
    pub bytes: u64,
    /// Workers that run something of it.
    pub workers_busy: u64,
    /// Since it was submitted.
    pub elapsed_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_that_are_missing_or_new_do_no_harm() {
        let progress: Progress =
            serde_json::from_str(r#"{"state":"queued","queue_position":3,"attempts":1}"#).unwrap();
        assert_eq!(progress.state, "queued");
        assert_eq!(progress.queue_position, Some(3));
        assert_eq!(progress.segments_total, 0);
    }
}
