//! What happens in a story, line by line, for a digest of all of it and for
//! people to read the end.

use std::collections::VecDeque;
use std::fmt::{self, Write};

use shoal_data::SegmentName;

use super::context::Millis;

/// Lines that are kept.
const KEPT: usize = 150;

/// The lines of a story so far.
pub(super) struct Trace {
    digest: u32,
    line: String,
    last: VecDeque<String>,
    is_told: bool,
}

impl Trace {
    /// `is_told`: whether each line is printed at once.
    pub(super) fn new(is_told: bool) -> Self {
        Self { digest: 0, line: String::new(), last: VecDeque::with_capacity(KEPT), is_told }
    }

    pub(super) fn note(&mut self, now: Millis, what: fmt::Arguments<'_>) {
        self.line.clear();
        write!(self.line, "{now:>6} {what}").unwrap();
        self.digest = crc32c::crc32c_append(self.digest, self.line.as_bytes());
        if self.is_told {
            eprintln!("{}", self.line);
        }
        let mut kept = match self.last.len() {
            KEPT => self.last.pop_front().unwrap_or_default(),
            _ => String::new(),
        };
        kept.clear();
        kept.push_str(&self.line);
        self.last.push_back(kept);
    }

    /// The same for the same lines.
    pub(super) fn digest(&self) -> u32 {
        self.digest
    }

    /// The last lines.
    pub(super) fn end(&self) -> impl Iterator<Item = &str> {
        self.last.iter().map(String::as_str)
    }
}

/// A segment in few characters: `table/shard/number`.
pub(super) struct Brief<'a>(pub(super) &'a SegmentName);

impl fmt::Display for Brief<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SegmentName { table, shard, segment } = self.0;
        write!(f, "{table}/{shard}/{}", segment.0.as_u128())
    }
}

/// Several of them.
pub(super) struct Briefs<'a>(pub(super) &'a [SegmentName]);

impl fmt::Display for Briefs<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (index, name) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { " " };
            write!(f, "{separator}{}", Brief(name))?;
        }
        f.write_str("]")
    }
}
