//! A state as the bytes of a snapshot. All but the segments is JSON, in which a
//! newer version can add fields; the segments, of which there may be a million, are
//! packed: to write and read them as JSON would take minutes and gigabytes.
//!
//! ```text
//! magic, format (4 bytes), length of the head (8 bytes), head (JSON),
//! the segments of each table in the order of the head,
//! how many bytes those of each table take (8 bytes each), CRC-32C of all that
//! ```
//!
//! Numbers are little-endian, or as `put_varint` writes them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use shoal_data::packed_statistics::{Reader, put_varint};
use shoal_data::{PackedStatistics, Segment, Table};
use shoal_proto::{SegmentId, TableId, WorkerId};
use uuid::Uuid;

use super::{State, share};
use crate::Error;

/// With what each snapshot begins.
const MAGIC: [u8; 8] = *b"shoal st";
/// What is written, and the newest that is read.
const FORMAT: u32 = 1;
/// Bytes of the checksum at the end.
const SUM_BYTES: usize = 4;
/// Fewer bytes of segments are read on one thread.
const THREADS_FROM_BYTES: usize = 1 << 20;
/// Bytes that a segment takes at least, and without statistics and replicas at most.
const SEGMENT_BYTES: (usize, usize) = (25, 64);

#[derive(Serialize)]
struct Head<'a, E> {
    /// Its tables have no segments.
    state: &'a State,
    /// What belongs to it and is not in it.
    extra: &'a E,
    /// Replicas are told by their place in here.
    workers: Vec<&'a WorkerId>,
    /// How many segments each table has, in the order of the tables.
    segments: Vec<u64>,
}

#[derive(Deserialize)]
struct OwnedHead<E> {
    state: State,
    extra: E,
    workers: Vec<WorkerId>,
    segments: Vec<u64>,
}

fn broken(what: impl std::fmt::Display) -> Error {
    Error::Internal(format!("a snapshot of the catalog cannot be read: {what}"))
}

impl State {
    /// This state and what belongs to it, as the bytes of a snapshot.
    ///
    /// # Errors
    /// `Internal` for what has no such form.
    pub fn to_bytes<E: Serialize>(&self, extra: &E) -> Result<Vec<u8>, Error> {
        let tables: Vec<&Arc<Table>> = self.tables.values().collect();
        let mut numbers: HashMap<&WorkerId, u64> = HashMap::new();
        let mut workers = Vec::new();
        let mut bytes_max = 0;
        for segment in tables.iter().flat_map(|table| &table.segments) {
            bytes_max += SEGMENT_BYTES.1 + segment.columns.as_bytes().len() + 4 * segment.replicas.len();
            for replica in &segment.replicas {
                numbers.entry(replica).or_insert_with(|| {
                    workers.push(replica);
                    workers.len() as u64 - 1
                });
            }
        }
        let bare = self.without_segments();
        let segments = tables.iter().map(|table| table.segments.len() as u64).collect();
        let head = serde_json::to_vec(&Head { state: &bare, extra, workers, segments });
        let head = head.map_err(|error| Error::Internal(format!("a snapshot of the catalog: {error}")))?;

        let mut bytes = Vec::with_capacity(head.len() + bytes_max + 64);
        bytes.extend(MAGIC);
        bytes.extend(FORMAT.to_le_bytes());
        bytes.extend((head.len() as u64).to_le_bytes());
        bytes.extend(head);
        let mut lengths = Vec::with_capacity(tables.len());
        for table in &tables {
            let start = bytes.len();
            for segment in &table.segments {
                put_segment(&mut bytes, segment, &numbers);
            }
            lengths.push((bytes.len() - start) as u64);
        }
        bytes.extend(lengths.into_iter().flat_map(u64::to_le_bytes));
        let sum = crc32c::crc32c(&bytes);
        bytes.extend(sum.to_le_bytes());
        Ok(bytes)
    }

