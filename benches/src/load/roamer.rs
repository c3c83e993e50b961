//! A client as users have them: it is connected to one of several coordinators,
//! and goes on at the next one when that is stopped.

use std::sync::Arc;
use std::time::Duration;

use tonic::Code;

use super::doors::{Doors, Seat};
use crate::client::{Client, ClientError};

/// How long a connection may take.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// How long an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// What a coordinator says that is stopping, and did nothing.
const STOPPING: &str = "is stopping";

/// How often a client had to go on elsewhere, because its coordinator was
/// stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Detours {
    /// Statements that were refused there, before anything was done.
    pub refused: u64,
    /// Statements that ran there and were cut off: sent again.
    pub repeated: u64,
}

impl Detours {
    /// Adds those of another client.
    pub fn add(&mut self, other: Self) {
        self.refused += other.refused;
        self.repeated += other.repeated;
    }
}

/// One client.
pub struct Roamer {
    doors: Arc<Doors>,
    /// The coordinator with which it began.
    home: usize,
    at: usize,
    returns: bool,
    session: Option<(Seat, Client)>,
    detours: Detours,
}

impl Roamer {
    /// A client of the coordinator of this number.
    pub fn new(doors: Arc<Doors>, home: usize) -> Self {
        Self { doors, home, at: home, returns: false, session: None, detours: Detours::default() }
    }

    /// The same client, which comes back to its coordinator when that is back.
    pub fn returning(mut self) -> Self {
        self.returns = true;
        self
    }

    /// How often it went on elsewhere so far.
    pub fn detours(&self) -> Detours {
        self.detours
    }

    /// Has a coordinator answer, and the next one where that is being stopped:
    /// a question that it refused, or was at, is asked again there.
    ///
    /// # Errors
    /// What a coordinator says that is not being stopped.
    pub async fn ask<T, F>(&mut self, question: impl Fn(Client) -> F) -> Result<T, ClientError>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        if self.returns && self.doors.is_open(self.home) {
            self.at = self.home;
        }
        let mut left = self.doors.count();
        loop {
            let (seat, connected) = self.client().await;
            let is_sent = connected.is_ok();
            let outcome = match connected {
                Ok(client) => match tokio::time::timeout(ANSWER_MAX, question(client)).await {
                    Ok(outcome) => outcome,
                    Err(_) => Err(silent(self.doors.url(seat), ANSWER_MAX)),
                },
                Err(error) => Err(error),
            };
            let error = match outcome {
                Ok(answer) => {
                    // Whatever happened before, the session is good now.
                    if let Some((taken, _)) = &mut self.session {
                        *taken = self.doors.seat(taken.door);
                    }
                    return Ok(answer);
                }
                Err(error) => error,
            };
            self.session = None;
            self.at += 1;
            if left == 0 || !self.doors.is_excused(seat) {
                return Err(error);
            }
            left -= 1;
            // A session that is not known was of the process before.
            if error.message.contains(STOPPING) || error.code == Code::Unauthenticated {
                self.detours.refused += 1;
            } else if is_sent {
                self.detours.repeated += 1;
            }
        }
    }

    /// Its session where it is now; a new one where the last was elsewhere.
    async fn client(&mut self) -> (Seat, Result<Client, ClientError>) {
        let seat = self.doors.seat(self.at);
        if let Some((taken, client)) = &self.session
            && taken.door == seat.door
        {
            return (*taken, Ok(client.clone()));
        }
        let url = self.doors.url(seat);
        let connecting = tokio::time::timeout(CONNECT_MAX, Client::connect(url));
        let connected = connecting.await.unwrap_or_else(|_| Err(silent(url, CONNECT_MAX)));
        if let Ok(client) = &connected {
            self.session = Some((seat, client.clone()));
        }
        (seat, connected)
    }
}

fn silent(url: &str, limit: Duration) -> ClientError {
    ClientError { code: Code::DeadlineExceeded, message: format!("no answer of {url} within {limit:?}") }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Three doors at which nobody is.
    fn nowhere() -> Arc<Doors> {
        let urls = [(); 3].map(|()| {
            let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            format!("http://{address}")
        });
        Arc::new(Doors::at(&urls))
    }

    async fn ask(roamer: &mut Roamer) -> ClientError {
        roamer.ask(|mut client: Client| async move { client.number("SELECT 1").await }).await.unwrap_err()
    }

    #[tokio::test]
    async fn a_coordinator_that_is_not_being_stopped_must_answer() {
        let doors = nowhere();
        let mut roamer = Roamer::new(Arc::clone(&doors), 1);
        let error = ask(&mut roamer).await;
        assert!(error.message.contains(doors.url(doors.seat(1))), "{error}");
        assert_eq!(roamer.detours(), Detours::default());
    }

    #[tokio::test]
    async fn the_next_one_is_asked_while_a_coordinator_is_being_stopped() {
        let doors = nowhere();
        doors.close("b").unwrap();
        let mut roamer = Roamer::new(Arc::clone(&doors), 1);
        let error = ask(&mut roamer).await;
        assert!(error.message.contains(doors.url(doors.seat(2))), "{error}");
        // Nothing was sent.
        assert_eq!(roamer.detours(), Detours::default());
    }
}
