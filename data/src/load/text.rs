//! The bytes of a text file, decompressed, from its start or in a part of it that
//! begins and ends with a line.

use std::io::{self, BufRead, BufReader, Read};
use std::ops::Range;

use flate2::read::MultiGzDecoder;
use shoal_proto::Failure;

use super::{Compression, FileFormat, SourceFile};

/// Bytes read at once.
const READ_BYTES: usize = 1024 * 1024;
/// Compressed bytes read at once.
const PACKED_BYTES: usize = 256 * 1024;
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The file's text without a byte order mark.
///
/// # Errors
/// Why its bytes do not come or cannot be decompressed.
pub fn text(file: &SourceFile, format: &FileFormat) -> Result<Box<dyn BufRead + Send>, Failure> {
    let stream = plain(file, format.stream_compression(file.name()))?;
    let mut stream = BufReader::with_capacity(READ_BYTES, stream);
    skip_mark(&mut stream).map_err(|error| file.unreadable(&error))?;
    Ok(Box::new(stream))
}

/// The lines that begin in `range`, as [`Lines`] tells; all of the text where there is none.
pub(super) fn text_in(
    file: &SourceFile,
    format: &FileFormat,
    range: Option<&Range<u64>>,
) -> Result<Box<dyn BufRead + Send>, Failure> {
    match range {
        Some(range) => {
            // What is read at first has a byte order mark whole, and the next one, too: the CSV
            // parser leaves out one of its own, where it gets that in one piece.
            let end = range.end.max(2 * BYTE_ORDER_MARK.len() as u64);
            let lines = Lines::new(|start| file.reader_from(start, end), range);
            Ok(Box::new(lines.map_err(|error| file.unreadable(&error))?))
        }
        None => text(file, format),
    }
}

/// The file's bytes, decompressed.
fn plain(file: &SourceFile, compression: Compression) -> Result<Box<dyn Read + Send>, Failure> {
    let raw = file.reader();
    Ok(match compression {
        Compression::Gzip => Box::new(MultiGzDecoder::new(BufReader::with_capacity(PACKED_BYTES, raw))),
        Compression::Zstd => {
            Box::new(zstd::stream::read::Decoder::new(raw).map_err(|error| file.unreadable(&error))?)
        }
        Compression::None | Compression::Snappy | Compression::Lz4 => Box::new(raw),
    })
}

/// Bytes of the mark that were there.
fn skip_mark(stream: &mut impl BufRead) -> io::Result<usize> {
    let has_mark = stream.fill_buf()?.starts_with(BYTE_ORDER_MARK);
    let bytes = if has_mark { BYTE_ORDER_MARK.len() } else { 0 };
    stream.consume(bytes);
    Ok(bytes)
}

/// Parts of a text of so many bytes, each of about `part_bytes`; together all of it.
pub(super) fn ranges(bytes: u64, part_bytes: u64) -> Vec<Range<u64>> {
    let part_bytes = part_bytes.max(1);
    let count = (bytes / part_bytes).max(1);
    let start = |part: u64| (u128::from(bytes) * u128::from(part) / u128::from(count)) as u64;
    (0..count).map(|part| start(part)..start(part + 1)).collect()
}

/// The lines of which the first byte is in a range, each to its end, wherever that
/// is: ranges that follow one another give all lines of a text once, and where one's
/// lines end the next one's begin. A line ends with its line feed, whatever that
/// means to who reads it.
struct Lines<R> {
    stream: BufReader<R>,
    /// Of the next byte.
    at: u64,
    end: u64,
    /// Where the last line ends, once that is known.
    stop: Option<u64>,
}

impl<R: Read> Lines<R> {
    /// Of what `reader_from` gives from some byte to the end of the text.
    fn new(reader_from: impl FnOnce(u64) -> R, range: &Range<u64>) -> io::Result<Self> {
        // A line begins behind the end of the one before: also at the first byte.
        let at = range.start.saturating_sub(1);
        let stream = BufReader::with_capacity(READ_BYTES, reader_from(at));
        let mut lines = Self { stream, at, end: range.end, stop: None };
        if range.start == 0 {
            lines.at += skip_mark(&mut lines.stream)? as u64;
        } else {
            // Where the line before goes on to the last byte of the range none begins in it. What is
            // behind is not looked at: each part of a text without a line feed would read all that follows.
            let (skipped, is_skipped) = skip_line(&mut lines.stream, range.end.saturating_sub(range.start))?;
            lines.at += skipped;
            lines.stop = (!is_skipped).then_some(lines.at);
        }
        Ok(lines)
    }
}

