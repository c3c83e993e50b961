//! What a task must know of its query besides the plan: whose it is, its
//! memory limit, and the session's settings. It travels as one gRPC header
//! with every plan.

use http::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};

use super::compression::ExchangeCompression;
use crate::{ErrorCode, Failure, QueryId};

static HEADER: HeaderName = HeaderName::from_static("x-shoal-query");

/// The query that a task belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueryOptions {
    /// The same over all attempts.
    pub query: QueryId,
    /// Which try at it, from 1.
    pub attempt: u32,
    /// Bytes that its operators may hold on one worker.
    pub memory_limit_bytes: u64,
    /// Whether it takes little time: then it does not wait for a thread among those that
    /// take long. Older coordinators do not say.
    #[serde(default)]
    pub is_short: bool,
    /// How rows are compressed that go to another node for it. Older coordinators do not say:
    /// their rows are compressed as by default.
    #[serde(default)]
    pub compression: ExchangeCompression,
    /// `datafusion.*` settings that differ from the default.
    pub settings: Vec<(String, String)>,
}

impl QueryOptions {
    /// The headers that carry it.
    ///
    /// # Errors
    /// `Invalid` where a setting holds what a header cannot.
    pub fn to_headers(&self) -> Result<HeaderMap, Failure> {
        let refuse = |error: &dyn std::fmt::Display| {
            Failure::new(ErrorCode::Invalid, format!("a session setting cannot be sent to workers: {error}"))
        };
        let text = serde_json::to_string(self).map_err(|error| refuse(&error))?;
        let value =
            HeaderValue::from_str(&text.escape_default().to_string()).map_err(|error| refuse(&error))?;
        Ok(HeaderMap::from_iter([(HEADER.clone(), value)]))
    }

    /// Reads it from the headers of a request.
    ///
    /// # Errors
    /// `Invalid` where it is missing or malformed: such a plan does not come
    /// from a coordinator of this version.
    pub fn from_headers(headers: &HeaderMap) -> Result<Self, Failure> {
        let refuse =
            |what: &str| Failure::new(ErrorCode::Invalid, format!("plan refused: its query header {what}"));
        let value = headers.get(&HEADER).ok_or_else(|| refuse("is missing"))?;
        let escaped = value.to_str().map_err(|_| refuse("is not text"))?;
        let text = unescape(escaped).ok_or_else(|| refuse("is badly escaped"))?;
        serde_json::from_str(&text).map_err(|error| refuse(&error.to_string()))
    }
}

/// Undoes `str::escape_default`.
fn unescape(escaped: &str) -> Option<String> {
    let mut text = String::with_capacity(escaped.len());
    let mut chars = escaped.chars();
    while let Some(next) = chars.next() {
        if next != '\\' {
            text.push(next);
            continue;
        }
        match chars.next()? {
            't' => text.push('\t'),
            'r' => text.push('\r'),
            'n' => text.push('\n'),
            plain @ ('\'' | '"' | '\\') => text.push(plain),
            'u' => {
                let hex: String = chars.by_ref().skip(1).take_while(|&digit| digit != '}').collect();
                text.push(char::from_u32(u32::from_str_radix(&hex, 16).ok()?)?);
            }
            _ => return None,
        }
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_survive_a_header() {
        let options = QueryOptions {
            query: QueryId::random(),
            attempt: 2,
            memory_limit_bytes: 1 << 40,
            is_short: true,
            compression: ExchangeCompression::Zstd,
            settings: vec![("datafusion.execution.time_zone".into(), "Zürich \"\\\n'".into())],
        };
        let headers = options.to_headers().unwrap();
        assert_eq!(QueryOptions::from_headers(&headers).unwrap(), options);
        assert!(QueryOptions::from_headers(&HeaderMap::new()).is_err());
    }

    #[test]
    fn a_coordinator_that_says_nothing_of_what_came_later_is_understood() {
        let told = QueryOptions {
            query: QueryId::random(),
            attempt: 1,
            memory_limit_bytes: 7,
            is_short: true,
            compression: ExchangeCompression::Zstd,
            settings: Vec::new(),
        };
        let mut value = serde_json::to_value(&told).unwrap();
        for name in ["is_short", "compression"] {
            value.as_object_mut().unwrap().remove(name).unwrap();
        }
        let text = value.to_string().escape_default().to_string();
        let headers = HeaderMap::from_iter([(HEADER.clone(), HeaderValue::from_str(&text).unwrap())]);
        let options = QueryOptions::from_headers(&headers).unwrap();
        assert_eq!(options, QueryOptions { is_short: false, compression: ExchangeCompression::Auto, ..told });
    }
}
