//! How rows travel between nodes: a stream of Arrow IPC messages that ends
//! with a completion mark and its row count, or with a typed failure. A
//! stream that just stops is an error, always.
//!
//! What runs, and where, is not decided here.

mod address;
mod arrivals;
mod busy;
mod client;
mod compression;
mod frames;
mod metrics;
mod options;
mod reads;

pub use address::{address_of, worker_of, worker_url, zone_of};
pub use arrivals::{Arrivals, DECODE_TIME, ENCODE_TIME, FirstTask, WIRE_BYTES, WIRE_ROWS};
pub use client::{Ended, ExchangeResolver, Progress, run_plan};
pub use compression::ExchangeCompression;
pub use frames::{Sending, compact, decode_frames, drive_stream, panic_failure};
pub use metrics::{metrics_from_wire, metrics_to_wire, task_metrics_from_wire, task_metrics_to_wire};
pub use options::QueryOptions;
pub use reads::{ReadLog, Reads};
