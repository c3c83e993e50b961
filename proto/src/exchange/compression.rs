//! Whether rows are compressed on their way to another node. Who reads them asks for it: it
//! knows where both stand, and asks for what it can read alone. Each message says of itself
//! whether it is compressed, so that a sender may leave it out.

use std::fmt;
use std::str::FromStr;

use arrow_ipc::CompressionType;
use arrow_ipc::writer::IpcWriteOptions;
use datafusion::common::Result;
use serde::{Deserialize, Serialize};

use crate::query::Compression;

/// How rows of a query are to be compressed that go from node to node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum ExchangeCompression {
    /// Never.
    None,
    /// With LZ4, always.
    Lz4,
    /// With Zstandard, always: fewer bytes than with LZ4, and several times the work.
    Zstd,
    /// With LZ4 between zones, and never within one.
    #[default]
    Auto,
}

impl ExchangeCompression {
    const ALL: [Self; 4] = [Self::None, Self::Lz4, Self::Zstd, Self::Auto];

    /// What to ask a node for that stands in another zone, or in the same one.
    pub fn between(self, is_other_zone: bool) -> Compression {
        match self {
            Self::None => Compression::None,
            Self::Lz4 => Compression::Lz4,
            Self::Zstd => Compression::Zstd,
            Self::Auto if is_other_zone => Compression::Lz4,
            Self::Auto => Compression::None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
            Self::Auto => "auto",
        }
    }
}

impl fmt::Display for ExchangeCompression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for ExchangeCompression {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        let name = text.trim().to_ascii_lowercase();
        let found = Self::ALL.into_iter().find(|compression| compression.name() == name);
        found.ok_or_else(|| format!("`{text}` is no compression; there are none, lz4, zstd and auto"))
    }
}

impl From<ExchangeCompression> for String {
    fn from(compression: ExchangeCompression) -> Self {
        compression.name().to_owned()
    }
}

/// One that only newer coordinators know is none.
impl From<String> for ExchangeCompression {
    fn from(name: String) -> Self {
        name.parse().unwrap_or(Self::None)
    }
}

/// How messages are written that are compressed in this way.
///
/// # Errors
/// None in practice.
pub(super) fn write_options(compression: Compression) -> Result<IpcWriteOptions> {
    let compression = match compression {
        Compression::None => None,
        Compression::Lz4 => Some(CompressionType::LZ4_FRAME),
        Compression::Zstd => Some(CompressionType::ZSTD),
    };
    Ok(IpcWriteOptions::default().try_with_compression(compression)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_to_another_zone_is_compressed_by_itself() {
        let auto = ExchangeCompression::default();
        assert_eq!(auto.between(true), Compression::Lz4);
        assert_eq!(auto.between(false), Compression::None);
        for (always, asked) in [
            (ExchangeCompression::None, Compression::None),
            (ExchangeCompression::Lz4, Compression::Lz4),
            (ExchangeCompression::Zstd, Compression::Zstd),
        ] {
            assert_eq!([true, false].map(|is_other| always.between(is_other)), [asked; 2]);
        }
    }

    #[test]
    fn names_are_read_as_they_are_shown() {
        for compression in ExchangeCompression::ALL {
            assert_eq!(compression.to_string().parse(), Ok(compression));
        }
        assert_eq!(" LZ4 ".parse(), Ok(ExchangeCompression::Lz4));
        let message = "gzip".parse::<ExchangeCompression>().unwrap_err();
        assert!(message.contains("`gzip`") && message.contains("none, lz4, zstd and auto"), "{message}");
        assert_eq!(ExchangeCompression::from("of next year".to_owned()), ExchangeCompression::None);
    }
}
