//! How many queries run at once. Short ones and long ones have places of their own;
//! within a class sessions take turns, by their priorities. A full queue refuses at
//! once, and nobody waits for ever.
//!
//! Who is next is decided in [`line`]; here are the lock and the one who is woken, alone.

mod line;
mod need;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;

pub use self::line::Ticket;
use self::line::{Entered, Limits, Line};
pub use self::need::{Class, Need, Priority};
use crate::Error;

/// Of so many short queries that may run at once, one long one may: it keeps threads of
/// several nodes busy, and more of them at a time only take more memory.
const SHORT_FOR_LONG: usize = 2;

/// The gate before execution. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Admission {
    shared: Arc<Shared>,
    short_max: usize,
    long_max: usize,
    queue_max: usize,
    timeout: Duration,
}

#[derive(Debug)]
struct Shared {
    lines: Mutex<Lines>,
    /// Memory of the node that has least; what long queries may take together. None
    /// where it is not known: as many run as there are places.
    memory_max: AtomicU64,
}

/// A token is told the permit.
type Turn = oneshot::Sender<Permit>;

#[derive(Debug)]
struct Lines {
    short: Line<Turn>,
    long: Line<Turn>,
    is_closed: bool,
}

impl Lines {
    fn of(&mut self, class: Class) -> &mut Line<Turn> {
        match class {
            Class::Short => &mut self.short,
            Class::Long => &mut self.long,
        }
    }
}

/// The right to run; given back when dropped.
#[derive(Debug)]
pub struct Permit {
    shared: Arc<Shared>,
    class: Class,
    memory_bytes: u64,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.shared.lines.lock().of(self.class).end(self.memory_bytes);
        self.shared.let_in(self.class);
    }
}

/// Leaves the queue when dropped, however the wait ends.
struct Waits<'a> {
    shared: &'a Arc<Shared>,
    ticket: Ticket,
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        let class = self.ticket.class;
        let waited = self.shared.lines.lock().of(class).leave(self.ticket);
        if waited {
            // The one behind it may need less memory.
            self.shared.let_in(class);
        }
    }
}

impl Shared {
    fn memory_max(&self, class: Class) -> Option<u64> {
        match class {
            Class::Short => None,
            Class::Long => Some(self.memory_max.load(Ordering::Relaxed)).filter(|bytes| *bytes > 0),
        }
    }

    /// Tells those whose turn it is, and nobody else.
    fn let_in(self: &Arc<Self>, class: Class) {
        let memory_max = self.memory_max(class);
        loop {
            // Not told under the lock: where it has gone, its permit comes back here.
            let next = self.lines.lock().of(class).next(memory_max);
            let Some((turn, memory_bytes)) = next else { return };
            let permit = Permit { shared: Arc::clone(self), class, memory_bytes };
            drop(turn.send(permit));
        }
    }
}

impl Admission {
    /// At most `running_max` short ones at once, and half as many long ones; of each
    /// class `queue_max` waiting, each for at most `timeout`.
    pub fn new(running_max: usize, queue_max: usize, timeout: Duration) -> Self {
        let long_max = (running_max / SHORT_FOR_LONG).max(1);
        let line = |class, running_max| Line::new(class, Limits { running_max, waiting_max: queue_max });
        let lines = Lines {
            short: line(Class::Short, running_max),
            long: line(Class::Long, long_max),
            is_closed: false,
        };
        let shared = Arc::new(Shared { lines: Mutex::new(lines), memory_max: AtomicU64::new(0) });
        Self { shared, short_max: running_max, long_max, queue_max, timeout }
    }

    /// The memory of the node that has least, from now on; 0 where it is not known.
    pub fn know_memory(&self, bytes: u64) {
        self.shared.memory_max.store(bytes, Ordering::Relaxed);
    }

    /// Queries that wait now.
    pub fn waiting(&self) -> usize {
        let lines = self.shared.lines.lock();
        lines.short.waiting() + lines.long.waiting()
    }

    /// Whether there are queries that wait for places, all of which are taken: what can be
    /// done later stands back for them.
    pub fn is_pressed(&self) -> bool {
        let lines = self.shared.lines.lock();
        [&lines.short, &lines.long].into_iter().any(|line| line.waiting() > 0 && line.is_full())
    }

    /// Waits for a turn. `at_place` is told the ticket, from which
    /// [`Admission::place`] computes the place in the queue.
    ///
    /// # Errors
    /// `Exhausted` where the queue is full, `Timeout` where the wait was too
    /// long; each says the limit and the setting. `Stopping` once it is closed.
    pub async fn admit(&self, need: Need, at_place: impl FnOnce(Ticket)) -> Result<Permit, Error> {
        let class = need.class;
        let (sender, turn) = oneshot::channel();
        let entered = {
            let mut lines = self.shared.lines.lock();
            if lines.is_closed {
                return Err(Error::Stopping);
            }
            lines.of(class).enter(need, self.shared.memory_max(class), sender)
        };
        let ticket = match entered {
            Entered::Runs(_sender) => {
                let memory_bytes = need.memory_bytes;
                return Ok(Permit { shared: Arc::clone(&self.shared), class, memory_bytes });
            }
            Entered::Full(_sender) => {
                return Err(Error::Exhausted(format!(
                    "{} {} queries run and {} wait, which is all that this coordinator takes; try again later, or \
                     raise --max-queries or --queue-limit",
                    self.shared.lines.lock().of(class).running(),
                    class.name(),
                    self.queue_max
                )));
            }
            Entered::Waits(ticket) => ticket,
        };
        let waits = Waits { shared: &self.shared, ticket };
        at_place(ticket);
        let permit = tokio::time::timeout(self.timeout, turn).await;
        drop(waits);
        match permit {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_closed)) => Err(Error::Stopping),
            Err(_) => Err(Error::Timeout(self.waited_in_vain(class))),
        }
    }

    fn waited_in_vain(&self, class: Class) -> String {
        let (running, is_full) = {
            let mut lines = self.shared.lines.lock();
            let line = lines.of(class);
            (line.running(), line.is_full())
        };
        let (timeout, name) = (self.timeout, class.name());
        if is_full {
            let places = self.running_max(class);
            return format!(
                "the query waited {timeout:?} for one of {places} places of {name} queries and got none; try again \
                 later, or raise --max-queries or --queue-timeout"
            );
        }
        format!(
            "the query waited {timeout:?} for memory, or behind one that does: what the {running} {name} queries that \
             run may take leaves too little; try again later, lower shoal.query_memory, or raise --queue-timeout"
        )
    }

    /// Admits nobody from now on; those who wait are refused.
    pub fn close(&self) {
        let refused = {
            let mut lines = self.shared.lines.lock();
            lines.is_closed = true;
            [lines.short.dismiss(), lines.long.dismiss()]
        };
        drop(refused);
    }

    /// Whether nobody is admitted any more.
    pub fn is_closed(&self) -> bool {
        self.shared.lines.lock().is_closed
    }

    /// The place in the queue of a ticket, from 1, among those of its class.
    pub fn place(&self, ticket: Ticket) -> usize {
        self.shared.lines.lock().of(ticket.class).place(ticket)
    }

    /// The places of all that wait.
    pub fn places(&self) -> HashMap<Ticket, usize> {
        let lines = self.shared.lines.lock();
        lines.short.places().chain(lines.long.places()).collect()
    }

    fn running_max(&self, class: Class) -> usize {
        match class {
            Class::Short => self.short_max,
            Class::Long => self.long_max,
        }
    }
}

#[cfg(test)]
mod tests;
