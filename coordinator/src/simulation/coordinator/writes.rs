//! The likeness of `load::stage`, `load::write` and `Engine::write`: segments
//! are staged on the workers of their shard, and then committed by one command
//! or given up.

use std::collections::BTreeSet;

use shoal_data::{ColumnStatistics, Segment, SegmentName, Table};
use shoal_proto::{SegmentId, TableId, WorkerId, WriteId};
use uuid::Uuid;

use super::beats::BYTES;
use super::changes::{Ended, Why};
use super::{ANY_TERM, Coordinator};
use crate::catalog::raft::types::Reply;
use crate::catalog::{Command, Outcome, WriteRecord};
use crate::cluster::adapter::candidates::candidates_of;
use crate::cluster::arriving::bytes_to_come;
use crate::cluster::placement::place;
use crate::simulation::client::{Wish, layout, new_table};
use crate::simulation::context::{Context, Message, Millis};
use crate::simulation::network::Node;
use crate::simulation::trace::Brief;
use crate::simulation::worker::index_of;

/// How long a worker may take to store a segment.
const STAGE_MAX: Millis = 2_500;
/// So many segments of a table are replaced by the next write.
const SEGMENTS_MAX: usize = 7;

/// A write that is under way.
pub(super) struct Write {
    id: WriteId,
    table: TableId,
    kind: Kind,
    segments: Vec<Staging>,
    step: Step,
}

/// What a write is for.
enum Kind {
    /// New rows; whether they take the place of all that there are.
    Add { replaces: bool },
    /// A segment that takes the place of others of its shard.
    Compact { shard: u32, old: Vec<SegmentId>, rows: u64 },
}

/// Rows of a new segment.
const ROWS: u64 = 10;

/// A segment on its way to its workers.
struct Staging {
    name: SegmentName,
    workers: Vec<WorkerId>,
    durable_on: BTreeSet<WorkerId>,
    failed_on: BTreeSet<WorkerId>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Until when workers may answer.
    Staging(Millis),
    /// When it is committed: others of its segments take a while.
    Staged(Millis),
    Committing,
    /// Nobody knows whether it is committed.
    Settling,
    /// It is not; the newest catalog is asked once more.
    Refused,
}

impl Write {
    /// Whether it counts on what this worker has, or may yet.
    pub(super) fn is_on(&self, worker: &WorkerId) -> bool {
        let counts =
            |staging: &Staging| staging.workers.contains(worker) && !staging.failed_on.contains(worker);
        self.segments.iter().any(counts)
    }
}

impl Staging {
    fn majority(&self) -> usize {
        self.workers.len() / 2 + 1
    }
}

impl Coordinator {
    /// Begins to stage a write.
    pub(super) fn begin_write(&mut self, context: &mut Context, id: WriteId, lot: usize) {
        if self.state.written(&id).is_some() {
            return;
        }
        let tables: Vec<&Table> = self.state.tables().map(AsRef::<Table>::as_ref).collect();
        if tables.is_empty() {
            return;
        }
        let table = tables[lot % tables.len()];
        let one = u32::try_from(lot).unwrap_or_default() % table.layout.shards;
        let old: Vec<_> = table.shard_segments(one).collect();
        let kind = if old.len() > 1 && context.chance.one_in(5) {
            let rows = old.iter().map(|segment| segment.rows).sum();
            Kind::Compact { shard: one, old: old.iter().map(|segment| segment.id).collect(), rows }
        } else {
            Kind::Add { replaces: table.segments.len() >= SEGMENTS_MAX || context.chance.one_in(12) }
        };
        let is_of_all = matches!(kind, Kind::Add { .. }) && context.chance.one_in(3);
        let shards = (0..table.layout.shards).filter(|shard| is_of_all || *shard == one);
        let shards: Vec<(u32, Vec<WorkerId>)> =
            shards.filter_map(|shard| Some((shard, table.placement.get(shard as usize)?.clone()))).collect();
        let table = table.id;
        let token = u128::from(context.new_id());
        let live = self.core.membership.live();
        let mut segments = Vec::new();
        for (shard, workers) in shards {
            let segment = SegmentId(Uuid::from_u128(u128::from(context.new_id())));
            let name = SegmentName { table, shard, segment };
            self.core.protected.entry(token).or_default().insert(name, workers.clone());
            let mut failed_on = BTreeSet::new();
            for worker in &workers {
                if live.get(worker).is_some() || live.is_suspected(worker) {
                    let to = Node::Worker(index_of(worker.as_str()));
                    self.send(context, to, Message::Stage { write: token, name });
                } else {
                    failed_on.insert(worker.clone());
                }
            }
            context.note(format_args!("c{} stages {} of {}", self.me, Brief(&name), id.as_str()));
            segments.push(Staging { name, workers, durable_on: BTreeSet::new(), failed_on });
        }
        let step = Step::Staging(context.now + STAGE_MAX);
        self.writes.insert(token, Write { id, table, kind, segments, step });
        self.look_after_write(context, token);
    }

