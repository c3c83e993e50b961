//! The sending end of `Files.Read`.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{self, Stream, StreamExt};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::StreamBody;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::metadata::{GRPC_CONTENT_TYPE, MetadataMap};
use tonic::server::NamedService;
use tonic::{Status, Streaming};
use tonic_prost::ProstDecoder;

use super::client::READ_PATH;
use super::framing::parts_of;
use crate::cluster::files_server::{Files, FilesServer, SERVICE_NAME};
use crate::cluster::{ReadChunk, ReadRequest};

/// Serves `Files`, in the place of tonic's `FilesServer`.
#[derive(Debug)]
pub struct ChunkServer<T> {
    files: Arc<T>,
    /// For all calls but `Read`.
    others: FilesServer<T>,
}

impl<T> ChunkServer<T> {
    /// Serves these files.
    pub fn new(files: T) -> Self {
        let files = Arc::new(files);
        Self { others: FilesServer::from_arc(Arc::clone(&files)), files }
    }
}

impl<T> Clone for ChunkServer<T> {
    fn clone(&self) -> Self {
        Self { files: Arc::clone(&self.files), others: self.others.clone() }
    }
}

impl<T> NamedService for ChunkServer<T> {
    const NAME: &'static str = SERVICE_NAME;
}

impl<T: Files> Service<Request<Body>> for ChunkServer<T> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Request<Body>) -> Self::Future {
        if call.uri().path() != READ_PATH {
            return self.others.call(call);
        }
        let files = Arc::clone(&self.files);
        Box::pin(async move { Ok(read::<T>(&files, call).await.unwrap_or_else(Status::into_http)) })
    }
}

async fn read<T: Files>(files: &T, call: Request<Body>) -> Result<Response<Body>, Status> {
    let (parts, body) = call.into_parts();
    let mut messages = Streaming::new_request(ProstDecoder::<ReadRequest>::default(), body, None, None);
    let request = messages.message().await?.ok_or_else(|| Status::internal("a call without its request"))?;
    // Until its sender has said all: an answer to half a call would reset it.
    let _nothing_more = messages.trailers().await?;
    let metadata = MetadataMap::from_headers(parts.headers);
    let request = tonic::Request::from_parts(metadata, parts.extensions, request);
    let chunks = files.read(request).await?.into_inner();
    let mut reply = Response::new(Body::new(StreamBody::new(frames(chunks))));
    reply.headers_mut().insert(CONTENT_TYPE, GRPC_CONTENT_TYPE);
    Ok(reply)
}

/// The messages as frames of HTTP/2, and the status that ends them.
fn frames(
    chunks: impl Stream<Item = Result<ReadChunk, Status>> + Send + 'static,
) -> impl Stream<Item = Result<Frame<Bytes>, Status>> + Send + 'static {
    // With the data of a message whose head has been sent.
    stream::unfold(Some((chunks.boxed(), Bytes::new())), |state| async move {
        let (mut chunks, data) = state?;
        if !data.is_empty() {
            return Some((Ok(Frame::data(data)), Some((chunks, Bytes::new()))));
        }
        Some(match chunks.next().await {
            Some(Ok(chunk)) => {
                let (head, data) = parts_of(chunk);
                (Ok(Frame::data(head)), Some((chunks, data)))
            }
            Some(Err(status)) => (last(&status), None),
            None => (last(&Status::ok("")), None),
        })
    })
}

fn last(status: &Status) -> Result<Frame<Bytes>, Status> {
    let mut trailers = HeaderMap::new();
    status.add_header(&mut trailers)?;
    Ok(Frame::trailers(trailers))
}
