//! How the bytes of files travel between nodes: as messages of `Files.Read`, which
//! both ends put together and take apart themselves. The bytes of a file go to the
//! connection as they are, and come from it as they are. tonic copies each into a
//! buffer of messages that go out, and into another one of messages that come in.
//!
//! It is the same call and the same messages: either end understands one of tonic's.

mod client;
mod framing;
mod server;

pub use client::{Chunks, read};
pub use server::ChunkServer;

#[cfg(test)]
mod tests;
