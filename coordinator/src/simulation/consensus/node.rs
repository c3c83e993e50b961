//! One coordinator's catalog on a made-up machine, and those who use it.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use shoal_proto::{Channels, server};
use tokio::runtime::Handle;
use tokio::time::sleep;
use turmoil::net::TcpListener;

use super::disk::Disk;
use super::network::{self, PORT};
use super::seen::Seen;
use crate::Error;
use crate::catalog::raft::file::RaftFile;
use crate::catalog::{Catalog, CatalogOptions, ChangeError, Command, Settled};
use crate::cluster::{Cluster, ConsensusService};
use crate::config::DEAD_AFTER;

/// How often a coordinator that nobody takes in is started again.
const START_AGAIN: Duration = Duration::from_millis(300);
/// How often it is looked at what was applied.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A coordinator, until its machine crashes.
pub(super) async fn run(number: u64, disk: Disk, seen: Arc<Seen>) -> turmoil::Result {
    let start = seen.new_start();
    let catalog = loop {
        match open(number, &disk).await {
            Ok(catalog) => break catalog,
            Err(_nobody_yet) => sleep(START_AGAIN).await,
        }
    };
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).await?;
    let cluster = Arc::new(Cluster::new(catalog.clone(), DEAD_AFTER));
    let service = ConsensusService::new(cluster).into_server();
    let served = server::builder().add_service(service).serve_with_incoming(network::incoming(listener));
    let (served, ..) = futures::join!(
        served,
        catalog.enlist(),
        change(&catalog, &seen, start),
        read(&catalog, &seen, start),
        look(number, &catalog, &seen),
    );
    served?;
    Ok(())
}

async fn open(number: u64, disk: &Disk) -> Result<Catalog, Error> {
    let url = |number: u64| format!("http://c{number}:{PORT}");
    // Nothing is there: the disk is made up.
    let dir = PathBuf::from(format!("/no/such/disk/c{number}"));
    let opened = RaftFile::open_here(disk.storage(), &dir.join("catalog.redb"), &url(number))?;
    let options = CatalogOptions {
        dir,
        address: url(number),
        listening: Ipv4Addr::LOCALHOST.into(),
        join: if number == 1 { Vec::new() } else { vec![url(1)] },
        force_new_cluster: false,
    };
    let channels = Channels::new(Handle::current()).through(network::connect);
    Catalog::open_here(opened, options, channels).await
}

/// Makes one schema after the other, each under a name of its own.
async fn change(catalog: &Catalog, seen: &Seen, start: u64) {
    let mut chance = StdRng::seed_from_u64(start);
    for number in 0_u64.. {
        sleep(Duration::from_millis(chance.random_range(30..400))).await;
        if seen.is_over() {
            continue;
        }
        let name = format!("s{start}x{number}");
        let command = Command::CreateSchema { name: name.clone(), if_not_exists: false };
        match catalog.change(command).await {
            Ok(_) => seen.made(name),
            Err(ChangeError::Refused(_)) => seen.never(name),
            Err(ChangeError::Unsettled { change, .. }) => match catalog.settle(change).await {
                Settled::Made(_) => seen.made(name),
                Settled::NotMade(_) => seen.never(name),
                Settled::Unknown(_) => {}
            },
        }
    }
}

/// Reads what is newest, which has all that anybody was told before.
async fn read(catalog: &Catalog, seen: &Seen, start: u64) {
    let mut chance = StdRng::seed_from_u64(start);
    loop {
        sleep(Duration::from_millis(chance.random_range(20..300))).await;
        let made = seen.newest_made();
        if catalog.catch_up().await.is_ok() {
            let state = catalog.snapshot();
            seen.read(&state, &made);
        }
    }
}

/// Tells what was applied here, and who leads.
async fn look(number: u64, catalog: &Catalog, seen: &Seen) {
    loop {
        let consensus = catalog.consensus();
        let entries = consensus.published.applied.borrow().entries;
        seen.applied(number, entries, &catalog.snapshot());
        if catalog.is_leader() {
            seen.leads(catalog.term(), consensus.me);
        }
        let voters = catalog.coordinators().iter().filter(|it| it.is_voter).count();
        seen.counts(number, voters);
        sleep(LOOK_EVERY).await;
    }
}
