//! Deals rows to shards and holds them until there are enough for a segment.
//! Pure: it neither encodes nor sends.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, UInt32Array};
use arrow::compute::{BatchCoalescer, take, take_record_batch};
use arrow::datatypes::DataType;
use arrow::error::ArrowError;

use crate::segment_writer::by_first;
use crate::{DataError, KeyHash, Table};

/// Smaller batches are gathered before they are dealt.
const BATCH_ROWS_MIN: usize = 2048;
/// Rows of a gathered batch.
const BATCH_ROWS: usize = 8192;
/// Fewer rows are dealt when they take this much memory.
const BATCH_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Rows of one segment take at most about this much memory, so that joined
/// they stay far below the 2 GiB that an array of text can address.
const SEGMENT_ROWS_BYTES_MAX: usize = 512 * 1024 * 1024;
/// Bytes of a column that may be kept alive beyond its own.
const SHARED_BYTES_MAX: usize = 4096;

/// The rows of one shard that wait to be encoded.
#[derive(Debug)]
pub(super) struct ShardRows {
    pub(super) shard: u32,
    pub(super) batches: Vec<RecordBatch>,
    pub(super) rows: u64,
    pub(super) bytes: usize,
}

/// Deals the rows of one write. Every batch has the table's columns.
#[derive(Debug)]
pub(super) struct ShardWriter {
    hash: KeyHash,
    key: Vec<usize>,
    sort_key: Vec<usize>,
    shards: Vec<ShardRows>,
    /// Rows of each shard that are committed or were dealt by this write.
    rows_of_shard: Vec<u64>,
    /// Of shards that have as many rows, this one and those behind it come first.
    first_shard: u32,
    gathering: BatchCoalescer,
    shard_of_row: Vec<u32>,
    rows_for_shard: Vec<Vec<u32>>,
}

impl ShardWriter {
    pub(super) fn new(table: &Table, first_shard: u32) -> Result<Self, DataError> {
        table.layout.check(&table.columns)?;
        let indexes = |names: &[String]| -> Result<Vec<usize>, ArrowError> {
            names.iter().map(|name| table.columns.index_of(name)).collect()
        };
        let count = table.layout.shards;
        let mut rows_of_shard = vec![0; count as usize];
        for segment in &table.segments {
            if let Some(rows) = rows_of_shard.get_mut(segment.shard as usize) {
                *rows += segment.rows;
            }
        }
        Ok(Self {
            hash: table.layout.hash,
            key: indexes(&table.layout.shard_key)?,
            sort_key: indexes(&table.layout.sort_key)?,
            shards: (0..count).map(ShardRows::empty).collect(),
            rows_of_shard,
            first_shard: first_shard % count.max(1),
            gathering: BatchCoalescer::new(table.columns.clone(), BATCH_ROWS)
                .with_biggest_coalesce_batch_size(Some(BATCH_ROWS_MIN)),
            shard_of_row: Vec::new(),
            rows_for_shard: vec![Vec::new(); count as usize],
        })
    }

    /// Memory of the rows that wait.
    pub(super) fn buffered_bytes(&self) -> usize {
        self.shards.iter().map(|shard| shard.bytes).sum::<usize>() + self.gathering.size()
    }

    /// Takes rows.
    pub(super) fn push(&mut self, batch: RecordBatch) -> Result<(), DataError> {
        if batch.num_rows() > BATCH_ROWS_MIN {
            // Behind a few rows that wait, such as the last of a row group, it and all after
            // it would be cut and copied.
            self.gathering.finish_buffered_batch()?;
        }
        self.gathering.push_batch(batch)?;
        if self.gathering.size() > BATCH_BYTES_MAX {
            self.gathering.finish_buffered_batch()?;
        }
        self.deal_gathered()
    }

    /// No more rows will come.
    pub(super) fn finish(&mut self) -> Result<(), DataError> {
        self.gathering.finish_buffered_batch()?;
        self.deal_gathered()
    }

    /// Whether a shard has as many rows as one segment should.
    pub(super) fn has_full_segment(&self) -> bool {
        self.shards.iter().any(|shard| shard.bytes >= SEGMENT_ROWS_BYTES_MAX)
    }

    /// The rows of the shard that has most, or none if no rows wait.
    pub(super) fn take_largest(&mut self) -> Option<ShardRows> {
        let largest = self.shards.iter_mut().max_by_key(|shard| shard.bytes)?;
        (largest.rows > 0).then(|| std::mem::replace(largest, ShardRows::empty(largest.shard)))
    }

