//! `system.queries`: those that run, those that ran, and what they read.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::UNIX_EPOCH;

use arrow::array::{
    Array, ArrayRef, BooleanArray, Float64Array, ListArray, ListBuilder, StringArray, StringBuilder,
    StructArray, TimestampMicrosecondArray, UInt64Array,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Fields};

use super::SystemTables;
use super::columns::{Columns, text, unsigned};
use crate::query::Certificate;

impl SystemTables {
    pub(super) fn queries(&self) -> Columns {
        let records = self.registry.all();
        let certificates: Vec<Known> = records.iter().map(|record| record.certificate()).collect();
        let count =
            |get: fn(&crate::query::QueryRecord) -> u64| unsigned(records.iter().map(|record| get(record)));
        let places = self.admission.places();
        let submitted = records.iter().map(|record| {
            let since = record.submitted_at.duration_since(UNIX_EPOCH).unwrap_or_default();
            i64::try_from(since.as_micros()).ok()
        });
        vec![
            ("id", text(records.iter().map(|record| record.query.to_string()))),
            ("state", text(records.iter().map(|record| record.state().name()))),
            ("user", text(records.iter().map(|record| record.user.as_str()))),
            ("sql", text(records.iter().map(|record| record.sql.as_str()))),
            ("submitted_at", Arc::new(submitted.collect::<TimestampMicrosecondArray>().with_timezone("UTC"))),
            (
                "elapsed_ms",
                Arc::new(
                    records
                        .iter()
                        .map(|record| Some((record.elapsed().as_secs_f64() * 1e6).round() / 1e3))
                        .collect::<Float64Array>(),
                ),
            ),
            (
                "queue_position",
                Arc::new(
                    records
                        .iter()
                        .map(|record| Some(*places.get(&record.ticket()?)? as u64))
                        .collect::<UInt64Array>(),
                ),
            ),
            (
                "class",
                Arc::new(records.iter().map(|record| Some(record.class()?.name())).collect::<StringArray>()),
            ),
            ("rows", count(|record| record.rows.load(Ordering::Relaxed))),
            ("bytes", count(|record| record.bytes.load(Ordering::Relaxed))),
            ("segments", count(|record| record.segments_total.load(Ordering::Relaxed))),
            ("attempts", count(|record| record.attempts.load(Ordering::Relaxed).into())),
            (
                "from_cache",
                Arc::new(
                    records
                        .iter()
                        .map(|record| Some(record.from_cache.load(Ordering::Relaxed)))
                        .collect::<BooleanArray>(),
                ),
            ),
            (
                "lost",
                Arc::new(records.iter().map(|record| joined(&record.losses())).collect::<StringArray>()),
            ),
            ("error", Arc::new(records.iter().map(|record| record.error()).collect::<StringArray>())),
            (
                "snapshot",
                Arc::new(
                    certificates
                        .iter()
                        .map(|known| known.as_ref().map(|known| known.snapshot))
                        .collect::<UInt64Array>(),
                ),
            ),
            ("workers", worker_lists(&certificates)),
            ("tables", table_lists(&certificates)),
        ]
    }
}

type Known = Option<Arc<Certificate>>;

/// The workers of each query; none where it has no certificate.
fn worker_lists(certificates: &[Known]) -> ArrayRef {
    let mut builder = ListBuilder::new(StringBuilder::new());
    for known in certificates {
        for worker in known.iter().flat_map(|known| &known.workers) {
            builder.values().append_value(worker.as_str());
        }
        builder.append(known.is_some());
    }
    Arc::new(builder.finish())
}

/// What each query read of which tables; none where it has no certificate.
fn table_lists(certificates: &[Known]) -> ArrayRef {
    let tables = || certificates.iter().flatten().flat_map(|known| &known.tables);
    let columns: Columns = vec![
        ("table", text(tables().map(|read| read.table.as_str()))),
        ("segments_planned", unsigned(tables().map(|read| read.segments_planned))),
        ("segments", unsigned(tables().map(|read| read.segments))),
        ("rows", unsigned(tables().map(|read| read.rows))),
    ];
    let (names, arrays): (Vec<_>, Vec<_>) = columns.into_iter().unzip();
    let fields = names.into_iter().zip(&arrays);
    let fields: Fields =
        fields.map(|(name, array)| Field::new(name, array.data_type().clone(), true)).collect();
    let lengths = certificates.iter().map(|known| known.as_ref().map_or(0, |known| known.tables.len()));
    let list = ListArray::new(
        Arc::new(Field::new_list_field(DataType::Struct(fields.clone()), true)),
        OffsetBuffer::from_lengths(lengths),
        Arc::new(StructArray::new(fields, arrays, None)),
        Some(certificates.iter().map(Option::is_some).collect::<Vec<_>>().into()),
    );
    Arc::new(list)
}

/// Lines of text in one; none where there are none.
fn joined(lines: &[String]) -> Option<String> {
    (!lines.is_empty()).then(|| lines.join("; "))
}
