//! Links between the nodes of a cluster on this machine that can be cut, as a
//! network can: for the demo and for tests.
//!
//! A small proxy on TCP: network namespaces could do the same, and only for
//! root. A new connection to somebody who is cut off is accepted all the same,
//! and then nothing comes: as bad as a cut can be. Nothing here knows what the nodes say to each other,
//! and no cluster on several machines goes through it.

mod cut;
mod network;
mod relay;
#[cfg(test)]
mod tests;

pub use cut::Direction;
pub use network::{Link, Links};
