//! A run-time filter inside the scan below it: what is between the least and the
//! greatest key is ruled out with whole files, row groups and pages, and rows are left
//! out before their other columns are decoded.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use arrow::array::{Array, RecordBatch};
use arrow::datatypes::{DataType, Field, FieldRef, Schema};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::{ColumnarValue, Operator};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{BinaryExpr, DynamicFilterPhysicalExpr, lit};
use datafusion::physical_plan::metrics::Count;
use shoal_proto::runtime_filter::{Bounds, KeyFilter};

/// Of so many rows at least half must be left out, or the scan decodes all columns of
/// the rest: to decode some of them later costs more than it saves.
const TRIAL_ROWS: usize = 128 * 1024;

/// The filter in a scan.
#[derive(Clone, Debug)]
pub(super) struct InScan {
    filter: Arc<DynamicFilterPhysicalExpr>,
    /// Whether the scan looks at each row, and not at whole files and pages only.
    by_row: bool,
    is_set: Arc<AtomicBool>,
    trial: Arc<Trial>,
}

/// What became of the rows that a scan looked at.
#[derive(Debug, Default)]
struct Trial {
    looked_at: AtomicUsize,
    left_out: AtomicUsize,
    is_in_vain: AtomicBool,
}

impl InScan {
    /// This filter, which the scan evaluates for each row or not.
    pub(super) fn new(filter: Arc<DynamicFilterPhysicalExpr>, by_row: bool) -> Self {
        Self { filter, by_row, is_set: Arc::default(), trial: Arc::default() }
    }

    /// Tells the scan all that is known of the keys, once. Rows that it leaves out are
    /// counted.
    ///
    /// # Errors
    /// None in practice; those of changing the filter.
    pub(super) fn set(&self, known: &Arc<KeyFilter>, rows_pruned: &Count) -> Result<()> {
        if self.is_set.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        let columns = self.filter.children().into_iter().zip(known.bounds());
        let between = columns.filter_map(|(column, bounds)| {
            let Bounds { min, max } = bounds.as_ref()?;
            let is = |operator, value| Arc::new(BinaryExpr::new(Arc::clone(column), operator, lit(value)));
            Some(and(is(Operator::GtEq, min.clone()), is(Operator::LtEq, max.clone())))
        });
        let has_key = (self.by_row && known.tells_keys()).then(|| {
            let columns = self.filter.children().into_iter().cloned().collect();
            let (known, rows_pruned) = (Arc::clone(known), rows_pruned.clone());
            Arc::new(HasKey { columns, known, rows_pruned, trial: Arc::clone(&self.trial) }) as _
        });
        match between.chain(has_key).reduce(and) {
            Some(all) => self.filter.update(all)?,
            None => self.trial.is_in_vain.store(true, Ordering::Relaxed),
        }
        self.filter.mark_complete();
        Ok(())
    }

    /// Whether the scan leaves out rows, so that few are left to be left out behind it.
    pub(super) fn leaves_out_rows(&self) -> bool {
        self.trial.left_out.load(Ordering::Relaxed) > 0 && !self.trial.is_in_vain()
    }
}

impl Trial {
    fn is_in_vain(&self) -> bool {
        self.is_in_vain.load(Ordering::Relaxed)
    }

    /// So many rows more were looked at, of which so many were left out.
    fn count(&self, looked_at: usize, left_out: usize) {
        let looked_at = self.looked_at.fetch_add(looked_at, Ordering::Relaxed) + looked_at;
        let left_out = self.left_out.fetch_add(left_out, Ordering::Relaxed) + left_out;
        if looked_at >= TRIAL_ROWS && left_out * 2 < looked_at {
            self.is_in_vain.store(true, Ordering::Relaxed);
        }
    }
}

fn and(left: Arc<dyn PhysicalExpr>, right: Arc<dyn PhysicalExpr>) -> Arc<dyn PhysicalExpr> {
    Arc::new(BinaryExpr::new(left, Operator::And, right))
}

/// Whether a row may have a partner in a join; true for all once too few have none.
#[derive(Clone, Debug)]
struct HasKey {
    columns: Vec<Arc<dyn PhysicalExpr>>,
    known: Arc<KeyFilter>,
    rows_pruned: Count,
    trial: Arc<Trial>,
}

impl PartialEq for HasKey {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.known, &other.known) && self.columns == other.columns
    }
}

impl Eq for HasKey {}

impl Hash for HasKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.known).hash(state);
        self.columns.hash(state);
    }
}

