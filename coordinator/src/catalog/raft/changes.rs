//! Changes of the catalog, here or at the leader: each is made once, however often
//! it is sent, and where nobody knows whether it was, that can be settled.

use std::io;
use std::time::Duration;

use openraft::error::{ClientWriteError, RaftError};
use serde::Serialize;
use shoal_proto::{ErrorCode, Failure};
use uuid::Uuid;

use super::core::{ANSWER_MAX, Answer, Core, Unanswered};
use super::peers::Call;
use super::types::{Proposal, Reply};
use crate::Error;
use crate::catalog::command::{Command, Outcome};
use crate::catalog::disk;

/// How long a change may look for a leader and its majority.
const CHANGE_MAX: Duration = Duration::from_secs(10);
/// Bytes of one change: it must reach a majority before anything else does.
const COMMAND_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Under which a change is sent, each time that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Number {
    id: Uuid,
    since: u64,
}

/// What became of a change in the end.
#[derive(Debug)]
pub enum Settled {
    /// It was made.
    Made(Outcome),
    /// Why it was not made, and never will be.
    NotMade(Error),
    /// Nobody knows, and nobody will.
    Unknown(Error),
}

/// Why a change did not come about.
#[derive(Debug)]
pub enum ChangeError {
    /// It was not made, and will not be.
    Refused(Error),
    /// Nobody knows whether it was made, or still will be.
    Unsettled {
        /// What [`Core::settle`] needs.
        change: Number,
        /// Why.
        error: Error,
    },
}

impl From<ChangeError> for Error {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::Refused(error) | ChangeError::Unsettled { error, .. } => error,
        }
    }
}

impl Core {
    /// Makes a change. It is durable, and visible here, when this returns.
    ///
    /// # Errors
    /// Why the catalog refuses it; that no majority answers, and whether the
    /// change may be made all the same.
    pub async fn change(&self, command: Command) -> Result<Outcome, ChangeError> {
        self.make(None, command).await
    }

    /// As [`Self::change`], for what this coordinator decided as the leader of this
    /// term: where another one leads by then, it is refused.
    ///
    /// # Errors
    /// The same.
    pub async fn change_in(&self, term: u64, command: Command) -> Result<Outcome, ChangeError> {
        self.make(Some(term), command).await
    }

    async fn make(&self, term: Option<u64>, command: Command) -> Result<Outcome, ChangeError> {
        check_size(&command).map_err(ChangeError::Refused)?;
        let change = self.number();
        match self.propose(&self.proposal(change, term, Some(command))).await {
            Ok(reply) => match outcome(reply) {
                Some(outcome) => outcome.map_err(ChangeError::Refused),
                None => Err(ChangeError::Unsettled { change, error: forgotten() }),
            },
            Err(Unanswered { is_sent: true, why }) => {
                let what = "; whether the change was made is not known: look before you try again";
                Err(ChangeError::Unsettled { change, error: self.unreached(what, &why) })
            }
            Err(Unanswered { why, .. }) if why.code == ErrorCode::Unavailable => {
                Err(ChangeError::Refused(self.unreached("; nothing was changed", &why)))
            }
            Err(Unanswered { why, .. }) => Err(ChangeError::Refused(why.into())),
        }
    }

    /// Sees to it that a change that is not settled is made or never made.
    /// Takes as long as there is no majority.
    pub async fn settle(&self, change: Number) -> Settled {
        loop {
            match self.propose(&self.proposal(change, None, None)).await {
                Ok(reply) => {
                    return match outcome(reply) {
                        Some(Ok(outcome)) => Settled::Made(outcome),
                        Some(Err(error)) => Settled::NotMade(error),
                        None => Settled::Unknown(forgotten()),
                    };
                }
                Err(Unanswered { why, .. }) if self.raft.metrics().has_changed().is_err() => {
                    return Settled::Unknown(why.into());
                }
                Err(Unanswered { why, .. }) => tracing::warn!(%why, "a change is not settled yet"),
            }
            tokio::time::sleep(ANSWER_MAX).await;
        }
    }

    /// Waits, as the leader of this term, until all that is in its log by now is
    /// applied here: also changes of which nobody knows yet whether they are made.
    ///
    /// # Errors
    /// `Unavailable` without a majority; `Invalid` where another one leads by now.
    pub async fn apply_all(&self, term: u64) -> Result<(), Error> {
        match self.propose(&self.proposal(self.number(), Some(term), None)).await {
            Ok(Reply::Abandoned) => Ok(()),
            Ok(reply) => outcome(reply).unwrap_or_else(|| Err(forgotten())).map(drop),
            Err(Unanswered { why, .. }) => Err(why.into()),
        }
    }

    /// A number for a change that is made from now on.
    fn number(&self) -> Number {
        Number { id: Uuid::new_v4(), since: self.published.applied.borrow().entries }
    }

    fn proposal(
        &self,
        Number { id, since }: Number,
        term: Option<u64>,
        command: Option<Command>,
    ) -> Proposal {
        Proposal { id, from: self.me, since, term, command }
    }