    fn deal_gathered(&mut self) -> Result<(), DataError> {
        while let Some(batch) = self.gathering.next_completed_batch() {
            self.deal(&batch)?;
        }
        Ok(())
    }

    fn deal(&mut self, batch: &RecordBatch) -> Result<(), DataError> {
        if self.shards.len() == 1 || self.key.is_empty() {
            // Whole batches, each to the shard that has fewest rows.
            self.keep(self.emptiest(), compact(batch)?);
            return Ok(());
        }
        let keys: Vec<ArrayRef> = self.key.iter().map(|index| batch.column(*index).clone()).collect();
        self.hash.shards_of(&keys, self.shards.len() as u32, &mut self.shard_of_row)?;
        self.rows_for_shard.iter_mut().for_each(Vec::clear);
        let mut deal = |row: u32| self.rows_for_shard[self.shard_of_row[row as usize] as usize].push(row);
        match by_first(batch.columns(), &self.sort_key) {
            None => (0..batch.num_rows() as u32).for_each(&mut deal),
            Some(order) => order.into_iter().for_each(&mut deal),
        }
        for shard in 0..self.shards.len() {
            let rows = std::mem::take(&mut self.rows_for_shard[shard]);
            if !rows.is_empty() {
                let taken = take_record_batch(batch, &UInt32Array::from(rows))?;
                self.keep(shard, compact(&taken)?);
            }
        }
        Ok(())
    }

    fn emptiest(&self) -> usize {
        let (count, first) = (self.rows_of_shard.len(), self.first_shard as usize);
        let in_order = (0..count).map(|behind| (first + behind) % count);
        in_order.min_by_key(|shard| self.rows_of_shard[*shard]).unwrap_or(0)
    }

    fn keep(&mut self, shard: usize, batch: RecordBatch) {
        self.rows_of_shard[shard] += batch.num_rows() as u64;
        let waiting = &mut self.shards[shard];
        waiting.rows += batch.num_rows() as u64;
        waiting.bytes += batch.get_array_memory_size();
        waiting.batches.push(batch);
    }
}

impl ShardRows {
    fn empty(shard: u32) -> Self {
        Self { shard, batches: Vec::new(), rows: 0, bytes: 0 }
    }
}

/// The same rows without what they share with other batches: views and slices
/// would keep all of their input alive, and be counted with it.
fn compact(batch: &RecordBatch) -> Result<RecordBatch, DataError> {
    let columns = batch.columns().iter().map(|column| match column.data_type() {
        DataType::Utf8View => Ok(Arc::new(column.as_string_view().gc()) as ArrayRef),
        DataType::BinaryView => Ok(Arc::new(column.as_binary_view().gc()) as ArrayRef),
        _ => {
            let own_bytes = column.to_data().get_slice_memory_size()?;
            if column.get_buffer_memory_size() <= own_bytes.saturating_mul(2) + SHARED_BYTES_MAX {
                return Ok(column.clone());
            }
            take(column, &UInt32Array::from_iter_values(0..column.len() as u32), None)
        }
    });
    Ok(RecordBatch::try_new(batch.schema(), columns.collect::<Result<_, ArrowError>>()?)?)
}

#[cfg(test)]
mod tests {
    use arrow::array::{Date32Array, Int64Array, StringViewArray};
    use arrow::compute::concat_batches;
    use arrow::datatypes::Int64Type;
    use shoal_proto::TableId;

    use super::*;
    use crate::{ReplicaCount, TableLayout};

    fn large() -> RecordBatch {
        let keys: ArrayRef = Arc::new((0..100_000).collect::<Int64Array>());
        let texts: StringViewArray =
            (0..100_000).map(|key| Some(format!("text of row number {key}"))).collect();
        RecordBatch::try_from_iter([("k", keys), ("text", Arc::new(texts) as ArrayRef)]).unwrap()
    }

    fn writer(shards: u32, shard_key: &[&str]) -> ShardWriter {
        beginning_at(0, shards, shard_key)
    }

    fn beginning_at(first_shard: u32, shards: u32, shard_key: &[&str]) -> ShardWriter {
        ShardWriter::new(&table(shards, shard_key), first_shard).unwrap()
    }

    fn table(shards: u32, shard_key: &[&str]) -> Table {
        Table {
            id: TableId(1),
            schema_name: "public".into(),
            name: "t".into(),
            columns: large().schema(),
            layout: TableLayout {
                shards,
                replicas: ReplicaCount::All,
                shard_key: shard_key.iter().map(|name| (*name).to_owned()).collect(),
                sort_key: vec![],
                hash: KeyHash::CURRENT,
                bloom_filters: Vec::new(),
            },
            placement: vec![],
            segments: vec![],
            sketches: None,
        }
    }

