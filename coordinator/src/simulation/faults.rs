//! What goes wrong.
//!
//! Not told here: that a disk is lost and nobody has noticed yet. Within that
//! second another copy may go because of the one that is lost, and where a table
//! has as many copies as disks are lost then, nothing can help. So everybody
//! notices at once; no disk is lost that has the only copy that counts; and it
//! is empty, and back, only when nobody counts on what it had: a write that
//! staged there before, or a copy that was reported and is not recorded.

use shoal_data::SegmentName;

use super::context::{Happening, Millis};
use super::network::Node;
use super::trace::Brief;
use super::world::World;

impl World {
    /// Something goes wrong, and is well again after a while.
    pub(super) fn fault(&mut self) {
        let nodes = self.context.network.nodes();
        let Some(victim) = self.context.chance.pick(&nodes) else { return };
        let coordinator = Node::Coordinator(self.context.chance.below(self.coordinators.len()));
        let worker = self.context.chance.below(self.workers.len());
        match self.context.chance.below(20) {
            0..=2 => {
                let others: Vec<Node> = self.context.chance.pick(&nodes).into_iter().collect();
                self.cut(victim, &others);
            }
            3..=5 => self.cut(coordinator, &self.coordinator_nodes()),
            6 => self.cut(victim, &nodes),
            7 => {
                // Whoever leads does not hear that another one does.
                if let Some(leader) = self.log.leader {
                    self.cut(Node::Coordinator(leader), &self.coordinator_nodes());
                }
            }
            8..=10 => self.pause(victim),
            11..=13 => self.crash_for_a_while(Node::Worker(worker), 6_000),
            14..=15 => self.crash_for_a_while(coordinator, 4_000),
            16 => self.lose_disk(worker),
            17 => {
                self.context.note(format_args!("w{worker} wants to be drained"));
                self.workers[worker].wants_drain = true;
            }
            _ => self.elect(),
        }
    }

    fn coordinator_nodes(&self) -> Vec<Node> {
        (0..self.coordinators.len()).map(Node::Coordinator).collect()
    }

    /// Cuts a process off from others, or only what it says to them, or they to it.
    fn cut(&mut self, node: Node, others: &[Node]) {
        let way = self.context.chance.below(4);
        let others = others.iter().filter(|other| **other != node);
        let links = others.flat_map(|other| match way {
            0 => vec![(node, *other)],
            1 => vec![(*other, node)],
            _ => vec![(node, *other), (*other, node)],
        });
        let links: Vec<(Node, Node)> = links.collect();
        if links.is_empty() {
            return;
        }
        self.context.note(format_args!("{node} is cut off from {} in way {way}", links.len()));
        for (from, to) in &links {
            self.context.network.set_cut(*from, *to, true);
        }
        let delay = self.context.chance.between(100, 5_000);
        self.context.happens_after(delay, Happening::Heal(links));
    }

    fn pause(&mut self, node: Node) {
        let until = self.context.now + self.context.chance.between(100, 4_000);
        self.context.note(format_args!("{node} is paused until {until}"));
        self.context.network.pause(node, until);
    }

    fn crash_for_a_while(&mut self, node: Node, longest: Millis) {
        self.context.note(format_args!("{node} crashes"));
        self.crash(node, true);
        let delay = self.context.chance.between(50, longest);
        self.context.happens_after(delay, Happening::Start(node));
    }

    fn lose_disk(&mut self, at: usize) {
        let is_up = self.context.network.is_up(Node::Worker(at));
        if !is_up || !self.is_spare(at) || self.counts_on(at) {
            return;
        }
        self.context.note(format_args!("w{at} loses its disk"));
        self.crash(Node::Worker(at), false);
        let delay = self.context.chance.between(1_000, 8_000);
        self.context.happens_after(delay, Happening::Start(Node::Worker(at)));
    }

    /// Whether another copy counts of each segment that a worker has.
    pub(super) fn is_spare(&self, at: usize) -> bool {
        let newest = self.log.newest();
        let has = |other: usize, name: &SegmentName| other != at && self.workers[other].disk.contains(name);
        self.workers[at].disk.iter().all(|name| {
            let Some(segment) = newest.segment(name) else { return true };
            let counts = |other: usize| segment.replicas.contains(&self.workers[other].id);
            (0..self.workers.len()).any(|other| has(other, name) && counts(other))
        })
    }

    /// For people to read: a segment and who has it.
    pub(super) fn holders(&self, name: &SegmentName) -> String {
        let holders = self.workers.iter().filter(|worker| worker.disk.contains(name));
        let ids: Vec<&str> = holders.map(|worker| worker.id.as_str()).collect();
        format!("{} on {ids:?}", Brief(name))
    }
}
