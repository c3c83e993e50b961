//! Tables, segments and sketches as coordinators and workers send them to one another
//! with a load.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use shoal_proto::{ErrorCode, Failure};

/// As JSON, as in the catalog.
///
/// # Errors
/// None in practice; those of the serializer.
pub fn to_wire<T: Serialize>(what: &T) -> Result<Bytes, Failure> {
    let bytes = serde_json::to_vec(what);
    bytes.map(Bytes::from).map_err(|error| Failure::new(ErrorCode::Internal, error.to_string()))
}

/// What [`to_wire`] made.
///
/// # Errors
/// `Unsupported` for what another version may have sent.
pub fn from_wire<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(bytes).map_err(|error| {
        Failure::new(ErrorCode::Unsupported, format!("what was sent with a load is not understood: {error}"))
    })
}
