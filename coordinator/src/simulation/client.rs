//! What clients want, one thing after the other.

use shoal_data::{ReplicaCount, TableLayout};
use shoal_proto::{TableId, WriteId};

use super::context::Context;
use super::coordinator::Coordinator;
use super::network::Node;
use super::world::World;
use crate::catalog::state::tests::table;
use crate::catalog::{Command, State};

/// Tables that there may be: shards and copies of each. The first two are a group.
const TABLES: [(u32, ReplicaCount); 5] = [
    (3, ReplicaCount::Count(2)),
    (3, ReplicaCount::Count(2)),
    (2, ReplicaCount::Count(3)),
    (1, ReplicaCount::All),
    (2, ReplicaCount::Count(1)),
];

/// What a client wants that must read the newest catalog first.
pub(super) enum Wish {
    Query,
    /// A new write, to whichever table this lot says.
    Write {
        id: u64,
        lot: usize,
    },
    /// A write of which its client does not know whether it was made.
    WriteAgain {
        id: WriteId,
    },
    /// What a write staged goes, unless the catalog has it.
    Discard {
        write: u128,
    },
}

/// The name of a table, by its number.
fn name(table: usize) -> String {
    format!("t{table}")
}

fn is_there(state: &State, table: usize) -> bool {
    state.table("public", &name(table)).is_some()
}

/// The layout of a table that does not exist yet.
pub(super) fn layout(number: usize) -> TableLayout {
    let (shards, replicas) = TABLES[number];
    TableLayout { shards, replicas, ..table(TableId(1), "t").layout }
}

/// The command that makes a table, without its place.
pub(super) fn new_table(id: TableId, number: usize) -> shoal_data::Table {
    shoal_data::Table { layout: layout(number), ..table(id, &name(number)) }
}

impl World {
    /// One wish of a client, at any coordinator that listens.
    pub(super) fn client(&mut self) {
        let now = self.context.now;
        let is_awake = |index: &usize| self.context.network.is_awake(Node::Coordinator(*index), now);
        let awake: Vec<usize> = (0..self.coordinators.len()).filter(is_awake).collect();
        let Some(at) = self.context.chance.pick(&awake) else { return };
        let (context, coordinator) = (&mut self.context, &mut self.coordinators[at]);
        let tables = self.tables;
        let missing: Vec<usize> = (0..tables).filter(|table| !is_there(&coordinator.state, *table)).collect();
        if let Some(table) = context.chance.pick(&missing)
            && context.chance.one_in(3)
        {
            coordinator.reserve(context, table);
            return;
        }
        let table = context.chance.below(tables);
        match context.chance.below(40) {
            0..=15 => coordinator.read(context, Wish::Query),
            16..=31 => write(context, coordinator),
            32 => coordinator.wants(context, drop_table(table)),
            33 => {
                let count = u32::try_from(context.chance.between(1, 4)).unwrap_or(1);
                let replicas =
                    if context.chance.one_in(8) { ReplicaCount::All } else { ReplicaCount::Count(count) };
                let (schema_name, name) = ("public".to_owned(), name(table));
                coordinator.wants(context, Command::SetReplicas { schema_name, name, replicas });
            }
            34..=36 => {
                let worker = context.chance.below(self.workers.len());
                let is_draining = context.chance.one_in(3);
                let worker = self.workers[worker].id.clone();
                coordinator.wants(context, Command::DrainWorker { worker, is_draining });
            }
            _ => {
                let worker = context.chance.below(self.workers.len());
                coordinator.suspect(&self.workers[worker].id);
            }
        }
    }
}

fn write(context: &mut Context, coordinator: &mut Coordinator) {
    if let Some(id) = context.seen.unsettled.pop() {
        coordinator.read(context, Wish::WriteAgain { id });
        return;
    }
    let (id, lot) = (context.new_id(), context.chance.below(1_000));
    coordinator.read(context, Wish::Write { id, lot });
}

fn drop_table(table: usize) -> Command {
    Command::DropTable { schema_name: "public".to_owned(), name: name(table), if_exists: true }
}
