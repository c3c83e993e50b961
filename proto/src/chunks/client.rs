//! The reading end of `Files.Read`.

use std::future;

use bytes::Bytes;
use futures::stream;
use http::header::{CONTENT_TYPE, TE};
use http::{HeaderValue, Method, Request, StatusCode, Uri, Version};
use http_body_util::BodyExt;
use tonic::body::Body;
use tonic::codec::EncodeBody;
use tonic::codegen::Service;
use tonic::metadata::GRPC_CONTENT_TYPE;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_prost::ProstEncoder;

use super::framing::Unframing;
use crate::cluster::{ReadChunk, ReadRequest};

/// Where the call is on a server.
pub(super) const READ_PATH: &str = "/shoal.cluster.v1.Files/Read";

/// What comes in answer to one call. To drop it ends the call.
#[derive(Debug)]
pub struct Chunks {
    body: Body,
    unframing: Unframing,
    /// What came and is not taken apart yet.
    bytes: Bytes,
}

/// Asks for bytes of a file.
///
/// # Errors
/// What the other side says instead of an answer, or `Unavailable` and `Unknown` where
/// it cannot be reached.
pub async fn read(mut channel: Channel, request: ReadRequest) -> Result<Chunks, Status> {
    let messages = stream::iter([Ok::<_, Status>(request)]);
    let body = EncodeBody::new_client(ProstEncoder::<ReadRequest>::default(), messages, None, None);
    let mut call = Request::new(Body::new(body));
    *call.method_mut() = Method::POST;
    *call.version_mut() = Version::HTTP_2;
    *call.uri_mut() = Uri::from_static(READ_PATH);
    call.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
    call.headers_mut().insert(CONTENT_TYPE, GRPC_CONTENT_TYPE);

    future::poll_fn(|cx| channel.poll_ready(cx)).await.map_err(lost)?;
    let reply = channel.call(call).await.map_err(lost)?;
    match Status::from_header_map(reply.headers()) {
        Some(status) if status.code() != Code::Ok => Err(status),
        None if reply.status() != StatusCode::OK => {
            Err(Status::unknown(format!("the answer to `Files.Read` is HTTP status {}", reply.status())))
        }
        _ => Ok(Chunks { body: reply.into_body(), unframing: Unframing::default(), bytes: Bytes::new() }),
    }
}

impl Chunks {
    /// The next message. One that has data may come in pieces, each as large as it came
    /// over the connection. None after the last one.
    ///
    /// # Errors
    /// What the other side says, `DataLoss` where its messages cannot be read, and `Unknown`
    /// and others where the connection is lost.
    pub async fn message(&mut self) -> Result<Option<ReadChunk>, Status> {
        loop {
            if let Some(chunk) = self.unframing.next(&mut self.bytes)? {
                return Ok(Some(chunk));
            }
            let Some(frame) = self.body.frame().await else { return Err(unsaid()) };
            match frame?.into_data() {
                Ok(bytes) => self.bytes = bytes,
                Err(frame) => {
                    return match frame.trailers_ref().and_then(Status::from_header_map) {
                        Some(status) if status.code() == Code::Ok => Ok(None),
                        Some(status) => Err(status),
                        None => Err(unsaid()),
                    };
                }
            }
        }
    }
}

/// Whoever goes away in the middle of an answer may do so without a word.
fn unsaid() -> Status {
    Status::unknown("the answer to `Files.Read` stops, and its sender does not say why")
}

fn lost(error: tonic::transport::Error) -> Status {
    Status::from_error(Box::new(error))
}
