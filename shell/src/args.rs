//! The command line: subcommands, flags and their help.
//!
//! Settings of nodes are text here: `config` reads them, together with the
//! environment and the file, so that all three are judged alike.

use std::path::PathBuf;

use clap::{CommandFactory, Parser, Subcommand};

use crate::demo::DemoArgs;
use crate::sql::SqlArgs;

const EXAMPLES: &str = "\
Examples:
  shoal demo                                   a cluster with data in it, and a prompt
  shoal demo -c 'SELECT count(*) FROM lineitem'

A cluster by hand: a coordinator, workers, a prompt.
  shoal coordinator --data-dir c1
  shoal worker --data-dir w1 --coordinator http://127.0.0.1:7400
  shoal sql";

const COORDINATOR_EXAMPLES: &str = "\
Every setting is also an environment variable (--data-dir is SHOAL_DATA_DIR) and a key of the TOML
file (data_dir). A flag wins over the environment, the environment over the file.

Examples:
  shoal coordinator --data-dir /var/lib/shoal
  shoal coordinator --data-dir /var/lib/shoal --import-root /srv/exports
  shoal coordinator --data-dir c2 --listen 127.0.0.1:7410 --join http://127.0.0.1:7400
  shoal coordinator --config /etc/shoal/coordinator.toml --print-config";

const WORKER_EXAMPLES: &str = "\
Every setting is also an environment variable (--data-dir is SHOAL_DATA_DIR) and a key of the TOML
file (data_dir). A flag wins over the environment, the environment over the file.

Examples:
  shoal worker --data-dir w1 --listen 127.0.0.1:7401 --coordinator http://127.0.0.1:7400
  shoal worker --data-dir w2 --listen 127.0.0.1:7402 --coordinator http://127.0.0.1:7400 --zone b
  shoal worker --data-dir w3 --coordinator http://10.0.0.1:7400 --coordinator http://10.0.0.2:7400
  shoal worker --data-dir w4 --coordinator http://10.0.0.1:7400 --drain
  shoal worker --config /etc/shoal/worker.toml --print-config";

/// Shoal: SQL over replicated Parquet shards, on a cluster that keeps
/// answering when a node does not.
#[derive(Debug, Parser)]
#[command(
    name = "shoal",
    version,
    propagate_version = true,
    subcommand_required = true,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    max_term_width = 110,
    after_help = EXAMPLES
)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What `shoal` can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a cluster of your own on this machine, with data in it, and open a prompt
    #[command(after_help = crate::demo::EXAMPLES)]
    Demo(Box<DemoArgs>),
    /// Open a SQL prompt on a cluster, or run statements and exit
    Sql(Box<SqlArgs>),
    /// Run a coordinator: one of those that clients connect to
    #[command(after_help = COORDINATOR_EXAMPLES)]
    Coordinator(Box<CoordinatorArgs>),
    /// Run a worker: holds shards and computes
    #[command(after_help = WORKER_EXAMPLES)]
    Worker(Box<WorkerArgs>),
}

/// `shoal coordinator`.
#[derive(Debug, clap::Args)]
pub struct CoordinatorArgs {
    /// Where clients and workers connect [default: 127.0.0.1:7400]
    #[arg(long, value_name = "IP:PORT")]
    pub listen: Option<String>,
    /// A coordinator whose cluster it joins at its first start, like http://10.0.0.1:7400; repeatable [default: none,
    /// it starts a cluster of its own]
    #[arg(long, value_name = "URL")]
    pub join: Vec<String>,
    /// Make it the only coordinator of its cluster, with all that it has: once, after a majority of the coordinators
    /// was lost for good. The lost ones must never be started again with their old data
    #[arg(long, conflicts_with = "join")]
    pub force_new_cluster: bool,
    /// What all nodes have.
    #[command(flatten)]
    pub node: NodeArgs,
    /// A folder whose files COPY and CREATE EXTERNAL TABLE may use; repeatable [default: none]
    #[arg(long, value_name = "DIR")]
    pub import_root: Vec<String>,
    /// An object store prefix that external tables may use, like s3://bucket/path; repeatable [default: none]
    #[arg(long, value_name = "URL")]
    pub object_store: Vec<String>,
    /// The failure zone it stands in; queries read from workers of the same zone first [default: none]
    #[arg(long, value_name = "ZONE")]
    pub zone: Option<String>,
    /// Queries that run at once; the others wait in order [default: from the cores]
    #[arg(long, value_name = "N")]
    pub max_queries: Option<String>,
    /// Queries that may wait; more are refused [default: 1000]
    #[arg(long, value_name = "N")]
    pub queue_limit: Option<String>,
    /// How long a query may wait [default: 1m]
    #[arg(long, value_name = "DURATION")]
    pub queue_timeout: Option<String>,
    /// A worker that is away for longer is given up: its shards are copied to others [default: 5m]
    #[arg(long, value_name = "DURATION")]
    pub dead_after: Option<String>,
    /// What one worker copies in a second of shards that go there because it has less than others, or because another
    /// is drained; 0: no limit [default: 64MiB]
    #[arg(long, value_name = "SIZE")]
    pub move_rate: Option<String>,
    /// What one worker copies in a second of shards that have too few copies; 0: no limit [default: 1GiB]
    #[arg(long, value_name = "SIZE")]
    pub repair_rate: Option<String>,
    /// Whether small segments of a shard become few in the background: on or off [default: on]
    #[arg(long, value_name = "SWITCH")]
    pub compaction: Option<String>,
    /// Memory of one query on each node [default: half of --memory-limit]
    #[arg(long, value_name = "SIZE")]
    pub query_memory_limit: Option<String>,
    /// Memory for queries and writes in this process [default: a quarter of the machine's]
    #[arg(long, value_name = "SIZE")]
    pub memory_limit: Option<String>,
    /// Memory that the rows of one write may take before they become segments [default: 384MiB]
    #[arg(long, value_name = "SIZE")]
    pub write_buffer: Option<String>,
    /// Memory for results that are kept, of sessions with SET shoal.result_cache = on; 0: none are [default: 64MiB]
    #[arg(long, value_name = "SIZE")]
    pub result_cache: Option<String>,
}