    /// A worker has a segment.
    pub(in crate::simulation) fn staged(
        &mut self,
        context: &mut Context,
        worker: &WorkerId,
        token: u128,
        name: SegmentName,
    ) {
        let Some(write) = self.writes.get_mut(&token) else { return };
        for staging in write.segments.iter_mut().filter(|staging| staging.name == name) {
            if !staging.failed_on.contains(worker) {
                staging.durable_on.insert(worker.clone());
            }
        }
        self.look_after_write(context, token);
    }

    /// Whether a write waits for this segment on this worker.
    pub(in crate::simulation) fn waits_for(
        &self,
        worker: &WorkerId,
        token: u128,
        name: &SegmentName,
    ) -> bool {
        self.writes.get(&token).is_some_and(|write| {
            let mut stagings = write.segments.iter();
            matches!(write.step, Step::Staging(_))
                && stagings.any(|staging| staging.name == *name && !staging.failed_on.contains(worker))
        })
    }

    pub(super) fn look_after_writes(&mut self, context: &mut Context) {
        let tokens: Vec<u128> = self.writes.keys().copied().collect();
        for token in tokens {
            self.look_after_write(context, token);
        }
    }

    fn look_after_write(&mut self, context: &mut Context, token: u128) {
        let live = self.core.membership.live();
        let Some(write) = self.writes.get_mut(&token) else { return };
        match write.step {
            Step::Staging(until) => {
                let is_over = context.now >= until;
                for staging in &mut write.segments {
                    let is_enough = staging.durable_on.len() >= staging.majority();
                    for worker in &staging.workers {
                        let is_lost = live.get(worker).is_none() && !live.is_suspected(worker);
                        if !staging.durable_on.contains(worker) && (is_over || (is_enough && is_lost)) {
                            staging.failed_on.insert(worker.clone());
                        }
                    }
                }
                let is_answered = |staging: &Staging| {
                    staging.durable_on.len() + staging.failed_on.len() >= staging.workers.len()
                };
                if !write.segments.iter().all(is_answered) {
                    return;
                }
                if write.segments.iter().any(|staging| staging.durable_on.len() < staging.majority()) {
                    self.give_up_write(context, token);
                    return;
                }
                let delay = if context.chance.one_in(6) { context.chance.between(100, 2_000) } else { 0 };
                write.step = Step::Staged(context.now + delay);
                self.look_after_write(context, token);
            }
            Step::Staged(at) if context.now >= at => self.commit(context, token),
            Step::Staged(_) | Step::Committing | Step::Settling | Step::Refused => {}
        }
    }

    fn commit(&mut self, context: &mut Context, token: u128) {
        let Some(write) = self.writes.get_mut(&token) else { return };
        write.step = Step::Committing;
        let rows = match &write.kind {
            Kind::Add { .. } => ROWS,
            Kind::Compact { rows, .. } => *rows,
        };
        let segments = write.segments.iter().map(|staging| {
            let durable = staging.workers.iter().filter(|worker| staging.durable_on.contains(*worker));
            Segment {
                id: staging.name.segment,
                table: staging.name.table,
                shard: staging.name.shard,
                rows,
                bytes: BYTES,
                crc32c: 7,
                columns: vec![ColumnStatistics::default()].into(),
                replicas: durable.cloned().collect(),
            }
        });
        let segments: Vec<Segment> = segments.collect();
        let table = write.table;
        let command = match &write.kind {
            Kind::Add { replaces } => {
                let record = WriteRecord { id: write.id.clone(), rows: ROWS };
                Command::CommitWrite { write: record, table, segments, replace: *replaces, sketches: None }
            }
            Kind::Compact { shard, old, .. } => {
                Command::Compact { table, shard: *shard, old: old.clone(), new: segments }
            }
        };
        let id = self.change(context, None, Some(command), Why::Commit);
        // Under the number of its change from here on, where it is looked for.
        if let Some(write) = self.writes.remove(&token) {
            self.writes.insert(id, write);
        }
        if let Some(protected) = self.core.protected.remove(&token) {
            self.core.protected.insert(id, protected);
        }
    }

