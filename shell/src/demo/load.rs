//! What the demo puts into its cluster: TPC-H, the user's files, or what is
//! there already.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::Result;
use arrow::array::AsArray;
use arrow::compute::cast;
use arrow::datatypes::DataType;

use super::bars::Bars;
use super::files::UserFile;
use super::kept::Kept;
use super::welcome::grouped;
use super::{DemoArgs, tpch};
use crate::client::Client;

/// Makes and fills what is not there yet, and says so.
///
/// # Errors
/// For the first table that cannot be made or filled.
pub(super) async fn load(
    client: &Client,
    args: &DemoArgs,
    kept: &mut Kept,
    files: &[UserFile],
) -> Result<()> {
    let started = Instant::now();
    let there = tables_there(client).await?;
    let bars = Bars::new();
    let (mut rows, mut tables) = (0, 0);
    if let Some(scale) = kept.scale.filter(|_| !kept.complete) {
        eprintln!("Loading TPC-H at scale {scale}, {} of every shard", copies(kept.replicas));
        rows += tpch::load(client, scale, kept, &there, &bars).await?;
        tables += 8;
    }
    kept.complete = true;
    if let Some(folder) = &args.keep {
        kept.write(folder)?;
    }
    for file in files {
        if there.contains(file.table()) {
            eprintln!("The table {} is there already and stays as it is", file.table());
            continue;
        }
        rows += file.load(client, &bars).await?;
        tables += 1;
    }
    bars.clear();
    if tables > 0 {
        let noun = if tables == 1 { "table" } else { "tables" };
        eprintln!(
            "Loaded {} rows into {tables} {noun} in {:.1} s",
            grouped(rows),
            started.elapsed().as_secs_f64()
        );
    }
    // Such as that there are fewer workers than copies asked for.
    let notices: BTreeSet<_> = client.notices().await?.into_iter().collect();
    for notice in notices {
        eprintln!("Notice: {notice}");
    }
    Ok(())
}

async fn tables_there(client: &Client) -> Result<BTreeSet<String>> {
    let sql = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'";
    let mut names = BTreeSet::new();
    for batch in client.collect(sql).await? {
        let column = cast(batch.column(0), &DataType::Utf8)?;
        names.extend(column.as_string::<i32>().iter().flatten().map(str::to_owned));
    }
    Ok(names)
}

fn copies(replicas: u32) -> String {
    match replicas {
        1 => "one copy".to_owned(),
        2 => "two copies".to_owned(),
        3 => "three copies".to_owned(),
        more => format!("{more} copies"),
    }
}
