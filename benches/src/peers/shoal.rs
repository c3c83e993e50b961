//! Shoal itself, and its shard files as another engine reads them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use arrow::array::AsArray;
use arrow::compute::cast;
use arrow::datatypes::DataType;
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use shoal_coordinator::query::TimeSplit;

use super::{Execution, Peer, TableFiles};
use crate::answer::{Answer, Numbers};
use crate::client::Client;
use crate::cluster::Cluster;

/// A cluster as a peer: one session, plain Flight SQL statements.
pub struct ShoalPeer {
    name: String,
    cluster: Arc<Cluster>,
    client: Client,
}

impl ShoalPeer {
    /// Opens a session.
    ///
    /// # Errors
    /// When the coordinator cannot be reached.
    pub async fn connect(cluster: Arc<Cluster>) -> Result<Self> {
        let client = cluster.connect().await?;
        Ok(Self { name: "shoal".to_owned(), cluster, client })
    }

    /// A session with failover switched off, to see what it costs.
    ///
    /// # Errors
    /// When the coordinator cannot be reached.
    pub async fn without_failover(cluster: Arc<Cluster>) -> Result<Self> {
        let setting = Self::with_setting(cluster, "shoal.failover=false").await?;
        Ok(Self { name: "shoal_no_failover".to_owned(), ..setting })
    }

    /// A session with one setting, given as `name=value`, to see what it gains or costs; that
    /// is its name, too.
    ///
    /// # Errors
    /// When the coordinator cannot be reached, or has no such setting.
    pub async fn with_setting(cluster: Arc<Cluster>, setting: &str) -> Result<Self> {
        let (key, value) = setting.split_once('=').with_context(|| format!("`{setting}`: name=value"))?;
        let mut client = cluster.connect().await?;
        let sql = format!("SET {key} = '{}'", value.replace('\'', "''"));
        client.update(&sql).await.with_context(|| sql.clone())?;
        Ok(Self { name: setting.to_owned(), cluster, client })
    }
}

#[async_trait]
impl Peer for ShoalPeer {
    fn name(&self) -> &str {
        &self.name
    }

    fn pids(&self) -> Vec<u32> {
        self.cluster.pids()
    }

    async fn run(&mut self, sql: &str, answer: bool) -> Result<Execution> {
        let started = Instant::now();
        let (schema, batches) = self.client.query_with_schema(sql).await?;
        let seconds = started.elapsed().as_secs_f64();
        let rows = batches.iter().map(RecordBatch::num_rows).sum();
        let answer = if answer { Some(Answer::new(&schema, &batches, Numbers::Exact)?) } else { None };
        Ok(Execution { seconds, rows, answer })
    }

    async fn split(&mut self, sql: &str) -> Result<TimeSplit> {
        let explained = self.client.text(&format!("EXPLAIN ANALYZE {sql}")).await?;
        explained.parse().map_err(anyhow::Error::msg)
    }
}

/// One replica of every committed segment of every table, as files of this
/// machine.
///
/// # Errors
/// When the catalog and the workers' directories do not agree.
pub async fn shard_files(cluster: &Cluster) -> Result<Vec<TableFiles>> {
    let mut on_disk: BTreeMap<String, PathBuf> = BTreeMap::new();
    for name in cluster.worker_names() {
        let mut open = vec![cluster.data_dir(&name)?.join("segments")];
        while let Some(dir) = open.pop() {
            for entry in std::fs::read_dir(&dir).with_context(|| format!("read {}", dir.display()))? {
                let path = entry?.path();
                if path.is_dir() {
                    open.push(path);
                } else if let Some(segment) = path.file_stem().and_then(|stem| stem.to_str()) {
                    on_disk.insert(segment.to_owned(), path.clone());
                }
            }
        }
    }
    let mut tables: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    let mut client = cluster.connect().await?;
    for batch in client.query("SELECT \"table\", segment FROM system.segments").await? {
        let texts = |column: usize| cast(batch.column(column), &DataType::Utf8);
        let (names, segments) = (texts(0)?, texts(1)?);
        for (table, segment) in names.as_string::<i32>().iter().zip(segments.as_string::<i32>()) {
            let (table, segment) = (table.context("table")?, segment.context("segment")?);
            let path = on_disk
                .get(segment)
                .with_context(|| format!("no worker holds segment {segment} of {table}"))?;
            tables.entry(table.to_owned()).or_default().push(path.clone());
        }
    }
    Ok(tables.into_iter().map(|(table, paths)| TableFiles { table, paths }).collect())
}
