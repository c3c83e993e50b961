//! The coordinators that clients may use, and which of them is being stopped.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};

use crate::cluster::Cluster;

/// The coordinators, in the order in which they were started.
#[derive(Debug)]
pub struct Doors(Vec<Door>);

#[derive(Debug)]
struct Door {
    name: String,
    /// Where clients connect; the same over restarts.
    url: String,
    /// How often it was closed or opened: odd while it is closed.
    turns: AtomicU64,
}

/// A client's place at a coordinator, and how often that had been closed and
/// opened when the client took it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    pub(super) door: usize,
    turns: u64,
}

impl Doors {
    /// Those of a cluster, all of them open.
    ///
    /// # Errors
    /// When one never listened.
    pub fn of(cluster: &Cluster) -> Result<Self> {
        let place = |name: String| -> Result<(String, String)> { Ok((cluster.url_of(&name)?, name)) };
        let places: Result<Vec<_>> = cluster.coordinator_names().into_iter().map(place).collect();
        Ok(Self::new(places?))
    }

    /// At these URLs, each with its name.
    fn new(places: Vec<(String, String)>) -> Self {
        let door = |(url, name): (String, String)| Door { name, url, turns: AtomicU64::new(0) };
        Self(places.into_iter().map(door).collect())
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Each name, with where clients connect.
    pub fn all(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|door| (door.name.as_str(), door.url.as_str()))
    }

    /// This coordinator is about to be stopped: from now on, and until
    /// [`Doors::open`], its clients may be cut off.
    ///
    /// # Errors
    /// For an unknown name.
    pub fn close(&self, name: &str) -> Result<()> {
        self.turn(name)
    }

    /// It is back, after [`Doors::close`].
    ///
    /// # Errors
    /// For an unknown name.
    pub fn open(&self, name: &str) -> Result<()> {
        self.turn(name)
    }

    fn turn(&self, name: &str) -> Result<()> {
        let door = self.0.iter().find(|door| door.name == name);
        let door = door.with_context(|| format!("clients know of no coordinator `{name}`"))?;
        door.turns.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    /// A seat at the coordinator of this number; they are counted round.
    pub fn seat(&self, number: usize) -> Seat {
        let door = number % self.0.len();
        Seat { door, turns: self.turns(door) }
    }

    /// Where the client at this seat connects.
    pub fn url(&self, seat: Seat) -> &str {
        &self.0[seat.door].url
    }

    /// The coordinator's name.
    pub fn name(&self, seat: Seat) -> &str {
        &self.0[seat.door].name
    }

    /// Whether nobody is about to stop the coordinator of this number.
    pub fn is_open(&self, number: usize) -> bool {
        self.turns(number % self.0.len()).is_multiple_of(2)
    }

    /// Whether the coordinator is, or was, closed since the seat was taken: then
    /// that is why a statement failed there.
    pub fn is_excused(&self, seat: Seat) -> bool {
        let turns = self.turns(seat.door);
        turns != seat.turns || !turns.is_multiple_of(2)
    }

    fn turns(&self, door: usize) -> u64 {
        self.0[door].turns.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
impl Doors {
    /// Doors `a`, `b` and so on, at these URLs.
    pub(super) fn at(urls: &[String]) -> Self {
        let names = ('a'..='z').map(String::from);
        Self::new(urls.iter().cloned().zip(names).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_door_that_was_closed_meanwhile_excuses_a_failure() {
        let doors = Doors::at(&["http://1".to_owned(), "http://2".to_owned()]);
        let (first, second) = (doors.seat(2), doors.seat(3));
        assert_eq!((doors.name(first), doors.url(second)), ("a", "http://2"));
        assert!(!doors.is_excused(first) && doors.is_open(0));
        doors.close("a").unwrap();
        assert!(doors.is_excused(first) && doors.is_excused(doors.seat(0)) && !doors.is_open(2));
        assert!(!doors.is_excused(second), "another one was closed");
        doors.open("a").unwrap();
        assert!(doors.is_excused(first), "it was closed meanwhile");
        assert!(!doors.is_excused(doors.seat(0)) && doors.is_open(0));
        assert!(doors.close("z").is_err());
    }
}
