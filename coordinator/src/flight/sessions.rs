//! Who asks: bearer tokens from a handshake, or, without any, one session
//! for each connection and user name.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Instant;

use arrow_flight::BasicAuth;
use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use parking_lot::Mutex;
use prost::Message;
use shoal_proto::Channels;
use tonic::metadata::MetadataMap;
use tonic::{Extensions, Status};

use super::connection::ConnectionDetails;
use super::failures::Failures;
use super::home::other_maker;
use super::status::{invalid, status};
use super::tickets::{PENDING_LIMITS, Pending, STATEMENT_LIMITS, Shelf, Statement};
use crate::{Engine, Error, Session};

/// Who a client is that does not say.
const ANONYMOUS: &str = "anonymous";
/// Bytes of a user name.
const USER_BYTES_MAX: usize = 256;
/// Connections that are remembered by address, where the server was not
/// given [`super::connections`].
const ADDRESSES_MAX: usize = 10_000;
/// Some clients pad base64 and some, such as ADBC's, do not.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
/// Clients of Flight's older handshake send their token under this name.
const OLD_TOKEN_HEADER: &str = "auth-token-bin";

/// What the door remembers between calls.
pub(super) struct Clients {
    pub(super) engine: Engine,
    /// To the other coordinators.
    pub(super) channels: Channels,
    pub(super) statements: Mutex<Shelf<Arc<Statement>>>,
    pub(super) pending: Mutex<Shelf<Pending>>,
    pub(super) failures: Arc<Mutex<Failures>>,
    by_address: Mutex<HashMap<SocketAddr, ConnectionDetails>>,
    /// For sessions that end with their connection.
    itself: Weak<Self>,
}

impl Clients {
    pub(super) fn new(engine: Engine, channels: Channels) -> Arc<Self> {
        let (coordinator, now) = (engine.coordinator(), Instant::now());
        Arc::new_cyclic(|itself| Self {
            engine,
            channels,
            statements: Mutex::new(Shelf::new(STATEMENT_LIMITS, coordinator, now)),
            pending: Mutex::new(Shelf::new(PENDING_LIMITS, coordinator, now)),
            failures: Arc::default(),
            by_address: Mutex::default(),
            itself: itself.clone(),
        })
    }

    /// Opens the session that a handshake asks for.
    ///
    /// # Errors
    /// `Invalid` for credentials that cannot be read.
    pub(super) fn log_in(&self, metadata: &MetadataMap, payload: &[u8]) -> Result<Arc<Session>, Status> {
        let user = match Credentials::of(metadata)? {
            Credentials::User(user) => user,
            Credentials::Token(_) | Credentials::None => match BasicAuth::decode(payload) {
                Ok(basic) => checked_user(&basic.username)?,
                Err(_) => ANONYMOUS.to_owned(),
            },
        };
        Ok(self.engine.open_session(&user))
    }

    /// The session of a request.
    ///
    /// # Errors
    /// `Unauthenticated` for a token that is not, or no longer, known.
    pub(super) fn session(
        &self,
        metadata: &MetadataMap,
        extensions: &Extensions,
    ) -> Result<Arc<Session>, Status> {
        let user = match Credentials::of(metadata)? {
            Credentials::Token(token) => {
                return self.engine.session(&token).ok_or_else(|| self.unknown_session(&token));
            }
            Credentials::User(user) => user,
            Credentials::None => ANONYMOUS.to_owned(),
        };
        let connection = match extensions.get::<ConnectionDetails>() {
            Some(connection) => connection.clone(),
            None => self.connection_at(extensions),
        };
        let mut sessions = connection.sessions().lock();
        if let Some(known) = sessions.iter().find(|known| known.user == user)
            && let Some(session) = self.engine.session(&known.session)
        {
            return Ok(session);
        }
        sessions.retain(|known| known.user != user);
        let session = self.engine.open_session(&user);
        sessions.push(ConnectionSession {
            user,
            session: session.id().to_owned(),
            clients: self.itself.clone(),
        });
        Ok(session)
    }