    #[test]
    fn a_slice_is_counted_and_kept_without_its_whole() {
        for mut writer in [writer(1, &[]), writer(4, &["k"])] {
            writer.push(large().slice(0, 4096)).unwrap();
            let bytes = writer.buffered_bytes();
            assert!((100_000..500_000).contains(&bytes), "{bytes} bytes for 4096 rows of some 50");
        }
    }

    #[test]
    fn what_is_taken_is_no_longer_counted() {
        let mut writer = writer(4, &["k"]);
        writer.push(large()).unwrap();
        writer.finish().unwrap();
        let mut rows = 0;
        let mut bytes_before = writer.buffered_bytes();
        while let Some(taken) = writer.take_largest() {
            rows += taken.rows;
            assert_eq!(taken.rows, taken.batches.iter().map(|batch| batch.num_rows() as u64).sum::<u64>());
            assert!(writer.buffered_bytes() < bytes_before);
            bytes_before = writer.buffered_bytes();
        }
        assert_eq!(rows, 100_000);
    }

    #[test]
    fn tasks_that_know_nothing_of_one_another_fill_all_shards() {
        const SHARDS: u32 = 12;
        let mut rows_of_shard = [0; SHARDS as usize];
        // Four tasks of three batches each, in shards without rows.
        for first_shard in [2, 5, 8, 11] {
            let mut writer = beginning_at(first_shard, SHARDS, &[]);
            (0..3).for_each(|batch| writer.push(large().slice(batch * 4096, 4096)).unwrap());
            writer.finish().unwrap();
            while let Some(taken) = writer.take_largest() {
                rows_of_shard[taken.shard as usize] += taken.rows;
            }
        }
        assert_eq!(rows_of_shard, [4096; SHARDS as usize]);
    }

    #[test]
    fn large_batches_stay_whole_behind_a_few_rows() {
        let mut writer = writer(1, &[]);
        let (large, mut from) = (large(), 0);
        for rows in [10, 8192, 20, 30, 2049, 8192, 2048, 5] {
            writer.push(large.slice(from, rows)).unwrap();
            from += rows;
        }
        writer.finish().unwrap();
        let taken = writer.take_largest().unwrap();
        let rows: Vec<usize> = taken.batches.iter().map(RecordBatch::num_rows).collect();
        assert_eq!(rows, [10, 8192, 50, 2049, 8192, 2053]);
        let together = concat_batches(&large.schema(), &taken.batches).unwrap();
        assert_eq!(together, large.slice(0, from));
    }

    #[test]
    fn rows_are_dealt_in_the_order_of_the_first_sort_column() {
        let rows = 10_000;
        let day = |row: i64| (row * 7919 % 100) as i32;
        let batch = RecordBatch::try_from_iter([
            ("k", Arc::new((0..rows).collect::<Int64Array>()) as ArrayRef),
            ("day", Arc::new((0..rows).map(|row| Some(day(row))).collect::<Date32Array>()) as ArrayRef),
        ])
        .unwrap();
        let mut table = table(4, &["k"]);
        table.columns = batch.schema();
        table.layout.sort_key = vec!["day".to_owned(), "k".to_owned()];
        let mut writer = ShardWriter::new(&table, 0).unwrap();
        writer.push(batch).unwrap();
        writer.finish().unwrap();
        let mut dealt = 0;
        while let Some(taken) = writer.take_largest() {
            let [batch] = taken.batches.as_slice() else { panic!("{} batches", taken.batches.len()) };
            // Of one day they are in the order in which they came.
            let keys = batch.column(0).as_primitive::<Int64Type>().values();
            assert!(keys.is_sorted_by_key(|&key| (day(key), key)), "{keys:?}");
            assert!(!keys.is_sorted());
            dealt += batch.num_rows() as i64;
        }
        assert_eq!(dealt, rows);
    }

    #[test]
    fn tiny_batches_are_gathered() {
        let mut writer = writer(2, &["k"]);
        let large = large();
        (0..20_000).for_each(|row| writer.push(large.slice(row, 1)).unwrap());
        writer.finish().unwrap();
        let batches: usize =
            std::iter::from_fn(|| writer.take_largest()).map(|taken| taken.batches.len()).sum();
        assert!(batches <= 6, "{batches} batches");
    }
}
