//! Files below the import roots, for workers: external tables are read in
//! place, through the coordinator.

use std::path::Path;

use async_trait::async_trait;
use futures::stream::BoxStream;
use shoal_data::{ImportRoots, file_stream, import_store};
use shoal_proto::chunks::ChunkServer;
use shoal_proto::cluster::files_server::Files;
use shoal_proto::cluster::{ReadChunk, ReadRequest, StatReply, StatRequest};
use shoal_proto::{ErrorCode, Failure};
use tonic::{Request, Response, Status};

/// Serves import files; names are absolute paths, and nothing outside the
/// roots is opened.
#[derive(Clone, Debug)]
pub struct ImportService {
    roots: ImportRoots,
}

impl ImportService {
    /// Serves what is below these roots.
    pub fn new(roots: ImportRoots) -> Self {
        Self { roots }
    }

    /// The service, ready to be added to a server.
    pub fn into_server(self) -> ChunkServer<Self> {
        ChunkServer::new(self)
    }

    async fn open(&self, name: String) -> Result<(std::fs::File, std::fs::Metadata), Status> {
        let roots = self.roots.clone();
        let opened = tokio::task::spawn_blocking(move || roots.open(Path::new(&name))).await;
        let opened = opened.map_err(|error| Status::internal(format!("cannot open a file: {error}")))?;
        opened.map_err(|failure| failure.to_status())
    }
}

#[async_trait]
impl Files for ImportService {
    type ReadStream = BoxStream<'static, Result<ReadChunk, Status>>;

    async fn read(&self, request: Request<ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let ReadRequest { name, offset, length } = request.into_inner();
        let (file, metadata) = self.open(name.clone()).await?;
        let range = file_stream::checked_range(offset, length, metadata.len()).ok_or_else(|| {
            let message = format!(
                "`{name}` has {} bytes, and {length} from {offset} on were asked for: it was changed while it was read",
                metadata.len()
            );
            Failure::new(ErrorCode::Invalid, message).to_status()
        })?;
        Ok(Response::new(file_stream::send(file, name, range)))
    }

    async fn stat(&self, request: Request<StatRequest>) -> Result<Response<StatReply>, Status> {
        let (_, metadata) = self.open(request.into_inner().name).await?;
        let modified_unix_ms = import_store::modified_unix_ms(&metadata);
        Ok(Response::new(StatReply { bytes: metadata.len(), modified_unix_ms }))
    }
}
