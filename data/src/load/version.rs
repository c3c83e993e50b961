//! What tells one version of a file from another.

use object_store::ObjectMeta;

/// A file as somebody saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Its length.
    pub bytes: u64,
    /// When it was last changed, in milliseconds since 1970.
    pub modified_unix_ms: u64,
    /// What an object store calls this version, where it does.
    pub e_tag: Option<String>,
}

impl Version {
    /// Of a file on a disk.
    pub fn of_file(bytes: u64, modified_unix_ms: u64) -> Self {
        Self { bytes, modified_unix_ms, e_tag: None }
    }

    /// Of an object. Its time is in whole seconds here: a store's lists may say it more
    /// exactly than its answers do.
    pub fn of_object(bytes: u64, modified_unix_ms: u64, e_tag: Option<String>) -> Self {
        Self { bytes, modified_unix_ms: modified_unix_ms - modified_unix_ms % 1000, e_tag }
    }

    /// Of an object, as a list or an answer says.
    pub(super) fn of_meta(object: &ObjectMeta) -> Self {
        let modified_unix_ms = u64::try_from(object.last_modified.timestamp_millis()).unwrap_or(0);
        Self::of_object(object.size, modified_unix_ms, object.e_tag.clone())
    }

    /// Whether the bytes are the same, as far as both tell.
    pub fn is_same(&self, other: &Self) -> bool {
        let is_same_change = match (&self.e_tag, &other.e_tag) {
            (Some(one), Some(other)) => plain(one) == plain(other),
            _ => self.modified_unix_ms == other.modified_unix_ms,
        };
        self.bytes == other.bytes && is_same_change
    }

    /// What a store is to answer with, and with nothing else. A weak tag never matches.
    pub(super) fn condition(&self) -> Option<String> {
        self.e_tag.clone().filter(|e_tag| !e_tag.starts_with(WEAK))
    }
}

const WEAK: &str = "W/";

/// A tag without what some stores leave out.
fn plain(e_tag: &str) -> &str {
    e_tag.trim_start_matches(WEAK).trim_matches('"')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(modified_unix_ms: u64, e_tag: Option<&str>) -> Version {
        Version::of_object(7, modified_unix_ms, e_tag.map(str::to_owned))
    }

    #[test]
    fn tags_count_where_both_have_one_and_else_whole_seconds() {
        let listed = object(5_250, Some("\"a\""));
        for (answered, is_same) in [
            (object(5_000, Some("\"a\"")), true),
            (object(9_000, Some("a")), true),
            (object(5_000, Some("W/\"a\"")), true),
            (object(5_250, Some("\"b\"")), false),
            (object(5_000, None), true),
            (object(6_250, None), false),
            (Version { bytes: 8, ..object(5_250, Some("\"a\"")) }, false),
        ] {
            assert_eq!(listed.is_same(&answered), is_same, "{answered:?}");
            assert_eq!(answered.is_same(&listed), is_same, "{answered:?}");
        }
    }

    #[test]
    fn files_have_the_same_time_to_the_millisecond() {
        assert!(Version::of_file(7, 5_250).is_same(&Version::of_file(7, 5_250)));
        assert!(!Version::of_file(7, 5_250).is_same(&Version::of_file(7, 5_251)));
    }

    #[test]
    fn only_a_strong_tag_is_a_condition() {
        assert_eq!(object(0, Some("\"a\"")).condition().as_deref(), Some("\"a\""));
        assert_eq!(object(0, Some("W/\"a\"")).condition(), None);
        assert_eq!(object(0, None).condition(), None);
    }
}