    /// The state, and what belongs to it, of which these are the bytes.
    ///
    /// # Errors
    /// `Invalid` for those of a newer version of shoal; `Internal` for those that
    /// cannot be read.
    pub fn from_bytes<E: DeserializeOwned>(bytes: &[u8]) -> Result<(Self, E), Error> {
        let mut reader = Reader { rest: bytes };
        if reader.array() != Some(MAGIC) {
            return Err(broken("it is none"));
        }
        let cut = || broken("it is cut");
        let format = u32::from_le_bytes(reader.array().ok_or_else(cut)?);
        if format > FORMAT {
            return Err(Error::Invalid(format!(
                "a snapshot of the catalog is in format {format}; this version of shoal reads up to format \
                 {FORMAT}: start a newer one"
            )));
        }
        let (whole, sum) = bytes.split_at(bytes.len() - SUM_BYTES);
        if crc32c::crc32c(whole).to_le_bytes() != sum {
            return Err(broken("its checksum is another one"));
        }
        let length = usize::try_from(u64::from_le_bytes(reader.array().ok_or_else(cut)?));
        let head = reader.take(length.map_err(broken)?).ok_or_else(cut)?;
        let OwnedHead { mut state, extra, mut workers, segments } =
            serde_json::from_slice(head).map_err(broken)?;
        for worker in &mut workers {
            share(&state.workers, worker);
        }
        let ids: Vec<TableId> = state.tables.values().map(|table| table.id).collect();
        if ids.len() != segments.len() {
            return Err(broken("it has other tables than it says"));
        }
        let packed = parts(reader.rest, &ids, &segments).ok_or_else(cut)?;
        for (id, segments) in ids.into_iter().zip(read_all(&packed, &workers)) {
            let segments = segments.ok_or_else(cut)?;
            if let Some(table) = state.tables.by_id_mut(id) {
                let table = Arc::make_mut(table);
                table.segments = segments;
                table.placement.iter_mut().flatten().for_each(|worker| share(&state.workers, worker));
            }
        }
        Ok((state, extra))
    }

    /// The same with tables that have no segments.
    fn without_segments(&self) -> Self {
        let mut bare = self.clone();
        for table in self.tables.values() {
            bare.tables.insert(Arc::new(Table {
                id: table.id,
                schema_name: table.schema_name.clone(),
                name: table.name.clone(),
                columns: Arc::clone(&table.columns),
                layout: table.layout.clone(),
                placement: table.placement.clone(),
                segments: Vec::new(),
                sketches: table.sketches.clone(),
            }));
        }
        bare
    }
}

fn put_segment(bytes: &mut Vec<u8>, segment: &Segment, workers: &HashMap<&WorkerId, u64>) {
    bytes.extend(segment.id.0.as_bytes());
    for number in [u64::from(segment.shard), segment.rows, segment.bytes] {
        put_varint(bytes, number);
    }
    bytes.extend(segment.crc32c.to_le_bytes());
    let statistics = segment.columns.as_bytes();
    put_varint(bytes, statistics.len() as u64);
    bytes.extend(statistics);
    put_varint(bytes, segment.replicas.len() as u64);
    for replica in &segment.replicas {
        put_varint(bytes, workers.get(replica).copied().unwrap_or_default());
    }
}

/// The segments of one table, packed.
struct Packed<'a> {
    table: TableId,
    count: u64,
    bytes: &'a [u8],
}

/// Cuts what comes after the head into that of each table; none where it is longer or
/// shorter than it says.
fn parts<'a>(rest: &'a [u8], ids: &[TableId], counts: &[u64]) -> Option<Vec<Packed<'a>>> {
    let lengths_at = rest.len().checked_sub(SUM_BYTES + 8 * ids.len())?;
    let (bytes, lengths) = rest.split_at(lengths_at);
    let (mut bytes, mut lengths) = (Reader { rest: bytes }, Reader { rest: lengths });
    let mut parts = Vec::with_capacity(ids.len());
    for (table, count) in ids.iter().zip(counts) {
        let length = usize::try_from(u64::from_le_bytes(lengths.array()?)).ok()?;
        parts.push(Packed { table: *table, count: *count, bytes: bytes.take(length)? });
    }
    bytes.rest.is_empty().then_some(parts)
}

/// The segments of all tables, on as many threads as there are processors: a
/// coordinator that starts does nothing else.
fn read_all(packed: &[Packed<'_>], workers: &[WorkerId]) -> Vec<Option<Vec<Arc<Segment>>>> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(packed.len());
    if threads < 2 || packed.iter().map(|part| part.bytes.len()).sum::<usize>() < THREADS_FROM_BYTES {
        return packed.iter().map(|part| read_segments(part, workers)).collect();
    }
    let read: Vec<OnceLock<Option<Vec<Arc<Segment>>>>> = packed.iter().map(|_| OnceLock::new()).collect();
    let next = AtomicUsize::new(0);
    let read_on = || {
        while let Some((part, place)) = {
            let index = next.fetch_add(1, Ordering::Relaxed);
            packed.get(index).zip(read.get(index))
        } {
            place.get_or_init(|| read_segments(part, workers));
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            // Where there can be no more threads this one reads what is left.
            if std::thread::Builder::new().spawn_scoped(scope, read_on).is_err() {
                break;
            }
        }
        read_on();
    });
    read.into_iter().map(|place| place.into_inner().flatten()).collect()
}