impl fmt::Display for HasKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fmt_sql(f)
    }
}

impl PhysicalExpr for HasKey {
    fn return_field(&self, _schema: &Schema) -> Result<FieldRef> {
        Ok(Arc::new(Field::new("has_key", DataType::Boolean, false)))
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<ColumnarValue> {
        let all = ColumnarValue::Scalar(ScalarValue::Boolean(Some(true)));
        if self.trial.is_in_vain() {
            return Ok(all);
        }
        let keys = self.columns.iter().map(|column| column.evaluate(batch)?.into_array(batch.num_rows()));
        let keys = keys.collect::<Result<Vec<_>>>()?;
        if !self.known.fits(keys.iter().map(|key| key.data_type())) {
            return Ok(all);
        }
        let keep = self.known.may_have(&keys)?;
        let left_out = keep.len() - keep.true_count();
        self.rows_pruned.add(left_out);
        self.trial.count(keep.len(), left_out);
        Ok(ColumnarValue::Array(Arc::new(keep)))
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        self.columns.iter().collect()
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn PhysicalExpr>>,
    ) -> Result<Arc<dyn PhysicalExpr>> {
        Ok(Arc::new(Self { columns: children, ..self.as_ref().clone() }))
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.columns.iter().map(ToString::to_string).collect::<Vec<_>>();
        write!(f, "has_key({})", columns.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::Int64Array;
    use datafusion::physical_expr::expressions::Column;
    use shoal_proto::runtime_filter::KeyCollector;

    use super::*;

    fn has_key(built: Vec<i64>) -> HasKey {
        let mut collector = KeyCollector::new(vec![DataType::Int64]).unwrap();
        collector.add(&[Arc::new(Int64Array::from(built))]).unwrap();
        let known = Arc::new(collector.finish().unwrap().folded(1));
        let columns = vec![Arc::new(Column::new("k", 0)) as Arc<dyn PhysicalExpr>];
        HasKey { columns, known, rows_pruned: Count::new(), trial: Arc::default() }
    }

    fn kept(expr: &HasKey, keys: Vec<Option<i64>>) -> usize {
        let rows = keys.len();
        let keys: Arc<dyn Array> = Arc::new(Int64Array::from(keys));
        let batch = RecordBatch::try_from_iter_with_nullable([("k", keys, true)]).unwrap();
        let kept = expr.evaluate(&batch).unwrap().into_array(rows).unwrap();
        assert_eq!(kept.null_count(), 0);
        arrow::array::AsArray::as_boolean(&kept).true_count()
    }

    #[test]
    fn rows_without_a_partner_are_left_out_and_counted() {
        let expr = has_key(vec![1, 3]);
        assert_eq!(kept(&expr, vec![Some(1), Some(2), Some(3), None, Some(3)]), 3);
        assert_eq!(expr.rows_pruned.value(), 2);
        assert_eq!(expr.to_string(), "has_key(k@0)");
    }

    #[test]
    fn a_scan_that_leaves_out_few_looks_no_more() {
        let expr = has_key((0..1000).collect());
        let rows = || (0..TRIAL_ROWS as i64 / 2).map(|row| Some(row % 1000));
        assert_eq!(kept(&expr, rows().collect()), TRIAL_ROWS / 2);
        assert!(kept(&expr, vec![Some(-1)]) == 0 && !expr.trial.is_in_vain());
        assert_eq!(kept(&expr, rows().collect()), TRIAL_ROWS / 2);
        assert!(expr.trial.is_in_vain());
        assert_eq!(kept(&expr, vec![Some(-1), None]), 2, "they are left out behind it");
        assert_eq!(expr.rows_pruned.value(), 1);
        // One that leaves out most goes on.
        let expr = has_key(vec![-1]);
        for _ in 0..4 {
            assert_eq!(kept(&expr, rows().collect()), 0);
        }
        assert!(!expr.trial.is_in_vain());
    }

    #[test]
    fn keys_of_another_type_are_all_kept() {
        let expr = has_key(vec![1]);
        let keys: Arc<dyn Array> = Arc::new(arrow::array::Int32Array::from(vec![1, 2]));
        let batch = RecordBatch::try_from_iter([("k", keys)]).unwrap();
        let ColumnarValue::Scalar(all) = expr.evaluate(&batch).unwrap() else {
            panic!("rows were told apart")
        };
        assert_eq!(all, ScalarValue::Boolean(Some(true)));
    }
}
