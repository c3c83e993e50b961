//! Who runs, and who reaches whom.

use std::fmt;

use super::context::Millis;

/// A process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Node {
    Coordinator(usize),
    Worker(usize),
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Coordinator(index) => write!(f, "c{index}"),
            Self::Worker(index) => write!(f, "w{index}"),
        }
    }
}

/// All processes, and the links between them.
pub(super) struct Network {
    coordinators: usize,
    processes: Vec<Process>,
    /// By who sends and who receives.
    cut: Vec<bool>,
    /// Nothing goes wrong any more.
    pub(super) is_calm: bool,
}

struct Process {
    /// Grows with each crash: what was of an earlier one is gone.
    life: u32,
    is_up: bool,
    paused_until: Millis,
}

impl Network {
    /// All links are well; coordinators run, workers do not yet.
    pub(super) fn new(coordinators: usize, workers: usize) -> Self {
        let process = |index| Process { life: 0, is_up: index < coordinators, paused_until: 0 };
        let count = coordinators + workers;
        let processes = (0..count).map(process).collect();
        Self { coordinators, processes, cut: vec![false; count * count], is_calm: false }
    }

    pub(super) fn coordinators(&self) -> usize {
        self.coordinators
    }

    pub(super) fn nodes(&self) -> Vec<Node> {
        let workers = self.processes.len() - self.coordinators;
        (0..self.coordinators).map(Node::Coordinator).chain((0..workers).map(Node::Worker)).collect()
    }

    fn index(&self, node: Node) -> usize {
        match node {
            Node::Coordinator(index) => index,
            Node::Worker(index) => self.coordinators + index,
        }
    }

    fn process(&self, node: Node) -> &Process {
        &self.processes[self.index(node)]
    }

    fn process_mut(&mut self, node: Node) -> &mut Process {
        let index = self.index(node);
        &mut self.processes[index]
    }

    pub(super) fn life(&self, node: Node) -> u32 {
        self.process(node).life
    }

    pub(super) fn is_up(&self, node: Node) -> bool {
        self.process(node).is_up
    }

    pub(super) fn paused_until(&self, node: Node) -> Millis {
        self.process(node).paused_until
    }

    /// Whether it runs and is not paused.
    pub(super) fn is_awake(&self, node: Node, now: Millis) -> bool {
        let process = self.process(node);
        process.is_up && process.paused_until <= now
    }

    pub(super) fn crash(&mut self, node: Node) {
        let process = self.process_mut(node);
        process.life += 1;
        process.is_up = false;
        process.paused_until = 0;
    }

    pub(super) fn start(&mut self, node: Node) {
        self.process_mut(node).is_up = true;
    }

    pub(super) fn pause(&mut self, node: Node, until: Millis) {
        self.process_mut(node).paused_until = until;
    }

    /// Nobody is paused and no link is cut any more, for good.
    pub(super) fn calm(&mut self) {
        self.is_calm = true;
        self.cut.fill(false);
        for process in &mut self.processes {
            process.paused_until = 0;
        }
    }

    pub(super) fn set_cut(&mut self, from: Node, to: Node, is_cut: bool) {
        let at = self.index(from) * self.processes.len() + self.index(to);
        self.cut[at] = is_cut;
    }

    pub(super) fn reaches(&self, from: Node, to: Node) -> bool {
        from == to || !self.cut[self.index(from) * self.processes.len() + self.index(to)]
    }

    /// Whether both hear one another.
    pub(super) fn talks(&self, a: Node, b: Node) -> bool {
        self.reaches(a, b) && self.reaches(b, a)
    }

    /// Whether a coordinator is awake and talks to a majority that is.
    pub(super) fn has_majority(&self, coordinator: usize, now: Millis) -> bool {
        let me = Node::Coordinator(coordinator);
        let others = (0..self.coordinators).map(Node::Coordinator);
        let heard = others.filter(|other| self.is_awake(*other, now) && self.talks(me, *other)).count();
        self.is_awake(me, now) && 2 * heard > self.coordinators
    }
}