    pub(super) fn committed(&mut self, context: &mut Context, id: u128, ended: &Ended) {
        match ended {
            Ok(Reply::Done(Outcome::Done)) => {
                let Some(write) = self.writes.remove(&id) else { return };
                self.core.protected.remove(&id);
                context.note(format_args!("c{} acknowledges {}", self.me, write.id.as_str()));
                for Staging { name, .. } in &write.segments {
                    let is_there = context.seen.committed.contains(name);
                    assert!(is_there, "{} is acknowledged and not in the log", Brief(name));
                }
                context.seen.version = context.seen.version.max(self.state.version);
            }
            // Somebody else's segments are in, or nobody's.
            Ok(_) | Err(_) => self.refuse(context, id),
        }
    }

    /// Nobody knows whether a write is committed, and its client is told so.
    pub(super) fn unsettled(&mut self, context: &mut Context, id: u128) {
        if let Some(write) = self.writes.get_mut(&id) {
            write.step = Step::Settling;
            context.note(format_args!("c{} does not know of {}", self.me, write.id.as_str()));
            if matches!(write.kind, Kind::Add { .. }) {
                context.seen.unsettled.push(write.id.clone());
            }
        }
    }

    pub(super) fn settled(&mut self, context: &mut Context, id: u128, ended: &Ended) {
        match ended {
            Ok(Reply::Done(Outcome::Done)) => {
                self.writes.remove(&id);
                self.core.protected.remove(&id);
            }
            Ok(Reply::Forgotten) => self.leave_write(context, id),
            Ok(_) | Err(_) => self.refuse(context, id),
        }
    }

    /// `Staged::refused`: what was staged goes once the newest catalog says so, too.
    fn refuse(&mut self, context: &mut Context, id: u128) {
        if let Some(write) = self.writes.get_mut(&id) {
            write.step = Step::Refused;
            self.read(context, Wish::Discard { write: id });
        }
    }

    /// The same, with the newest catalog here.
    pub(super) fn discard_refused(&mut self, context: &mut Context, id: u128) {
        let Some(write) = self.writes.get(&id) else { return };
        if write.segments.iter().any(|staging| self.state.segment(&staging.name).is_some()) {
            self.writes.remove(&id);
            self.core.protected.remove(&id);
        } else {
            self.give_up_write(context, id);
        }
    }

    /// `Staged::left`: whoever leads removes what the catalog does not name.
    pub(super) fn leave_write(&mut self, context: &mut Context, id: u128) {
        if let Some(write) = self.writes.remove(&id) {
            context.note(format_args!("c{} leaves {}", self.me, write.id.as_str()));
        }
        self.core.protected.remove(&id);
    }

    /// What it staged goes, as nobody ever saw it.
    fn give_up_write(&mut self, context: &mut Context, token: u128) {
        let Some(write) = self.writes.remove(&token) else { return };
        self.core.protected.remove(&token);
        context.note(format_args!("c{} gives {} up", self.me, write.id.as_str()));
        for Staging { name, .. } in &write.segments {
            let is_there = context.seen.committed.contains(name);
            assert!(!is_there, "{} is given up and was committed", Brief(name));
            context.seen.given_up.insert(*name);
        }
        let names = write.segments.into_iter().map(|staging| (staging.name, staging.workers)).collect();
        self.core.discard_in(context.now, ANY_TERM, names);
    }

    /// A client makes a table: an id for it first.
    pub(in crate::simulation) fn reserve(&mut self, context: &mut Context, table: usize) {
        self.change(context, None, Some(Command::ReserveTable), Why::Reserve(table));
    }

    /// `Engine::make_table`.
    pub(super) fn create_table(&mut self, context: &mut Context, id: TableId, table: usize) {
        let (live, state) = (self.core.membership.live(), &self.state);
        let workers = candidates_of(&live, state, &bytes_to_come(state, &live));
        let tables = self.state.tables().map(AsRef::<Table>::as_ref);
        let Some(placement) = place(&layout(table), &workers, tables) else { return };
        let table = Table { placement: placement.shards, ..new_table(id, table) };
        context.note(format_args!("c{} makes {} on {:?}", self.me, table.name, table.placement));
        self.wants(context, Command::CreateTable { table, if_not_exists: false, write: None });
    }

    /// A client wants a change; whether it is made it may see later.
    pub(in crate::simulation) fn wants(&mut self, context: &mut Context, command: Command) {
        self.change(context, None, Some(command), Why::Client);
    }
}
