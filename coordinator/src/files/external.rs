//! External tables: files that are read in place, wherever a plan's tasks run.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::parsers::CompressionTypeVariant;
use datafusion::common::{Result, Statistics};
use datafusion::config::{CsvOptions as EngineCsvOptions, JsonOptions};
use datafusion::datasource::file_format::FileFormat as EngineFormat;
use datafusion::datasource::file_format::csv::CsvFormat;
use datafusion::datasource::file_format::json::JsonFormat;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder};
use datafusion::datasource::table_schema::TableSchema;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use futures::future::try_join_all;
use futures::stream::TryStreamExt;
use object_store::ObjectMeta;
use shoal_data::ImportRoots;
use shoal_data::import_store::{IMPORT_STORE_URL, modified_unix_ms, object_path};

use super::location::listing_url;
use super::{Compression, FileFormat, FileKind, Location, expand, resolve};
use crate::Error;
use crate::catalog::ExternalTable;

/// Footers are read for their statistics up to this number of files.
const STATISTICS_FILES_MAX: usize = 256;
/// Footers read at once.
const STATISTICS_CONCURRENCY: usize = 8;

/// The provider of an external table. Its files are looked up anew by each
/// scan, below the [`ImportRoots`] that the session's configuration has as an
/// extension.
///
/// # Errors
/// `Invalid` for options that cannot be.
pub fn external_table(table: &ExternalTable) -> Result<Arc<dyn TableProvider>, Error> {
    let mut options = table.options.clone();
    options.insert("format".to_owned(), table.format.clone());
    let format = FileFormat::from_options(&table.location, &options)?;
    Ok(Arc::new(ExternalFiles { location: table.location.clone(), format, columns: table.columns.clone() }))
}

/// Files as a table.
#[derive(Debug)]
pub struct ExternalFiles {
    location: String,
    format: FileFormat,
    columns: SchemaRef,
}

impl ExternalFiles {
    /// The files as the workers will read them, and from which store.
    async fn find(&self, state: &dyn Session) -> Result<(ObjectStoreUrl, Vec<ObjectMeta>), Error> {
        let roots = state.config().get_extension::<ImportRoots>().unwrap_or_default();
        match resolve(&roots, &self.location)? {
            Location::Local(path) => {
                let found = tokio::task::spawn_blocking(move || {
                    let files = expand(&roots, &path)?;
                    files.iter().map(|file| as_object(&roots, file)).collect::<Result<Vec<_>, Error>>()
                });
                let found =
                    found.await.map_err(|error| Error::Internal(format!("finding files: {error}")))??;
                Ok((ObjectStoreUrl::parse(IMPORT_STORE_URL)?, found))
            }
            Location::Remote(url) => {
                let table = listing_url(&url)?;
                let store = state.runtime_env().object_store(&table)?;
                let found = table.list_prefixed_files(state, store.as_ref(), None, "").await?;
                Ok((table.object_store(), found.try_collect().await?))
            }
        }
    }

    /// DataFusion's reader for files of which this is one.
    fn engine_format(&self, file: &str) -> Arc<dyn EngineFormat> {
        let compression = match self.format.stream_compression(file) {
            Compression::Gzip => CompressionTypeVariant::GZIP,
            Compression::Zstd => CompressionTypeVariant::ZSTD,
            Compression::None | Compression::Snappy | Compression::Lz4 => {
                CompressionTypeVariant::UNCOMPRESSED
            }
        };
        match self.format.kind {
            FileKind::Parquet => Arc::new(ParquetFormat::default()),
            FileKind::Csv => {
                let csv = &self.format.csv;
                let options = EngineCsvOptions {
                    has_header: Some(csv.header.unwrap_or(true)),
                    delimiter: csv.delimiter,
                    quote: csv.quote,
                    escape: csv.escape,
                    newlines_in_values: Some(true),
                    null_regex: csv.null.as_ref().map(|null| format!("^(?:{})$", regex::escape(null))),
                    compression,
                    ..EngineCsvOptions::default()
                };
                Arc::new(CsvFormat::default().with_options(options))
            }
            FileKind::Json => {
                let options = JsonOptions { compression, ..JsonOptions::default() };
                Arc::new(JsonFormat::default().with_options(options))
            }
        }
    }
}

impl ExternalFiles {
    /// What the files' footers say of all of them together.
    async fn statistics(
        &self,
        state: &dyn Session,
        url: &ObjectStoreUrl,
        format: &dyn EngineFormat,
        objects: &[ObjectMeta],
    ) -> Result<Statistics> {
        let store = state.runtime_env().object_store(url)?;
        let mut each = Vec::with_capacity(objects.len());
        for some in objects.chunks(STATISTICS_CONCURRENCY) {
            let some =
                some.iter().map(|object| format.infer_stats(state, &store, self.columns.clone(), object));
            let some = try_join_all(some).await;
            each.extend(
                some.map_err(|error| error.context(format!("external table at `{}`", self.location)))?,
            );
        }
        Statistics::try_merge_iter(&each, &self.columns)
    }
}

/// A local file as the import store knows it.
fn as_object(roots: &ImportRoots, file: &std::path::Path) -> Result<ObjectMeta, Error> {
    let (_file, metadata) = roots.open(file)?;
    let modified = std::time::UNIX_EPOCH + std::time::Duration::from_millis(modified_unix_ms(&metadata));
    Ok(ObjectMeta {
        location: object_path(file)?,
        last_modified: modified.into(),
        size: metadata.len(),
        e_tag: None,
        version: None,
    })
}

#[async_trait]
impl TableProvider for ExternalFiles {
    fn schema(&self) -> SchemaRef {
        self.columns.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let (url, objects) = self.find(state).await?;
        let objects: Vec<_> = objects.into_iter().filter(|object| object.size > 0).collect();
        let Some(first) = objects.first() else {
            let columns = datafusion::physical_plan::project_schema(&self.columns, projection)?;
            return Ok(Arc::new(EmptyExec::new(columns)));
        };
        let format = self.engine_format(first.location.as_ref());
        let has_statistics = self.format.kind == FileKind::Parquet && objects.len() <= STATISTICS_FILES_MAX;
        let statistics = if has_statistics {
            self.statistics(state, &url, format.as_ref(), &objects).await?
        } else {
            Statistics::new_unknown(&self.columns)
        };
        let files: FileGroup = objects.into_iter().map(PartitionedFile::from).collect();
        let groups = files.split_files(state.config().target_partitions().max(1));
        let source = format.file_source(TableSchema::from(self.columns.clone()));
        let scan = FileScanConfigBuilder::new(url, source)
            .with_file_groups(groups)
            .with_statistics(statistics)
            .with_projection_indices(projection.cloned())?
            .with_limit(limit)
            .build();
        format.create_physical_plan(state, scan).await
    }
}
