//! The kinds of value that a setting can have, and their one spelling.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// A kind of value.
pub trait Value: Sized {
    /// Reads it as people write it.
    ///
    /// # Errors
    /// A sentence that says what would be right.
    fn parse(text: &str) -> Result<Self, String>;

    /// The value as TOML; what [`Value::parse`] reads, in quotes where TOML
    /// wants them.
    fn show(&self) -> String;
}

/// Bytes: `4GiB`, `512MiB`, `2000000`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

const UNITS: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

impl Value for ByteSize {
    fn parse(text: &str) -> Result<Self, String> {
        shoal_data::parse_bytes(text).map(Self)
    }

    fn show(&self) -> String {
        let unit = UNITS.iter().find(|(_, factor)| self.0 >= *factor && self.0.is_multiple_of(*factor));
        match unit {
            Some((name, factor)) => format!("\"{}{name}\"", self.0 / factor),
            None => self.0.to_string(),
        }
    }
}

impl Value for Duration {
    fn parse(text: &str) -> Result<Self, String> {
        humantime::parse_duration(text.trim())
            .map_err(|_| "not a duration; write it like 10s, 500ms or 2m".to_owned())
    }

    fn show(&self) -> String {
        quoted(&humantime::format_duration(*self).to_string())
    }
}

impl Value for String {
    fn parse(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Err("it is empty".to_owned());
        }
        Ok(text.to_owned())
    }

    fn show(&self) -> String {
        quoted(self)
    }
}

impl Value for PathBuf {
    fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("it is empty; write a path".to_owned());
        }
        Ok(Self::from(text))
    }

    fn show(&self) -> String {
        quoted(&self.display().to_string())
    }
}

impl Value for SocketAddr {
    fn parse(text: &str) -> Result<Self, String> {
        // `localhost` is what people type; every other name would have to be
        // looked up, and can mean several addresses.
        let numeric = match text.strip_prefix("localhost:") {
            Some(port) => format!("127.0.0.1:{port}"),
            None => text.to_owned(),
        };
        numeric.parse().map_err(|_| {
            "not an address to listen on; write IP:PORT, like 127.0.0.1:7400 or 0.0.0.0:7400 (port 0: any free port)"
                .to_owned()
        })
    }

    fn show(&self) -> String {
        quoted(&self.to_string())
    }
}

impl Value for usize {
    fn parse(text: &str) -> Result<Self, String> {
        match text.trim().replace('_', "").parse() {
            Ok(0) | Err(_) => Err("not a whole number of at least 1".to_owned()),
            Ok(count) => Ok(count),
        }
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for bool {
    fn parse(text: &str) -> Result<Self, String> {
        match text.trim().to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Ok(true),
            "false" | "0" | "no" | "off" => Ok(false),
            _ => Err("not true or false".to_owned()),
        }
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

/// Text as a TOML string.
pub(super) fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<V: Value + PartialEq + std::fmt::Debug>(text: &str, expected: Option<V>) {
        assert_eq!(V::parse(text).ok(), expected, "{text}");
    }

    #[test]
    fn sizes_read_as_people_write_them() {
        check("4GiB", Some(ByteSize(4 << 30)));
        check("4 gib", Some(ByteSize(4 << 30)));
        check("4g", Some(ByteSize(4 << 30)));
        check("1.5GB", Some(ByteSize(1_500_000_000)));
        check("2_000_000", Some(ByteSize(2_000_000)));
        check::<ByteSize>("4 quarts", None);
        check::<ByteSize>("GiB", None);
        check::<ByteSize>("-1", None);
        check::<ByteSize>("99999999TiB", None);
    }

    #[test]
    fn what_is_shown_reads_back() {
        for size in [ByteSize(0), ByteSize(1), ByteSize(4 << 30), ByteSize(1536 << 20), ByteSize(1000)] {
            let shown = size.show();
            check(shown.trim_matches('"'), Some(size));
        }
        for duration in [Duration::from_secs(10), Duration::from_millis(1500)] {
            check(duration.show().trim_matches('"'), Some(duration));
        }
    }

    #[test]
    fn addresses_are_numeric_or_localhost() {
        check("localhost:7400", "127.0.0.1:7400".parse::<SocketAddr>().ok());
        check("[::1]:0", "[::1]:0".parse::<SocketAddr>().ok());
        check::<SocketAddr>("7400", None);
        check::<SocketAddr>("example.com:7400", None);
    }

    #[test]
    fn counts_start_at_one() {
        check("16", Some(16_usize));
        check::<usize>("0", None);
        check::<usize>("-3", None);
        check::<usize>("many", None);
    }
}
