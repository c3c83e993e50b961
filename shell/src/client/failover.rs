//! Which coordinator the shell is connected to: the first that answers, and
//! another one when that is gone.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::{Address, Addresses, Client, ClientError, text_rows};

/// How long one of several coordinators may take to answer before the next is
/// tried: one that is frozen takes connections and says nothing.
const ANSWERS_WITHIN: Duration = Duration::from_secs(3);
/// How long a new connection is tried for after the old one broke.
const RECONNECT_WITHIN: Duration = Duration::from_secs(10);
/// Pauses before all are tried again: from, to.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// How long a coordinator may take to say which others there are.
const LEARN_TIMEOUT: Duration = Duration::from_secs(10);

impl Client {
    /// Connects to the first that answers, and opens a session for `user`,
    /// unless the address names another.
    ///
    /// # Errors
    /// `Unreachable` where nobody answers; `SessionEnded` where the
    /// credentials are refused.
    pub async fn connect(addresses: &Addresses, user: &str) -> Result<Self, ClientError> {
        let order: Vec<Address> = addresses.iter().cloned().collect();
        let client = first_to_answer(&order, user, None).await?;
        client.known.write().clone_from(addresses);
        Ok(client)
    }

    /// All coordinators that are known, those first that were given.
    pub fn coordinators(&self) -> Addresses {
        self.known.read().clone()
    }

    /// Asks in the background which coordinators there are. One that does not
    /// say changes nothing: it may be of an older version.
    pub fn learn_coordinators(&self) {
        let client = self.clone();
        drop(tokio::spawn(async move {
            let asked = client.collect("SELECT address FROM system.coordinators");
            let Ok(Ok(batches)) = timeout(LEARN_TIMEOUT, asked).await else { return };
            let urls = text_rows(&batches).into_iter().flatten().flatten();
            let others = urls.filter_map(|url| client.address().beside(&url).ok());
            client.known.write().add(others);
        }));
    }

    /// Opens a new connection and a new session in place of lost ones, with
    /// another coordinator where one answers. Tries for some seconds: who leads
    /// may be about to be elected, or the only one to be restarted.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn reconnect(&mut self) -> Result<(), ClientError> {
        let order = self.known.read().ending_with(self.address());
        self.connect_again(&order).await
    }

    /// As [`Client::reconnect`] where the coordinator answers, and knows the
    /// session no more: it is asked first.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn renew(&mut self) -> Result<(), ClientError> {
        let order = self.known.read().beginning_with(self.address());
        self.connect_again(&order).await
    }

    async fn connect_again(&mut self, order: &[Address]) -> Result<(), ClientError> {
        let give_up = Instant::now() + RECONNECT_WITHIN;
        let (mut pause, pause_max) = PAUSE;
        let mut last = None;
        loop {
            let outcome =
                timeout_at(give_up, first_to_answer(order, self.user(), self.cluster.as_deref())).await;
            match outcome {
                Ok(Ok(mut client)) => {
                    client.known = Arc::clone(&self.known);
                    *self = client;
                    return Ok(());
                }
                Ok(Err(error)) if another_may_answer(&error) => last = Some(error),
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(last.unwrap_or_else(|| silent(self.address()))),
            }
            sleep(pause).await;
            pause = (pause * 2).min(pause_max);
        }
    }
}

/// A session with the first of these that answers, in this cluster where one is
/// known.
async fn first_to_answer(
    order: &[Address],
    user: &str,
    cluster: Option<&str>,
) -> Result<Client, ClientError> {
    let mut failures = Vec::new();
    for address in order {
        let opening = Client::open(address, user);
        let opened = match order {
            [_only] => opening.await,
            _ => timeout(ANSWERS_WITHIN, opening).await.unwrap_or_else(|_| Err(silent(address))),
        };
        match opened.and_then(|client| client.in_cluster(cluster)) {
            Ok(client) => return Ok(client),
            Err(error) if another_may_answer(&error) => failures.push((address, error)),
            Err(error) => return Err(error),
        }
    }
    Err(nobody_answers(failures))
}

/// Whether it is this coordinator that is in the way, and not what was asked.
fn another_may_answer(error: &ClientError) -> bool {
    match error {
        ClientError::Unreachable { .. } | ClientError::Lost { .. } | ClientError::Stopping(_) => true,
        ClientError::Statement(failure) => failure.code.is_retryable(),
        _ => false,
    }
}

fn silent(address: &Address) -> ClientError {
    ClientError::Unreachable { address: address.to_string(), cause: "it does not answer".to_owned() }
}

/// One error of those of all coordinators.
fn nobody_answers(mut failures: Vec<(&Address, ClientError)>) -> ClientError {
    if failures.len() == 1
        && let Some((_, error)) = failures.pop()
    {
        return error;
    }
    let places: Vec<&str> = failures.iter().map(|(address, _)| address.place()).collect();
    let causes = failures.iter().map(|(address, error)| match error {
        ClientError::Unreachable { cause, .. } | ClientError::Lost { cause } => {
            format!("{}: {cause}", address.place())
        }
        other => format!("{}: {other}", address.place()),
    });
    ClientError::Unreachable {
        address: format!("shoal://{}", places.join(",")),
        cause: causes.collect::<Vec<_>>().join("; "),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Where nobody listens: a port that was free a moment ago.
    fn nowhere() -> String {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
    }

    #[tokio::test]
    async fn everybody_who_does_not_answer_is_named() {
        let (a, b) = (nowhere(), nowhere());
        let addresses = Addresses::parse(&format!("shoal://{a},{b}")).unwrap();
        let error = Client::connect(&addresses, "ann").await.unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert_eq!(
            error.to_string(),
            format!("cannot connect to shoal://{a},{b}: {a}: Connection refused; {b}: Connection refused")
        );
    }

    #[tokio::test]
    async fn one_that_says_nothing_does_not_hold_up_the_others() {
        // Its queue takes connections; nobody answers there.
        let frozen = TcpListener::bind("127.0.0.1:0").unwrap();
        let silent = frozen.local_addr().unwrap();
        let text = format!("shoal://{silent},{}", nowhere());
        let error = Client::connect(&Addresses::parse(&text).unwrap(), "ann").await.unwrap_err().to_string();
        assert!(error.contains(&format!("{silent}: it does not answer; ")), "{error}");
        assert!(error.ends_with("Connection refused"), "{error}");
    }
}
