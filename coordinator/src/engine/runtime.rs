//! What plans run on in the coordinator: its memory, its spill directory and
//! the stores that names in plans resolve to.

use std::path::PathBuf;
use std::sync::Arc;

use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::GreedyMemoryPool;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use shoal_data::import_store::IMPORT_STORE_URL;
use shoal_data::object_stores::register_object_stores;
use shoal_data::shard_store::SHARD_STORE_URL;
use shoal_data::{ImportRoots, ImportStore, ShardStore};
use shoal_proto::Channels;
use url::Url;

use crate::cluster::Cluster;
use crate::{CoordinatorConfig, Error};

/// The runtime of the coordinator's own part of plans, and what it reads segments
/// through.
pub(super) fn coordinator_runtime(
    config: &CoordinatorConfig,
    cluster: &Arc<Cluster>,
    channels: &Channels,
    imports: &ImportRoots,
    spill_dir: PathBuf,
) -> Result<(Arc<RuntimeEnv>, Arc<ShardStore>), Error> {
    let memory_bytes = usize::try_from(config.memory_limit_bytes).unwrap_or(usize::MAX);
    let disk = DiskManagerBuilder::default().with_mode(DiskManagerMode::Directories(vec![spill_dir]));
    let runtime = RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(GreedyMemoryPool::new(memory_bytes)))
        .with_disk_manager_builder(disk)
        // What lies in an object store is listed anew each time: the cache is for ever, and
        // does not tell one bucket from another.
        .with_object_list_cache_limit(0)
        .build()?;
    let url = |text: &str| Url::parse(text).map_err(|error| Error::Internal(format!("`{text}`: {error}")));
    let locate = Arc::clone(cluster) as Arc<dyn shoal_data::shard_store::Locate>;
    // No directory of its own: a coordinator holds no segments.
    let shards = Arc::new(ShardStore::new(None, locate, channels.clone()));
    runtime.register_object_store(&url(SHARD_STORE_URL)?, Arc::<ShardStore>::clone(&shards));
    runtime.register_object_store(&url(IMPORT_STORE_URL)?, Arc::new(ImportStore::on_disk(imports.clone())));
    register_object_stores(&runtime, &config.object_stores)?;
    Ok((Arc::new(runtime), shards))
}
