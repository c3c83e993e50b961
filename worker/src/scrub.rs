//! Reads every segment again and again, slowly, so that rot is found also
//! where nobody reads.

use std::sync::Arc;
use std::time::{Duration, Instant};

use shoal_data::SegmentName;
use shoal_data::shard_store::LocalSegments;

use crate::segment_dir::SegmentDir;
use crate::segments::blocking;

/// Bytes that are read in one go.
const PIECE_BYTES: u64 = 1024 * 1024;
/// Bytes that are read in a second, on average.
const BYTES_PER_SECOND: u64 = 8 * 1024 * 1024;
/// From the end of one round to the beginning of the next.
const PAUSE: Duration = Duration::from_secs(30);

/// Goes round for ever; drop it to end it. Damage is told where the segments
/// are read.
pub(crate) async fn scrub(dir: Arc<SegmentDir>, local: Arc<LocalSegments>) {
    loop {
        let began = Instant::now();
        let (mut segments, mut bytes) = (0_u64, 0_u64);
        for (name, length) in dir.held() {
            let mut at = 0;
            while at < length {
                let end = length.min(at + PIECE_BYTES);
                if !is_well(&local, name, at..end).await {
                    break;
                }
                bytes += end - at;
                at = end;
                tokio::time::sleep(Duration::from_secs_f64(PIECE_BYTES as f64 / BYTES_PER_SECOND as f64))
                    .await;
            }
            segments += 1;
        }
        tracing::debug!(segments, bytes, elapsed = ?began.elapsed(), "scrubbed");
        tokio::time::sleep(PAUSE).await;
    }
}

async fn is_well(local: &Arc<LocalSegments>, name: SegmentName, range: std::ops::Range<u64>) -> bool {
    let local = Arc::clone(local);
    let read = blocking(move || Ok(local.read(&name, std::slice::from_ref(&range)).is_some())).await;
    read.unwrap_or(false)
}