/// `shoal worker`.
#[derive(Debug, clap::Args)]
pub struct WorkerArgs {
    /// Where coordinators and other workers connect [default: 127.0.0.1:7401]
    #[arg(long, value_name = "IP:PORT")]
    pub listen: Option<String>,
    /// A coordinator of the cluster to join, like http://10.0.0.1:7400; repeatable
    #[arg(long, value_name = "URL")]
    pub coordinator: Vec<String>,
    /// What all nodes have.
    #[command(flatten)]
    pub node: NodeArgs,
    /// The worker's name in the cluster, kept in its data directory [default: made at the first start]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// The failure zone it stands in; copies of a shard are spread over zones [default: none]
    #[arg(long, value_name = "ZONE")]
    pub zone: Option<String>,
    /// An object store prefix that external tables may use, like s3://bucket/path; repeatable [default: none]
    #[arg(long, value_name = "URL")]
    pub object_store: Vec<String>,
    /// A folder that the coordinators have as an --import-root, too, at the same path, such as a mounted share: COPY reads
    /// its files here and not through them; repeatable [default: none]
    #[arg(long, value_name = "DIR")]
    pub import_root: Vec<String>,
    /// Memory for queries; what needs more spills to disk or fails alone [default: half of the machine's beyond 256 MiB]
    #[arg(long, value_name = "SIZE")]
    pub memory_limit: Option<String>,
    /// Threads that compute [default: the cores]
    #[arg(long, value_name = "N")]
    pub threads: Option<String>,
    /// What it reads of its segments in a second to find rot that no query meets; 0: nothing [default: 8MiB]
    #[arg(long, value_name = "SIZE")]
    pub scrub_rate: Option<String>,
    /// Have its shards copied to other workers at SIGTERM or Ctrl-C, and stop only when nothing is left on it. A second
    /// signal does not wait for that
    #[arg(long)]
    pub drain: bool,
}

/// What coordinators and workers have in common.
#[derive(Debug, clap::Args)]
pub struct NodeArgs {
    /// Where the node keeps everything; made if it is not there
    #[arg(long, value_name = "DIR", display_order = 0)]
    pub data_dir: Option<String>,
    /// Where other nodes reach this one, like http://10.0.0.7:7401 [default: as --listen]
    #[arg(long, value_name = "URL")]
    pub advertise: Option<String>,
    /// Allow --listen on a network, although there is no TLS and there are no passwords yet
    #[arg(long)]
    pub insecure: bool,
    /// How long work may take to finish after SIGTERM or Ctrl-C [default: 10s]
    #[arg(long, value_name = "DURATION")]
    pub grace: Option<String>,
    /// How log lines look: text or json [default: text]
    #[arg(long, help_heading = "Logging and configuration", value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// error, warn, info, debug, trace, or a filter like info,shoal_worker=debug [default: info]
    #[arg(long, help_heading = "Logging and configuration", value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// A TOML file with settings; SHOAL_CONFIG names one, too
    #[arg(long, help_heading = "Logging and configuration", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print every setting and where its value came from, and exit
    #[arg(long, help_heading = "Logging and configuration")]
    pub print_config: bool,
    /// End at once when standard input ends: a node that was started by a program ends with it
    #[arg(long, hide = true)]
    pub stop_with_stdin: bool,
    /// With --stop-with-stdin: a folder to remove when standard input ends
    #[arg(long, hide = true, requires = "stop_with_stdin", value_name = "DIR")]
    pub remove_with_stdin: Option<PathBuf>,
}

/// The command line as clap has it.
pub fn command() -> clap::Command {
    Args::command()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        command().debug_assert();
    }

    #[test]
    fn help_of_every_command_renders() {
        let mut command = command();
        command.build();
        for subcommand in command.get_subcommands_mut() {
            let help = subcommand.render_long_help().to_string();
            assert!(help.contains("Usage: shoal"), "{help}");
            assert!(!help.contains("stop-with-stdin"), "{help}");
        }
    }
}