    async fn propose(&self, proposal: &Proposal) -> Result<Reply, Unanswered> {
        let limits = (CHANGE_MAX, ANSWER_MAX.max(CHANGE_MAX / 2));
        let (index, reply): (u64, Reply) =
            self.at_leader(Call::Propose, proposal, limits, || self.propose_here(proposal.clone())).await?;
        // Whoever made the change sees it, here too.
        let mut applied = self.published.applied.subscribe();
        let seen =
            tokio::time::timeout(CHANGE_MAX, applied.wait_for(|applied| applied.entries > index)).await;
        if !matches!(seen, Ok(Ok(_))) {
            tracing::warn!(index, "a change of the catalog is made, and has not come here");
        }
        Ok(reply)
    }

    /// Takes a proposal as the leader: its place in the log, and what came of it.
    ///
    /// # Errors
    /// `Exhausted` where the disk of this coordinator is full.
    pub async fn propose_here(&self, proposal: Proposal) -> Result<Answer<(u64, Reply)>, Failure> {
        let _proposing = self.proposals.token();
        // Looked at with the token in hand: whoever closes waits for that.
        if self.proposals.is_closed() {
            return Ok(Answer::NotLeader);
        }
        if proposal.command.as_ref().is_some_and(Command::adds) && !disk::has_room(&self.path) {
            return Err(Failure::new(
                ErrorCode::Exhausted,
                format!(
                    "the disk of the catalog ({}) is full; nothing was changed; free some space there",
                    self.path.display()
                ),
            ));
        }
        match self.raft.client_write(proposal).await {
            Ok(written) => Ok(Answer::Done((written.log_id.index, written.data))),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => Ok(Answer::NotLeader),
            // It may be in the log of others.
            Err(error) => Err(Failure::new(ErrorCode::Unavailable, error.to_string())),
        }
    }
}

/// How many bytes are written, and nothing of them.
struct Counted(usize);

impl io::Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn check_size(command: &Command) -> Result<(), Error> {
    check_change_bytes(bytes_in_change(command)?, command.segments())
}

/// Bytes of a change, or of a part of one, as it is sent.
///
/// # Errors
/// None in practice.
pub fn bytes_in_change<T: Serialize + ?Sized>(part: &T) -> Result<usize, Error> {
    let mut counted = Counted(0);
    serde_json::to_writer(&mut counted, part)
        .map_err(|error| Error::Internal(format!("a change of the catalog: {error}")))?;
    Ok(counted.0)
}

/// Whether a change of so many bytes, with so many segments, can be made.
///
/// # Errors
/// `Exhausted` where it cannot.
pub fn check_change_bytes(bytes: usize, segments: usize) -> Result<(), Error> {
    if bytes <= COMMAND_BYTES_MAX {
        return Ok(());
    }
    let what = match segments {
        0 => String::new(),
        segments => format!(" ({segments} segments)"),
    };
    Err(Error::Exhausted(format!(
        "this change of the catalog takes {bytes} bytes{what}, and one may take {COMMAND_BYTES_MAX}; nothing was \
         changed; load in several parts"
    )))
}

/// What came of a change; none where nobody knows.
fn outcome(reply: Reply) -> Option<Result<Outcome, Error>> {
    match reply {
        Reply::Done(outcome) => Some(Ok(outcome)),
        Reply::Refused(error) => Some(Err(error.into())),
        Reply::Abandoned => {
            Some(Err(Error::Unavailable("the change was given up before a majority had it".to_owned())))
        }
        Reply::Forgotten | Reply::Nothing => None,
    }
}

fn forgotten() -> Error {
    Error::Unavailable(
        "the catalog has changed too often meanwhile to say whether the change was made: look before you try again"
            .to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use shoal_data::{PackedStatistics, Segment};
    use shoal_proto::{SegmentId, TableId};

    use super::*;
    use crate::catalog::WriteRecord;

    #[test]
    fn what_parts_of_a_write_take_its_commit_takes_too() {
        let segments: Vec<Segment> = (0..3)
            .map(|shard| Segment {
                id: SegmentId::random(),
                table: TableId(1),
                shard,
                rows: 10,
                bytes: 1000,
                crc32c: 7,
                columns: PackedStatistics::default(),
                replicas: vec!["w1".into(), "w2".into()],
            })
            .collect();
        let parts: usize = segments.chunks(1).map(|part| bytes_in_change(part).unwrap()).sum();
        let write = WriteRecord { id: "w".into(), rows: 30 };
        let commit =
            Command::CommitWrite { write, table: TableId(1), segments, replace: false, sketches: None };
        let whole = bytes_in_change(&commit).unwrap();
        assert!(parts > 300 && parts <= whole, "{parts} bytes of {whole}");
    }

    #[test]
    fn a_change_that_is_too_large_says_of_how_many_segments() {
        check_change_bytes(COMMAND_BYTES_MAX, 9).unwrap();
        let error = check_change_bytes(COMMAND_BYTES_MAX + 1, 9).unwrap_err();
        assert_eq!(error.code(), ErrorCode::Exhausted);
        assert!(error.to_string().contains("8388609 bytes (9 segments)"), "{error}");
    }
}
