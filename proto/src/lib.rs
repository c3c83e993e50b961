//! Shoal's contract on the wire: the protobuf services, the ids and error
//! codes that travel with them, and the one place that builds a client
//! channel or a server.
//!
//! Nothing here decides anything about tables, placement or queries.

pub mod channel;
pub mod chunks;
pub mod datafusion_defaults;
pub mod error_code;
pub mod exchange;
pub mod fault;
pub mod id;
pub mod query_pool;
pub mod runtime_filter;
pub mod server;
pub mod zone;

pub use channel::Channels;
pub use error_code::{ErrorCode, Failure};
pub use id::{QueryId, SegmentId, TableId, WorkerId, WriteId};
pub use query_pool::QueryPool;
pub use zone::Zone;

/// Generated from `cluster.proto`: membership, locations and bytes.
#[expect(missing_docs, clippy::allow_attributes, reason = "generated code")]
pub mod cluster {
    tonic::include_proto!("shoal.cluster.v1");
}

/// Generated from `consensus.proto`: what coordinators say to one another.
#[expect(missing_docs, clippy::allow_attributes, reason = "generated code")]
pub mod consensus {
    tonic::include_proto!("shoal.consensus.v1");
}

/// Generated from `query.proto`: plans and rows.
#[expect(missing_docs, clippy::allow_attributes, reason = "generated code")]
pub mod query {
    tonic::include_proto!("shoal.query.v1");
}
