//! Shoal's benchmark suite, and the parts that its tests share with it: a
//! cluster of real processes, a client, the oracle and the comparison of
//! answers.
//!
//! Nothing here is linked into the `shoal` binary.

pub mod answer;
pub mod chaos;
pub mod client;
pub mod cluster;
pub mod crowd;
pub mod disk;
pub mod failover;
mod flight_peer;
pub mod grow;
pub mod growth;
pub mod ingest;
pub mod leader;
pub mod load;
pub mod node;
pub mod oracle;
pub mod peers;
pub mod point;
pub mod process;
pub mod repair;
pub mod report;
pub mod rot;
pub mod scale;
pub mod scan;
mod slow;
pub mod slt;
pub mod small_disk;
pub mod tpch;
pub mod tpch_data;
pub mod tpch_memory;

pub use answer::{Answer, Difference};
pub use client::{Client, ClientError, Outcome};
pub use cluster::{Cluster, ClusterOptions, Direction, Program};
pub use oracle::Oracle;
