//! A table of shards as DataFusion sees it: files named by segment, with the
//! catalog's statistics, so that planning needs no round trip to a worker.

use std::any::Any;
use std::sync::Arc;

use arrow::compute::SortOptions;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::stats::Precision;
use datafusion::common::{Result, Statistics};
use datafusion::config::TableParquetOptions;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::CachedParquetFileReaderFactory;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{LexOrdering, Partitioning, PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::SessionConfig;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore};
use shoal_data::shard_store::SHARD_STORE_URL;
use shoal_data::{CountedReaders, Segment, ShardStore, Table};
use shoal_proto::exchange::ReadLog;

use crate::catalog::TableFacts;
use crate::sql::ShoalConfig;

use super::pruning::{
    merged_statistics, segment_statistics, segments_for, segments_of, shards_for, table_statistics, widened,
    with_distinct,
};
use super::row_by_row::RowByRow;

/// Files that are planned each with its own statistics, at most: those of more take
/// more memory and time, also on their way to workers, than they can save. What all
/// of them have together is known whatever their number.
const FILES_KNOWN_MAX: usize = 10_000;

/// A table in one snapshot.
#[derive(Debug)]
pub struct ShardTable {
    facts: Arc<TableFacts>,
    schema: SchemaRef,
}

impl ShardTable {
    /// The table as this snapshot has it.
    pub fn new(facts: Arc<TableFacts>) -> Self {
        let schema = view_columns(&facts.table().columns);
        Self { facts, schema }
    }

    /// The same as the target of a write: every column takes nulls, because the
    /// write itself checks and names them.
    pub fn to_write(facts: Arc<TableFacts>) -> Self {
        let fields = view_columns(&facts.table().columns)
            .fields()
            .iter()
            .map(|field| field.as_ref().clone().with_nullable(true))
            .collect::<Vec<_>>();
        Self { facts, schema: Arc::new(Schema::new(fields)) }
    }

    /// The catalog's entry.
    pub fn table(&self) -> &Arc<Table> {
        self.facts.table()
    }

    /// What follows from the table alone.
    pub(crate) fn facts(&self) -> &Arc<TableFacts> {
        &self.facts
    }

    /// Whether a column holds no NULL in any segment; not where that is not known.
    pub(super) fn has_no_nulls(&self, column: &str) -> bool {
        let Ok(index) = self.schema.index_of(column) else { return false };
        if self.table().segments.is_empty() {
            return true;
        }
        let Ok(known) = table_statistics(&self.facts, &self.schema, &[index]) else { return false };
        known.column_statistics.first().is_some_and(|column| column.null_count == Precision::Exact(0))
    }

    /// What is known of all its rows and of these columns; nothing of others.
    pub(crate) fn known(&self, columns: &[usize]) -> Option<Statistics> {
        if self.table().segments.is_empty() {
            return Some(empty_statistics(&self.schema));
        }
        let known = table_statistics(&self.facts, &self.schema, columns).ok()?;
        Some(widened(known, &self.schema, columns))
    }

    /// The segments that a scan with these filters must read.
    pub(super) fn segments(&self, filters: &[Expr], session: &dyn Session) -> Result<Vec<Arc<Segment>>> {
        let table = self.table();
        let Some(shards) = shards_for(table, filters) else {
            return segments_of(&self.facts, &self.schema, filters, session);
        };
        let mut places: Vec<u32> =
            shards.iter().flat_map(|shard| self.facts.places_of_shard(*shard)).copied().collect();
        places.sort_unstable();
        let segments = places.iter().filter_map(|place| table.segments.get(*place as usize)).cloned();
        segments_for(segments.collect(), &self.schema, filters, session)
    }

    /// Whether segments may have Bloom filters of a column that these filters are about.
    fn may_have_bloom_filters(&self, filters: &[Expr]) -> bool {
        let columns = &self.table().layout.bloom_filters;
        let is_about =
            |filter: &Expr| filter.column_refs().iter().any(|column| columns.contains(&column.name));
        !columns.is_empty() && filters.iter().any(is_about)
    }

    /// The hash layout that a scan in `partitions` partitions has, where it has
    /// one: partition p holds the shards s for which s % partitions is p.
    fn layout(&self, session: &dyn Session, partitions: usize) -> Option<Partitioning> {
        let layout = &self.table().layout;
        let is_even = (layout.shards as usize).is_multiple_of(partitions);
        let is_usable = ShoalConfig::of(session.config_options()).colocate && layout.hash.is_of_this_engine();
        if !is_even || !is_usable || layout.shard_key.is_empty() {
            return None;
        }
        let key = layout.shard_key.iter().map(|name| {
            let column = Column::new_with_schema(name, &self.schema).ok()?;
            // Of another type it has other hashes, and no exchange would meet its shards.
            let stored = self.table().columns.field_with_name(name).ok()?;
            let hashed = layout.hash.hashed_type(stored.data_type());
            (hashed == *self.schema.field(column.index()).data_type())
                .then(|| Arc::new(column) as Arc<dyn PhysicalExpr>)
        });
        Some(Partitioning::Hash(key.collect::<Option<_>>()?, partitions))
    }

    /// The order of the rows in each segment, where it has one.
    pub(super) fn ordering(&self) -> Option<LexOrdering> {
        let keys = self.table().layout.sort_key.iter().map(|name| {
            let column = Column::new_with_schema(name, &self.schema).ok()?;
            // As the segment writer sorts.
            let options = SortOptions { descending: false, nulls_first: false };
            Some(PhysicalSortExpr::new(Arc::new(column), options))
        });
        LexOrdering::new(keys.collect::<Option<Vec<_>>>()?)
    }
}

