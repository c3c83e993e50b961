//! A client of the load: it uses one coordinator, and others while that
//! suffers.

use std::sync::Arc;
use std::time::Duration;

use super::coordinators::Coordinators;
use super::log::Log;
use super::victims::Seat;
use crate::client::{Client, ClientError};

/// How long to wait before a statement is tried again.
const PAUSE: Duration = Duration::from_millis(50);

/// One client.
pub(super) struct Asker {
    coordinators: Arc<Coordinators>,
    log: Arc<Log>,
    /// The coordinator that it uses while it can.
    home: usize,
    /// How many further on it looks for one, since that failed.
    detour: usize,
    /// What each of its sessions begins with.
    setting: Option<String>,
    session: Option<(Seat, Client)>,
    /// Tries of statements that failed.
    failures: u64,
}

impl Asker {
    /// The client of this number: clients are dealt to the coordinators in
    /// turn.
    pub(super) fn new(coordinators: Arc<Coordinators>, log: Arc<Log>, number: usize) -> Self {
        Self { coordinators, log, home: number, detour: 0, setting: None, session: None, failures: 0 }
    }

    /// How many tries of its statements failed so far, whyever.
    pub(super) fn failures(&self) -> u64 {
        self.failures
    }

    /// Runs a `SET` in this session and in all to come.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub(super) async fn set(&mut self, sql: &str) -> Result<(), ClientError> {
        self.setting = Some(sql.to_owned());
        self.update("set", sql, sql).await?;
        Ok(())
    }

    /// Rows that a statement changed.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub(super) async fn update(
        &mut self,
        kind: &'static str,
        what: &str,
        sql: &str,
    ) -> Result<i64, ClientError> {
        self.ask(kind, what, move |mut client: Client| async move { client.update(sql).await }).await
    }

    /// The one number that a query gives.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub(super) async fn number(
        &mut self,
        kind: &'static str,
        what: &str,
        sql: &str,
    ) -> Result<i64, ClientError> {
        self.ask(kind, what, move |mut client: Client| async move { client.number(sql).await }).await
    }

    /// Has a coordinator carry out a statement, and another one where that
    /// suffers meanwhile and fails. The log has each such failure.
    ///
    /// # Errors
    /// What a coordinator says that nothing happened to.
    pub(super) async fn ask<T, F>(
        &mut self,
        kind: &'static str,
        what: &str,
        statement: impl Fn(Client) -> F,
    ) -> Result<T, ClientError>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        let coordinators = Arc::clone(&self.coordinators);
        loop {
            let seat = coordinators.seat(self.home + self.detour);
            let attempt = async {
                let client = self.client(seat).await?;
                statement(client).await
            };
            let outcome = tokio::select! {
                outcome = attempt => outcome,
                silence = coordinators.silence(seat) => Err(silence),
            };
            let error = match outcome {
                Ok(answer) => {
                    self.detour = 0;
                    return Ok(answer);
                }
                Err(error) => error,
            };
            self.failures += 1;
            if coordinators.are_several() {
                self.session = None;
                self.detour += 1;
            }
            if !coordinators.explain(seat, &error) {
                return Err(error);
            }
            self.log.on_struck(kind, what, coordinators.name(seat), &error.to_string());
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// The session at this seat; a new one where the last was at another, or
    /// the coordinator was struck since.
    async fn client(&mut self, seat: Seat) -> Result<Client, ClientError> {
        if let Some((last, client)) = &self.session
            && *last == seat
        {
            return Ok(client.clone());
        }
        let mut client = Client::connect(self.coordinators.url(seat)).await?;
        if let Some(setting) = &self.setting {
            client.update(setting).await?;
        }
        self.session = Some((seat, client.clone()));
        Ok(client)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener};
    use std::time::Instant;

    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use tonic::Code;

    use super::super::coordinators::PATIENCE;
    use super::*;

    /// The first of three coordinators takes connections and says nothing; the
    /// others are not there.
    fn three(first: SocketAddr) -> Arc<Coordinators> {
        let nowhere = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let urls = [first, nowhere, nowhere].map(|address| format!("http://{address}"));
        let names = ["coordinator", "coordinator-2", "coordinator-3"].map(str::to_owned);
        Arc::new(Coordinators::new(names.into(), urls.into()))
    }

    #[tokio::test]
    async fn what_a_struck_coordinator_does_not_answer_is_asked_elsewhere_and_may_not_fail_there() {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let coordinators = three(silent.local_addr().unwrap());
        let log = Arc::new(Log::new(None).unwrap());
        let mut asker = Asker::new(Arc::clone(&coordinators), Arc::clone(&log), 0);
        let asking = tokio::spawn(async move {
            let outcome = asker.number("lookup", "97", "SELECT 1").await;
            (outcome, asker.failures())
        });
        tokio::time::sleep(Duration::from_millis(200)).await;
        let long_ago = Instant::now().checked_sub(2 * PATIENCE).unwrap();
        assert_eq!(coordinators.strike(Some(0), long_ago, &mut StdRng::seed_from_u64(1)), Some(0));
        let (outcome, failures) = asking.await.unwrap();
        assert_eq!(outcome.unwrap_err().code, Code::Unavailable);
        assert_eq!((failures, log.totals().on_struck), (2, 1));
    }

    #[tokio::test]
    async fn what_fails_where_nobody_was_struck_is_not_tried_again() {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let log = Arc::new(Log::new(None).unwrap());
        let mut asker = Asker::new(three(silent.local_addr().unwrap()), Arc::clone(&log), 1);
        let error = asker.number("lookup", "97", "SELECT 1").await.unwrap_err();
        assert_eq!(error.code, Code::Unavailable);
        assert_eq!((asker.failures(), log.totals().on_struck), (1, 0));
    }
}
