//! A disk that loses what was not fsynced, under the real file of the catalog.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use redb::{Database, StorageBackend};

use crate::Error;
use crate::catalog::raft::file::Storage;

/// What is written as one, or not at all, when the power fails.
const PIECE_BYTES: usize = 4096;

/// A disk. All clones are one.
#[derive(Clone, Debug)]
pub(super) struct Disk(Arc<Mutex<Platter>>);

#[derive(Debug)]
struct Platter {
    /// What outlives a crash.
    durable: Vec<u8>,
    /// What was done since the last fsync, in order.
    unsynced: Vec<Done>,
    /// How often it was opened: what opened it before does not reach it any more.
    openings: u64,
    /// After so many more changes the power fails.
    changes_left: Option<u64>,
    is_off: bool,
    chance: StdRng,
}

#[derive(Debug)]
enum Done {
    Length(usize),
    Write { at: usize, data: Vec<u8> },
}

impl Done {
    /// Does it, as far as each piece is `kept`.
    fn apply(&self, bytes: &mut Vec<u8>, mut kept: impl FnMut() -> bool) {
        match self {
            Self::Length(length) => {
                if kept() {
                    bytes.resize(*length, 0);
                }
            }
            Self::Write { at, data } => {
                for (number, piece) in data.chunks(PIECE_BYTES).enumerate() {
                    if kept() {
                        let from = at + number * PIECE_BYTES;
                        let to = from + piece.len();
                        if bytes.len() < to {
                            bytes.resize(to, 0);
                        }
                        bytes[from..to].copy_from_slice(piece);
                    }
                }
            }
        }
    }
}

impl Disk {
    pub(super) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(Platter {
            durable: Vec::new(),
            unsynced: Vec::new(),
            openings: 0,
            changes_left: None,
            is_off: false,
            chance: StdRng::seed_from_u64(seed),
        })))
    }

    /// The power fails after so many changes, in the middle of whatever is written.
    pub(super) fn fail_after(&self, changes: u64) {
        self.0.lock().changes_left = Some(changes);
    }

    /// Whether the power has failed. The process does not know, and gets on with
    /// nothing.
    pub(super) fn is_off(&self) -> bool {
        self.0.lock().is_off
    }

    /// Everything that was not fsynced is lost, or some of it, or nothing.
    pub(super) fn crash(&self) {
        let mut platter = self.0.lock();
        let Platter { durable, unsynced, openings, changes_left, is_off, chance } = &mut *platter;
        let how = chance.random_range(0..3);
        for done in unsynced.drain(..) {
            done.apply(durable, || how == 0 || (how == 1 && chance.random_bool(0.5)));
        }
        *openings += 1;
        (*changes_left, *is_off) = (None, false);
    }

    pub(super) fn storage(&self) -> Box<dyn Storage> {
        Box::new(self.clone())
    }
}

impl Storage for Disk {
    fn open(&self) -> Result<Database, Error> {
        let opened = {
            let mut platter = self.0.lock();
            platter.openings += 1;
            let mut image = platter.durable.clone();
            for done in &platter.unsynced {
                done.apply(&mut image, || true);
            }
            Opened { disk: self.clone(), opening: platter.openings, image: Mutex::new(image) }
        };
        let database = redb::Builder::new().create_with_backend(opened);
        database.map_err(|error| Error::Store(Box::new(error.into())))
    }

    /// Its process goes on, and finds that nothing is written.
    fn fail(&self) {}
}

/// A disk as it was opened once.
#[derive(Debug)]
struct Opened {
    disk: Disk,
    opening: u64,
    /// What this process reads.
    image: Mutex<Vec<u8>>,
}

impl Opened {
    /// Counts a change, if the disk takes any more.
    fn change(&self) -> io::Result<parking_lot::MutexGuard<'_, Platter>> {
        let mut platter = self.disk.0.lock();
        if platter.changes_left == Some(0) {
            platter.is_off = true;
        }
        if platter.is_off || platter.openings != self.opening {
            return Err(io::Error::other("the disk is off"));
        }
        platter.changes_left = platter.changes_left.map(|left| left - 1);
        Ok(platter)
    }
}

impl StorageBackend for Opened {
    fn len(&self) -> Result<u64, io::Error> {
        Ok(self.image.lock().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        let image = self.image.lock();
        let from = offset as usize;
        let piece = image.get(from..from + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(piece);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        let done = Done::Length(len as usize);
        let mut platter = self.change()?;
        done.apply(&mut self.image.lock(), || true);
        platter.unsynced.push(done);
        Ok(())
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        let mut platter = self.change()?;
        let Platter { durable, unsynced, .. } = &mut *platter;
        for done in unsynced.drain(..) {
            done.apply(durable, || true);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        let done = Done::Write { at: offset as usize, data: data.to_vec() };
        let mut platter = self.change()?;
        done.apply(&mut self.image.lock(), || true);
        platter.unsynced.push(done);
        Ok(())
    }
}

#[test]
fn what_was_fsynced_outlives_a_crash_and_nothing_else_must() {
    let mut was_lost = false;
    for seed in 0..20 {
        let disk = Disk::new(seed);
        let open = |disk: &Disk| {
            let mut platter = disk.0.lock();
            platter.openings += 1;
            let (opening, image) = (platter.openings, Mutex::new(platter.durable.clone()));
            Opened { disk: disk.clone(), opening, image }
        };
        let first = open(&disk);
        first.set_len(8).unwrap();
        first.write(0, b"kept").unwrap();
        first.sync_data().unwrap();
        first.write(4, b"lost").unwrap();
        disk.crash();
        assert!(first.write(0, b"late").is_err(), "a process that has ended writes");
        let mut found = [0; 8];
        open(&disk).read(0, &mut found).unwrap();
        assert_eq!(&found[..4], b"kept");
        was_lost |= &found[4..] != b"lost";
    }
    assert!(was_lost);
}