/// Skips what is left of a line, or the first `bytes_max` of it; how many bytes, and whether it
/// is skipped to its end.
fn skip_line(stream: &mut impl BufRead, bytes_max: u64) -> io::Result<(u64, bool)> {
    let mut skipped = 0;
    while skipped < bytes_max {
        let bytes = stream.fill_buf()?;
        let bytes = &bytes[..bytes.len().min(usize::try_from(bytes_max - skipped).unwrap_or(usize::MAX))];
        let line_end = bytes.iter().position(|byte| *byte == b'\n');
        let taken = line_end.map_or(bytes.len(), |line_end| line_end + 1);
        stream.consume(taken);
        skipped += taken as u64;
        if line_end.is_some() {
            return Ok((skipped, true));
        }
        if taken == 0 {
            break;
        }
    }
    Ok((skipped, false))
}

impl<R: Read> BufRead for Lines<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.stop == Some(self.at) {
            return Ok(&[]);
        }
        let bytes = self.stream.fill_buf()?;
        if self.stop.is_none() {
            // The first line feed from the last byte of the range on.
            let from = self.end.saturating_sub(1).saturating_sub(self.at).min(bytes.len() as u64) as usize;
            let line_end = bytes[from..].iter().position(|byte| *byte == b'\n');
            self.stop = line_end.map(|line_end| self.at + (from + line_end + 1) as u64);
        }
        let left = self.stop.map_or(u64::MAX, |stop| stop - self.at);
        Ok(&bytes[..left.min(bytes.len() as u64) as usize])
    }

    fn consume(&mut self, bytes: usize) {
        self.stream.consume(bytes);
        self.at += bytes as u64;
    }
}

impl<R: Read> Read for Lines<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut bytes = self.fill_buf()?;
        let read = bytes.read(buffer)?;
        self.consume(read);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;

    fn lines_in(text: &str, range: &Range<u64>) -> String {
        let mut found = String::new();
        let from = |start: u64| &text.as_bytes()[(start as usize).min(text.len())..];
        Lines::new(from, range).unwrap().read_to_string(&mut found).unwrap();
        found
    }

    #[test]
    fn a_line_is_in_the_range_in_which_it_begins() {
        let text = "a\nbcd\n\ne";
        for (range, expected) in [
            (0..1, "a\n"),
            (0..2, "a\n"),
            (0..3, "a\nbcd\n"),
            (1..2, ""),
            (2..3, "bcd\n"),
            (3..6, ""),
            (6..7, "\n"),
            (6..8, "\ne"),
            (7..8, "e"),
        ] {
            assert_eq!(lines_in(text, &range), expected, "{range:?}");
        }
    }

    #[test]
    fn ranges_are_all_of_a_text() {
        assert_eq!(ranges(10, 100), Vec::from_iter([(0, 10)].map(|(start, end)| start..end)));
        assert_eq!(ranges(10, 3), vec![0..3, 3..6, 6..10]);
        assert_eq!(ranges(3, 0), vec![0..1, 1..2, 2..3]);
    }

    /// A text, and how many bytes of it were read.
    struct Counted<'a>(&'a [u8], &'a Cell<usize>);

    impl Read for Counted<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let read = self.0.read(buffer)?;
            self.1.set(self.1.get() + read);
            Ok(read)
        }
    }

    #[test]
    fn a_range_in_which_no_line_begins_reads_no_further_than_itself() {
        let text = "a\r".repeat(4 * READ_BYTES);
        let ranges = ranges(text.len() as u64, 2 * READ_BYTES as u64);
        assert_eq!(ranges.len(), 4);
        for range in &ranges {
            let (read, mut found) = (Cell::new(0), String::new());
            let from = |start: u64| Counted(&text.as_bytes()[start as usize..], &read);
            Lines::new(from, range).unwrap().read_to_string(&mut found).unwrap();
            let expected = if range.start == 0 { text.len() } else { 2 * READ_BYTES };
            assert_eq!(read.get(), expected, "{range:?}");
            assert_eq!(found.len(), if range.start == 0 { text.len() } else { 0 }, "{range:?}");
        }
    }

    proptest! {
        #[test]
        fn ranges_give_each_line_once(text in "[a\n\r\"]{1,60}", part_bytes in 1_u64..30) {
            let ranges = ranges(text.len() as u64, part_bytes);
            let parts: Vec<String> = ranges.iter().map(|range| lines_in(&text, range)).collect();
            prop_assert_eq!(parts.concat(), text);
        }
    }
}
