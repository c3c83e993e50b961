//! Reads every segment again and again, slowly, so that rot is found also
//! where nobody reads.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use shoal_data::SegmentName;
use shoal_data::shard_store::LocalSegments;
use shoal_proto::cluster::ScrubProgress;

use crate::Error;
use crate::pace::Pace;
use crate::segment_dir::SegmentDir;
use crate::segments::blocking;

/// Bytes that are read in one go.
const PIECE_BYTES: u64 = 1024 * 1024;
/// From the end of one round to the beginning of the next: what is small is
/// not read without a break.
const PAUSE: Duration = Duration::from_secs(5);

/// The scrub of one worker. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct Scrub {
    dir: Arc<SegmentDir>,
    local: Arc<LocalSegments>,
    bytes_per_second: u64,
    round: Arc<Mutex<Round>>,
}

/// How far the scrub is.
#[derive(Debug, Default)]
struct Round {
    number: u64,
    segments_done: u64,
    segments_total: u64,
    bytes_done: u64,
    bytes_total: u64,
    /// When a round was last through.
    ended: Option<Instant>,
}

impl Scrub {
    /// A scrub of `dir` that reads so many bytes in a second, on average; none
    /// at all where that is 0.
    pub fn new(dir: Arc<SegmentDir>, local: Arc<LocalSegments>, bytes_per_second: u64) -> Self {
        Self { dir, local, bytes_per_second, round: Arc::default() }
    }

    /// Goes round for ever; drop it to end it. Damage is told where the
    /// segments are read.
    pub async fn run(self) {
        if self.bytes_per_second == 0 {
            return;
        }
        let mut pace = Pace::default();
        loop {
            let held = self.dir.held();
            {
                let mut round = self.round.lock();
                let (number, ended) = (round.number + 1, round.ended);
                let bytes_total = held.iter().map(|(_, bytes)| bytes).sum();
                let segments_total = held.len() as u64;
                *round = Round { number, segments_total, bytes_total, ended, ..Round::default() };
            }
            for (name, bytes) in held {
                self.look_at(name, bytes, &mut pace).await;
            }
            self.round.lock().ended = Some(Instant::now());
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// How far it is, for the coordinator.
    pub fn progress(&self) -> ScrubProgress {
        let round = self.round.lock();
        ScrubProgress {
            round: round.number,
            segments_done: round.segments_done,
            segments_total: round.segments_total,
            bytes_done: round.bytes_done,
            bytes_total: round.bytes_total,
            bytes_per_second: self.bytes_per_second,
            damaged: self.dir.damaged_count(),
            since_round_ms: round
                .ended
                .map(|ended| u64::try_from(ended.elapsed().as_millis()).unwrap_or(u64::MAX)),
        }
    }

    /// Reads one segment and its checksums, piece by piece, until one of them
    /// is not well.
    async fn look_at(&self, name: SegmentName, bytes: u64, pace: &mut Pace) {
        let local = Arc::clone(&self.local);
        let mut is_well = is_true(move || local.has_sums(&name)).await;
        for start in (0..bytes).step_by(PIECE_BYTES as usize) {
            let piece = start..bytes.min(start + PIECE_BYTES);
            let length = piece.end - piece.start;
            if is_well {
                is_well = self.is_well(name, piece).await;
                let wait = pace.pay(Instant::now(), length, self.bytes_per_second);
                tokio::time::sleep(wait).await;
            }
            self.round.lock().bytes_done += length;
        }
        self.round.lock().segments_done += 1;
    }

    async fn is_well(&self, name: SegmentName, piece: Range<u64>) -> bool {
        let local = Arc::clone(&self.local);
        is_true(move || local.read(&name, std::slice::from_ref(&piece)).is_some()).await
    }
}

async fn is_true(look: impl FnOnce() -> bool + Send + 'static) -> bool {
    blocking(move || Ok::<_, Error>(look())).await.unwrap_or(false)
}
