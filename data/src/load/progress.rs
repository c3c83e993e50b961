//! How far a write is, for whoever watches it.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of one write; read them at any time.
#[derive(Debug, Default)]
pub struct WriteProgress {
    rows_read: AtomicU64,
    rows_staged: AtomicU64,
    bytes_staged: AtomicU64,
    segments_staged: AtomicU64,
}

impl WriteProgress {
    /// Rows taken from the input.
    pub fn rows_read(&self) -> u64 {
        self.rows_read.load(Ordering::Relaxed)
    }

    /// Rows that are durable on their workers, not yet committed.
    pub fn rows_staged(&self) -> u64 {
        self.rows_staged.load(Ordering::Relaxed)
    }

    /// Bytes of one copy of what is durable.
    pub fn bytes_staged(&self) -> u64 {
        self.bytes_staged.load(Ordering::Relaxed)
    }

    /// Segments that are durable.
    pub fn segments_staged(&self) -> u64 {
        self.segments_staged.load(Ordering::Relaxed)
    }

    pub(super) fn read(&self, rows: u64) {
        self.rows_read.fetch_add(rows, Ordering::Relaxed);
    }

    pub(super) fn staged(&self, rows: u64, bytes: u64) {
        self.rows_staged.fetch_add(rows, Ordering::Relaxed);
        self.bytes_staged.fetch_add(bytes, Ordering::Relaxed);
        self.segments_staged.fetch_add(1, Ordering::Relaxed);
    }
}