    /// What was SET must not be lost without a word, so nothing goes on in a new
    /// session by itself.
    fn unknown_session(&self, token: &str) -> Status {
        status(Error::Unauthenticated(match other_maker(&self.engine, token) {
            Some(maker) => format!(
                "the session of this token is at {maker}, and no other coordinator knows it or what was SET in it; \
                 connect again here, and SET it again"
            ),
            None => "the session of this token is unknown, closed or expired; connect again".to_owned(),
        }))
    }

    /// Ends a session, its statements and its queries that wait.
    pub(super) fn close(&self, session: &str) {
        self.statements.lock().drop_owner(session);
        self.pending.lock().drop_owner(session);
        self.engine.close_session(session);
        tracing::debug!("session closed");
    }

    fn connection_at(&self, extensions: &Extensions) -> ConnectionDetails {
        let address = extensions
            .get::<tonic::transport::server::TcpConnectInfo>()
            .and_then(tonic::transport::server::TcpConnectInfo::remote_addr);
        let Some(address) = address else { return ConnectionDetails::new(None) };
        let mut by_address = self.by_address.lock();
        if by_address.len() >= ADDRESSES_MAX && !by_address.contains_key(&address) {
            by_address.clear();
        }
        by_address.entry(address).or_insert_with(|| ConnectionDetails::new(Some(address))).clone()
    }
}

/// A session that ends with its connection.
pub(super) struct ConnectionSession {
    user: String,
    session: String,
    clients: Weak<Clients>,
}

impl fmt::Debug for ConnectionSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionSession").field("user", &self.user).finish_non_exhaustive()
    }
}

impl Drop for ConnectionSession {
    fn drop(&mut self) {
        if let Some(clients) = self.clients.upgrade() {
            clients.close(&self.session);
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Credentials {
    Token(String),
    User(String),
    None,
}

impl Credentials {
    fn of(metadata: &MetadataMap) -> Result<Self, Status> {
        if let Some(value) = metadata.get("authorization") {
            let unreadable = || {
                invalid(
                    "the authorization header is neither `Bearer TOKEN` nor `Basic base64(user:password)`",
                )
            };
            let (scheme, rest) =
                value.to_str().ok().and_then(|text| text.split_once(' ')).ok_or_else(unreadable)?;
            if scheme.eq_ignore_ascii_case("bearer") {
                return Ok(Self::Token(rest.trim().to_owned()));
            }
            if !scheme.eq_ignore_ascii_case("basic") {
                return Err(unreadable());
            }
            let decoded = BASE64.decode(rest.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            let decoded = decoded.ok_or_else(unreadable)?;
            let user = decoded.split_once(':').map_or(decoded.as_str(), |(user, _password)| user);
            return Ok(Self::User(checked_user(user)?));
        }
        if let Some(value) = metadata.get_bin(OLD_TOKEN_HEADER)
            && let Ok(bytes) = value.to_bytes()
        {
            return Ok(Self::Token(String::from_utf8_lossy(&bytes).into_owned()));
        }
        Ok(Self::None)
    }
}

pub(super) fn checked_user(user: &str) -> Result<String, Status> {
    if user.len() > USER_BYTES_MAX {
        return Err(invalid(format!(
            "the user name has {} bytes; at most {USER_BYTES_MAX} are taken",
            user.len()
        )));
    }
    Ok(if user.is_empty() { ANONYMOUS.to_owned() } else { user.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(header: Option<&str>, expected: Option<Credentials>) {
        let mut metadata = MetadataMap::new();
        if let Some(header) = header {
            metadata.insert("authorization", header.parse().unwrap());
        }
        assert_eq!(Credentials::of(&metadata).ok(), expected, "{header:?}");
    }

    #[test]
    fn credentials_are_read_or_refused() {
        check(None, Some(Credentials::None));
        check(Some("Bearer abc"), Some(Credentials::Token("abc".into())));
        check(Some("bearer abc"), Some(Credentials::Token("abc".into())));
        check(Some("Basic YW5uOnNlY3JldA=="), Some(Credentials::User("ann".into())));
        check(Some("Basic YW5uOnNlY3JldA"), Some(Credentials::User("ann".into())));
        check(Some("Basic Og=="), Some(Credentials::User(ANONYMOUS.into())));
        check(Some("Basic ???"), None);
        check(Some("Digest abc"), None);
        check(Some("Bearer"), None);
    }
}
