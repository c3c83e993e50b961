//! The flags of `shoal demo`.

use std::path::PathBuf;

use crate::render::Format;

/// What the end of the help shows.
pub const EXAMPLES: &str = "\
Examples:
  shoal demo                              TPC-H at scale 0.1, and a prompt
  shoal demo --scale 1 --workers 8
  shoal demo --load trips.parquet sales/*.csv.gz    your own files instead
  shoal demo -c 'SELECT count(*) FROM orders' --format csv
  shoal demo --keep ./shoal-demo          the data is still there the next time

Everything that the demo starts ends with it.";

/// `shoal demo`.
#[derive(Clone, Debug, clap::Args)]
pub struct DemoArgs {
    /// Make the tables of TPC-H at this scale; 1 is about 1 GB of raw data [default: 0.1, none with --load]
    #[arg(long, value_name = "FACTOR", value_parser = parse_scale)]
    pub scale: Option<f64>,
    /// Make a table of each of these Parquet, CSV or JSON files (also .gz and .zst), named after the file
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub load: Vec<PathBuf>,
    /// Run a statement and exit instead of opening a prompt; repeatable
    #[arg(short = 'c', long = "command", value_name = "SQL")]
    pub commands: Vec<String>,
    /// How results are written
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    pub format: Format,
    /// Keep the data in this folder, and start from it if it has some
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
    /// Coordinator processes; an odd number survives the most losses [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=9))]
    pub coordinators: Option<u32>,
    /// Worker processes [default: 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub workers: Option<u32>,
    /// Copies of each shard, each on another worker [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub replicas: Option<u32>,
    /// Threads that compute in each worker [default: the cores divided by the workers, at least 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub threads: Option<u32>,
}

fn parse_scale(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(scale) if scale.is_finite() && (0.001..=1000.0).contains(&scale) => Ok(scale),
        _ => Err("a scale is a number from 0.001 to 1000".to_owned()),
    }
}
