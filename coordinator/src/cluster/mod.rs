//! Which workers there are, what they hold, where shards live, and what must
//! be copied or removed.
//!
//! `membership`, `outliers`, `given_up`, `disk`, `placement`, `moves`, `compaction`, `repair`, `repairing`, `silence`, `older` and `pins` decide:
//! they are given `now` and the state of things, and say what to do. `adapter` and `service` are
//! the locks, timers and RPC round them.

pub mod adapter;
pub mod arriving;
pub mod compaction;
pub mod consensus;
pub mod disk;
pub mod events;
pub mod given_up;
pub mod going;
pub mod import_service;
pub mod membership;
pub mod moves;
pub mod older;
pub mod outliers;
pub mod pins;
pub mod placement;
pub mod repair;
pub mod repairing;
pub mod service;
pub mod silence;

pub use adapter::{Cluster, Progress, Rebalanced};
pub use consensus::ConsensusService;
pub use events::{Event, EventKind};
pub use given_up::GivenUp;
pub use import_service::ImportService;
pub use membership::{Holds, LiveWorker, LiveWorkers};
pub use outliers::Outliers;
pub use pins::{PinGuard, Pinned, Pins};
pub use placement::{Placement, TASK_PARTITIONS};
pub use service::ClusterService;
