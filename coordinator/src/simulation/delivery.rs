//! How what was sent arrives, or does not: messages and streams between nodes.

use super::agreement::{Asker, Pending};
use super::context::{Envelope, Event, Message, Millis};
use super::network::Node;
use super::worker::Worker;
use super::world::World;

impl World {
    pub(super) fn deliver(&mut self, envelope: Envelope) {
        let context = &mut self.context;
        let Envelope { from, from_life, to, to_life, .. } = envelope;
        let network = &context.network;
        // What a process sent, or was sent, ends with it.
        let is_lost = network.life(from) != from_life || network.life(to) != to_life || !network.is_up(to);
        if is_lost {
            return;
        }
        let until = network.paused_until(to);
        if until > context.now {
            context.after(until - context.now, Event::Deliver(Box::new(envelope)));
            return;
        }
        if !network.reaches(from, to) {
            if context.chance.one_in(2) {
                let delay = context.chance.between(100, 600);
                context.after(delay, Event::Deliver(Box::new(envelope)));
            }
            return;
        }
        match (from, to) {
            (Node::Coordinator(from), Node::Coordinator(to)) => self.among(from, to, envelope.message),
            (Node::Worker(from), Node::Coordinator(to)) => self.hear(from, to, envelope.message),
            (Node::Coordinator(from), Node::Worker(to)) => self.tell(from, to, envelope.message),
            (Node::Worker(from), Node::Worker(to)) => panic!("w{from} says something to w{to}"),
        }
    }

    /// One coordinator says something to another, or to itself.
    fn among(&mut self, from: usize, to: usize, message: Message) {
        let reply = match message {
            Message::Propose(proposal) => {
                let id = proposal.id.as_u128();
                match self.coordinators[to].leads {
                    Some(term) if self.leads_for_sure(to, term) => {
                        let leader_life = self.context.network.life(Node::Coordinator(to));
                        let asker = Some(Asker { coordinator: from, leader_life });
                        self.log.tail.push(Pending { term, leader: to, proposal: Some(*proposal), asker });
                        self.see_to_commit();
                        return;
                    }
                    // It does not know that it leads no more: no majority takes what it has.
                    Some(_) => return,
                    None => Message::Proposed { id, answer: None },
                }
            }
            Message::ReadIndex { id } => {
                let entries = match self.coordinators[to].leads {
                    Some(term) => {
                        let now = self.context.now;
                        let is_sure =
                            self.leads_for_sure(to, term) && self.context.network.has_majority(to, now);
                        if !is_sure {
                            return;
                        }
                        Some(self.log.len())
                    }
                    None => None,
                };
                Message::ReadAt { id, entries }
            }
            Message::AskNeeds { id, asked } => {
                Message::Needed { id, needs: self.coordinators[to].needs(&asked) }
            }
            Message::Proposed { id, answer } => {
                self.coordinators[to].proposed(&mut self.context, id, answer);
                return;
            }
            Message::ReadAt { id, entries } => {
                self.coordinators[to].read_at(&mut self.context, id, entries);
                return;
            }
            Message::Needed { id, needs } => {
                self.coordinators[to].needed(&mut self.context, from, id, needs);
                return;
            }
            Message::Join { .. }
            | Message::Joined { .. }
            | Message::Closed { .. }
            | Message::Stage { .. }
            | Message::Staged { .. } => panic!("c{from} takes c{to} for a worker"),
        };
        self.context.send(Node::Coordinator(to), Node::Coordinator(from), reply);
    }

    /// A worker says something to a coordinator.
    fn hear(&mut self, from: usize, to: usize, message: Message) {
        let Worker { id, zone, .. } = &self.workers[from];
        let life = self.context.network.life(Node::Worker(from));
        let coordinator = &mut self.coordinators[to];
        match message {
            Message::Join { stream, report } => {
                coordinator.join(&mut self.context, (id, zone.as_str(), life), (stream, report));
            }
            Message::Closed { stream } => coordinator.lose(&mut self.context, id, stream),
            Message::Staged { write, name } => coordinator.staged(&mut self.context, id, write, name),
            _ => panic!("w{from} takes c{to} for something else"),
        }
    }

    /// A coordinator says something to a worker.
    fn tell(&mut self, from: usize, to: usize, message: Message) {
        let worker = &mut self.workers[to];
        match message {
            Message::Joined { stream, discard, term } => {
                worker.joined(&mut self.context, from, (stream, discard.as_slice(), term));
            }
            Message::Stage { write, name } => {
                worker.stage(&mut self.context, Node::Coordinator(from), write, name);
            }
            _ => panic!("c{from} takes w{to} for something else"),
        }
    }

    /// The next message of a stream arrives, unless that is broken.
    pub(super) fn flow(&mut self, number: u64, is_up: bool) {
        let context = &mut self.context;
        if !context.is_open(number) {
            return;
        }
        let Some(stream) = context.streams.get(&number) else { return };
        let (worker, coordinator) = (stream.worker, stream.coordinator);
        let (worker_node, coordinator_node) = (Node::Worker(worker), Node::Coordinator(coordinator));
        let (from, to) =
            if is_up { (worker_node, coordinator_node) } else { (coordinator_node, worker_node) };
        let until = context.network.paused_until(to);
        let wait: Option<Millis> = if until > context.now {
            Some(until - context.now)
        } else if !context.network.reaches(from, to) {
            Some(context.chance.between(100, 300))
        } else if !is_up && self.workers[worker].is_asking(coordinator) {
            Some(20)
        } else {
            None
        };
        if let Some(wait) = wait {
            context.after(wait, Event::Flow { stream: number, is_up });
            return;
        }
        let Some(stream) = context.streams.get_mut(&number) else { return };
        if is_up {
            let Some(beat) = stream.up.pop_front() else { return };
            let life = context.network.life(worker_node);
            let id = &self.workers[worker].id;
            let orders = self.coordinators[coordinator].beat(context, (id, life), number, &beat);
            context.send_orders(number, orders);
        } else {
            let Some(orders) = stream.down.pop_front() else { return };
            self.workers[worker].ordered(context, coordinator, number, &orders);
        }
    }
}
