//! The leader is killed again and again, and each time started anew.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde::Serialize;

use super::changes::Record;
use crate::cluster::Cluster;
use crate::load::Doors;
use crate::report::say;

/// Queries that were asked so soon after a kill are looked at apart.
pub(super) const SOON: Duration = Duration::from_secs(2);
/// How long all is left as it is before the next kill.
const BETWEEN: Duration = Duration::from_secs(3);
/// How long changes may take to be accepted again.
const ACCEPTED_WITHIN: Duration = Duration::from_secs(60);
/// How often that is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// One death of a leader.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Kill {
    leader: String,
    #[serde(skip)]
    at: Instant,
    /// Until a change was acknowledged that was sent after it, at the first of
    /// the other coordinators.
    pub(super) accepted_s: f64,
    /// The same, at the last of them.
    pub(super) accepted_everywhere_s: f64,
}

impl Kill {
    /// Whether a moment is soon after it.
    pub(super) fn is_soon_after(&self, at: Instant) -> bool {
        (self.at..self.at + SOON).contains(&at)
    }
}

/// Kills whoever leads so many times; waits each time until all is as before.
///
/// # Errors
/// When changes are not accepted again, or a coordinator does not come back.
pub(super) fn kill_leaders(
    cluster: &Cluster,
    doors: &Doors,
    record: &Record,
    runs: usize,
    workers: usize,
) -> Result<Vec<Kill>> {
    let mut kills = Vec::new();
    for run in 1..=runs {
        std::thread::sleep(BETWEEN);
        let leader = cluster.leader()?;
        doors.close(&leader)?;
        let at = Instant::now();
        cluster.kill(&leader)?;
        // What was sent before may have been answered by the one that is dead.
        let dead = Instant::now();
        let others = doors.all().enumerate().filter(|(_, (name, _))| *name != leader);
        let others: Vec<usize> = others.map(|(number, _)| number).collect();
        let accepted = accepted_after(record, &others, dead)?;
        let seconds = |accepted: Option<&Instant>| {
            accepted.map_or(f64::NAN, |accepted| accepted.saturating_duration_since(at).as_secs_f64())
        };
        let kill = Kill {
            leader,
            at,
            accepted_s: seconds(accepted.first()),
            accepted_everywhere_s: seconds(accepted.last()),
        };
        say(format!(
            "run {run}: {} killed, changes accepted after {:.2} s, everywhere after {:.2} s",
            kill.leader, kill.accepted_s, kill.accepted_everywhere_s
        ));
        // Its start is not part of what is felt of its death.
        std::thread::sleep(SOON.saturating_sub(at.elapsed()));
        cluster.restart(&kill.leader)?;
        cluster.wait_until_voting(doors.count())?;
        cluster.wait_until_joined(workers)?;
        cluster.wait_until_caught_up("region")?;
        doors.open(&kill.leader)?;
        kills.push(kill);
    }
    Ok(kills)
}

/// When each of these coordinators acknowledged a change that was sent from
/// `since` on, the first of them first.
fn accepted_after(record: &Record, coordinators: &[usize], since: Instant) -> Result<Vec<Instant>> {
    loop {
        let first = coordinators.iter().filter_map(|number| record.first_since(*number, since));
        let mut accepted: Vec<Instant> = first.map(|change| change.acknowledged).collect();
        if accepted.len() == coordinators.len() {
            accepted.sort_unstable();
            return Ok(accepted);
        }
        ensure!(since.elapsed() < ACCEPTED_WITHIN, "no change is accepted {ACCEPTED_WITHIN:?} after a kill");
        std::thread::sleep(LOOK_INTERVAL);
    }
}
