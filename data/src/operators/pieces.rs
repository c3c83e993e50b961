//! Batches in pieces for an operator that may work long on each of their
//! rows, so that it gives way now and then.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::common::Result;
use datafusion::execution::{RecordBatchStream, SendableRecordBatchStream};
use futures::{Stream, StreamExt};

use super::hand_on::HandOn;

/// A piece that took less is followed by one of twice the rows.
const PIECE_MIN: Duration = Duration::from_millis(10);
/// A piece that took more is followed by one of half the rows.
const PIECE_MAX: Duration = Duration::from_millis(40);

/// Gives rows in pieces that take the operator above some 10 to 40 ms each, and
/// gives way after those that do. A join that compares a batch with millions of
/// rows could otherwise not be stopped for seconds.
#[derive(Debug)]
pub struct InPieces;

impl HandOn for InPieces {
    const NAME: &'static str = "PiecesExec";

    fn of(_partitions: usize) -> Self {
        Self
    }

    fn hand_on(
        &self,
        _partition: usize,
        open: impl FnOnce() -> Result<SendableRecordBatchStream>,
    ) -> Result<SendableRecordBatchStream> {
        Ok(Box::pin(Pieces { input: open()?, rest: None, rows_max: 1, given: None }))
    }
}

struct Pieces {
    input: SendableRecordBatchStream,
    /// What of a batch was not given yet.
    rest: Option<RecordBatch>,
    rows_max: usize,
    /// When the last piece was given.
    given: Option<Instant>,
}

impl Pieces {
    /// Takes how long the last piece kept whoever asked for it; whether to give
    /// way before the next.
    fn learn(&mut self, took: Duration) -> bool {
        if took < PIECE_MIN {
            self.rows_max = self.rows_max.saturating_mul(2);
        } else if took > PIECE_MAX {
            self.rows_max = (self.rows_max / 2).max(1);
        }
        took >= PIECE_MIN
    }

    fn piece_of(&mut self, batch: RecordBatch) -> RecordBatch {
        let rows = batch.num_rows();
        let piece = if rows <= self.rows_max {
            batch
        } else {
            self.rest = Some(batch.slice(self.rows_max, rows - self.rows_max));
            batch.slice(0, self.rows_max)
        };
        self.given = Some(Instant::now());
        piece
    }
}

impl Stream for Pieces {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(given) = self.given.take()
            && self.learn(given.elapsed())
        {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let batch = match self.rest.take() {
            Some(rest) => rest,
            None => match std::task::ready!(self.input.poll_next_unpin(cx)) {
                Some(Ok(batch)) => batch,
                end => return Poll::Ready(end),
            },
        };
        Poll::Ready(Some(Ok(self.piece_of(batch))))
    }
}

impl RecordBatchStream for Pieces {
    fn schema(&self) -> SchemaRef {
        self.input.schema()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{AsArray, Int64Array};
    use arrow::datatypes::{DataType, Field, Int64Type, Schema};
    use datafusion::physical_plan::stream::RecordBatchStreamAdapter;

    use super::*;

    fn pieces(batches: &[usize]) -> Pieces {
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]));
        let mut next = 0;
        let batches: Vec<_> = batches
            .iter()
            .map(|&rows| {
                let numbers = Int64Array::from_iter_values(next..next + rows as i64);
                next += rows as i64;
                Ok(RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(numbers)]).unwrap())
            })
            .collect();
        let input = Box::pin(RecordBatchStreamAdapter::new(schema, futures::stream::iter(batches)));
        Pieces { input, rest: None, rows_max: 1, given: None }
    }

    #[tokio::test]
    async fn pieces_are_all_rows_in_order_and_grow_while_they_are_quick() {
        let given: Vec<_> = pieces(&[100, 0, 5000, 1]).collect().await;
        let sizes: Vec<_> = given.iter().map(|piece| piece.as_ref().unwrap().num_rows()).collect();
        assert_eq!(sizes[..5], [1, 2, 4, 8, 16], "{sizes:?}");
        let numbers: Vec<i64> = given
            .iter()
            .flat_map(|piece| piece.as_ref().unwrap().column(0).as_primitive::<Int64Type>().values().to_vec())
            .collect();
        assert_eq!(numbers, (0..5101).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_slow_reader_gets_small_pieces_and_gives_way() {
        let mut slow = pieces(&[64]);
        slow.rows_max = 8;
        let mut sizes = Vec::new();
        let mut gave_way = 0;
        let waker = futures::task::noop_waker();
        loop {
            match Pin::new(&mut slow).poll_next(&mut Context::from_waker(&waker)) {
                Poll::Pending => gave_way += 1,
                Poll::Ready(None) => break,
                Poll::Ready(Some(piece)) => {
                    sizes.push(piece.unwrap().num_rows());
                    if sizes.len() < 4 {
                        std::thread::sleep(PIECE_MAX + PIECE_MIN);
                    }
                }
            }
        }
        assert_eq!(sizes[..4], [8, 4, 2, 1], "{sizes:?}");
        assert!(gave_way >= 3, "{gave_way}");
        assert_eq!(sizes.iter().sum::<usize>(), 64);
    }
}