/// None where the bytes end before, or after.
fn read_segments(packed: &Packed<'_>, workers: &[WorkerId]) -> Option<Vec<Arc<Segment>>> {
    let mut reader = Reader { rest: packed.bytes };
    let (table, count) = (packed.table, usize::try_from(packed.count).ok()?);
    if count > reader.rest.len() / SEGMENT_BYTES.0 {
        return None;
    }
    let mut segments = Vec::with_capacity(count);
    for _ in 0..count {
        let id = SegmentId(Uuid::from_bytes(reader.array()?));
        let shard = u32::try_from(reader.varint()?).ok()?;
        let (rows, bytes) = (reader.varint()?, reader.varint()?);
        let crc32c = u32::from_le_bytes(reader.array()?);
        let length = usize::try_from(reader.varint()?).ok()?;
        let columns = PackedStatistics::from_bytes(reader.take(length)?);
        let replicas = usize::try_from(reader.varint()?).ok()?;
        if replicas > workers.len() {
            return None;
        }
        let mut named = Vec::with_capacity(replicas);
        for _ in 0..replicas {
            named.push(workers.get(usize::try_from(reader.varint()?).ok()?)?.clone());
        }
        segments.push(Arc::new(Segment { id, table, shard, rows, bytes, crc32c, columns, replicas: named }));
    }
    reader.rest.is_empty().then_some(segments)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::state::tests::random;

    /// What both say in JSON, where each segment has its own text.
    fn check_same(left: &State, right: &State, what: &str) {
        let json = |state: &State| serde_json::to_value(state).unwrap();
        assert_eq!(json(left), json(right), "{what}");
    }

    #[test]
    fn what_is_read_is_what_was_written() {
        for seed in 0..100 {
            let mut state = random(seed);
            if seed % 3 == 0 {
                // A worker that never joined.
                let names = state.tables().flat_map(|table| &table.segments).map(|segment| segment.name());
                let copies = vec![("stranger".into(), names.collect())];
                state.apply(crate::catalog::Command::AddReplicas { copies }).unwrap();
            }
            let extra = vec![seed, 7];
            let bytes = state.to_bytes(&extra).unwrap();
            let (read, read_extra): (State, Vec<u64>) = State::from_bytes(&bytes).unwrap();
            check_same(&read, &state, &format!("seed {seed}"));
            assert_eq!(read_extra, extra);
            for (read, table) in read.tables().zip(state.tables()) {
                assert_eq!(read.segments, table.segments, "seed {seed}");
                assert_eq!(state.table_by_id(table.id).map(|table| &table.name), Some(&read.name));
            }
            // The same state has the same bytes.
            assert_eq!(read.to_bytes(&extra).unwrap(), bytes, "seed {seed}");
        }
    }

    #[test]
    fn many_tables_are_read_on_several_threads() {
        let mut state = random(1);
        let table = state.tables().next().unwrap().clone();
        let sample = table.segments.first().unwrap().clone();
        for number in 0..40 {
            let id = TableId(1_000 + number);
            let segments = (0..u128::from(number) * 100).map(|segment| {
                let id_of_segment = SegmentId(Uuid::from_u128(segment));
                Arc::new(Segment { id: id_of_segment, table: id, shard: 0, ..Segment::clone(&sample) })
            });
            let segments = segments.collect();
            let name = format!("many{number}");
            state.tables.insert(Arc::new(Table { id, name, segments, ..Table::clone(&table) }));
        }
        let bytes = state.to_bytes(&()).unwrap();
        assert!(bytes.len() > THREADS_FROM_BYTES, "{} bytes are read on one thread", bytes.len());
        let (read, ()) = State::from_bytes(&bytes).unwrap();
        for (read, table) in read.tables().zip(state.tables()) {
            assert_eq!((read.id, &read.segments), (table.id, &table.segments));
        }
        assert_eq!(read.to_bytes(&()).unwrap(), bytes);
    }

    #[test]
    fn one_bit_or_byte_that_is_wrong_is_noticed() {
        let bytes = random(1).to_bytes(&()).unwrap();
        for at in (12..bytes.len()).step_by(7) {
            let mut wrong = bytes.clone();
            wrong[at] ^= 4;
            let error = State::from_bytes::<()>(&wrong).unwrap_err();
            assert!(matches!(error, Error::Internal(_)), "byte {at}: {error}");
        }
        for length in [0, 3, 8, 11, 12, 15, 16, 20, bytes.len() / 2, bytes.len() - 1] {
            let error = State::from_bytes::<()>(&bytes[..length]).unwrap_err();
            assert!(matches!(error, Error::Internal(_)), "{length} bytes: {error}");
        }
    }

    #[test]
    fn a_newer_format_is_refused() {
        let mut bytes = random(1).to_bytes(&()).unwrap();
        bytes[8] += 1;
        let error = State::from_bytes::<()>(&bytes).unwrap_err();
        assert!(matches!(error, Error::Invalid(_)) && error.to_string().contains("format 2"), "{error}");
    }
}