/// Text and binary columns as views, which DataFusion computes on fastest; the
/// front doors turn them back.
pub(crate) fn view_columns(schema: &Schema) -> SchemaRef {
    let fields = schema.fields().iter().map(|field| {
        let data_type = match field.data_type() {
            DataType::Utf8 | DataType::LargeUtf8 => DataType::Utf8View,
            DataType::Binary | DataType::LargeBinary => DataType::BinaryView,
            other => other.clone(),
        };
        Field::new(field.name(), data_type, field.is_nullable()).with_metadata(field.metadata().clone())
    });
    Arc::new(Schema::new_with_metadata(fields.collect::<Vec<_>>(), schema.metadata().clone()))
}

#[async_trait]
impl TableProvider for ShardTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        session: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let segments = self.segments(filters, session)?;
        // Of the others nothing is asked: filters and sorts are over what is read.
        let columns: Vec<usize> = match projection {
            Some(projection) => projection.clone(),
            None => (0..self.schema.fields().len()).collect(),
        };
        let is_row_by_row = session.config().get_extension::<RowByRow>().is_some();
        let are_known = segments.len() <= FILES_KNOWN_MAX && !(is_row_by_row && segments.len() == 1);
        // Of a group of files it holds only where it is known of each what is in it.
        let ordering = if are_known { self.ordering() } else { None };
        let partitions = session.config().target_partitions().max(1);
        let declared = self.layout(session, partitions);
        let per_group = segments.len() / partitions;
        let mut groups: Vec<_> = (0..partitions).map(|_| Vec::with_capacity(per_group)).collect();
        let mut sizes = vec![0_u64; partitions];
        for segment in &segments {
            let file = segment_file(segment);
            let file = match are_known {
                true => {
                    let known = segment_statistics(segment, &self.schema, &columns);
                    file.with_statistics(Arc::new(widened(known, &self.schema, &columns)))
                }
                false => file,
            };
            let file = match &ordering {
                Some(ordering) => file.with_ordering(Some(ordering.clone())),
                None => file,
            };
            let group = match &declared {
                Some(_) => segment.shard as usize % partitions,
                None => (0..partitions).min_by_key(|&index| sizes[index]).unwrap_or_default(),
            };
            sizes[group] += segment.bytes;
            groups[group].push(file);
        }
        let statistics = match segments.as_slice() {
            [] => empty_statistics(&self.schema),
            [_] if !are_known => Statistics::new_unknown(&self.schema),
            segments => {
                let merged = match segments.len() == self.table().segments.len() {
                    true => table_statistics(&self.facts, &self.schema, &columns)?,
                    false => {
                        let merged = merged_statistics(segments, &self.schema, &columns)?;
                        with_distinct(merged, self.table(), &columns)
                    }
                };
                widened(merged, &self.schema, &columns)
            }
        };
        let mut options = TableParquetOptions::new();
        options.global = session.config_options().execution.parquet.clone();
        // To look for them takes a second reader of each segment.
        options.global.bloom_filter_on_read &= self.may_have_bloom_filters(filters);
        let has_second_readers = options.global.bloom_filter_on_read;
        let url = ObjectStoreUrl::parse(SHARD_STORE_URL)?;
        let mut source = ParquetSource::new(Arc::clone(&self.schema)).with_table_parquet_options(options);
        if let Some(reads) = session.config().get_extension::<ReadLog>() {
            // For scans that stay on the coordinator: readers are not sent.
            let mut readers = segment_readers(session.config(), session.runtime_env(), reads)?;
            if has_second_readers {
                readers = readers.with_second_readers();
            }
            source = source.with_parquet_file_reader_factory(Arc::new(readers));
        }
        let scan = FileScanConfigBuilder::new(url, Arc::new(source))
            .with_file_groups(groups.into_iter().map(FileGroup::new).collect())
            .with_output_partitioning(declared)
            .with_statistics(statistics)
            .with_projection_indices(projection.cloned())?
            .with_limit(limit)
            .build();
        Ok(DataSourceExec::from_data_source(scan))
    }
}

/// A segment as a file of a scan.
pub(super) fn segment_file(segment: &Segment) -> PartitionedFile {
    let name = segment.name().to_string();
    PartitionedFile::new_from_meta(ObjectMeta {
        // Nothing in a name need be escaped.
        location: Path::parse(&name).unwrap_or_else(|_| Path::from(name)),
        // Segments do not change: what is cached of one stays true.
        last_modified: chrono::DateTime::UNIX_EPOCH,
        size: segment.bytes,
        e_tag: None,
        version: None,
    })
}

/// Readers of segments on the coordinator, which note in `reads` what they read.
pub(super) fn segment_readers(
    config: &SessionConfig,
    runtime: &RuntimeEnv,
    reads: Arc<ReadLog>,
) -> Result<CountedReaders> {
    let store: Arc<dyn ObjectStore> = match config.get_extension::<ShardStore>() {
        Some(shards) => Arc::new(shards.counting(Arc::clone(&reads))),
        None => runtime.object_store(&ObjectStoreUrl::parse(SHARD_STORE_URL)?)?,
    };
    let cache = runtime.cache_manager.get_file_metadata_cache();
    let cached = CachedParquetFileReaderFactory::new(store, cache);
    Ok(CountedReaders::new(Arc::new(cached), Arc::default(), Some(reads)))
}

fn empty_statistics(schema: &SchemaRef) -> Statistics {
    let mut statistics = Statistics::new_unknown(schema);
    statistics.num_rows = Precision::Exact(0);
    statistics
}

/// The shard table behind a provider.
pub(crate) fn as_shard_table(provider: &Arc<dyn TableProvider>) -> Option<&ShardTable> {
    let provider: &dyn Any = provider.as_ref();
    provider.downcast_ref()
}
