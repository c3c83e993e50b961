//! Checksums of the blocks of a segment, kept in a file beside it, so that
//! any part of it can be verified before it is used. Parquet's own checksums
//! are of pages only, and a footer has none.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use bytes::Bytes;

use crate::checksum::{self, Joiner};
use crate::file_stream::{read_exact, read_to_send};
use crate::{SegmentName, page_cache};

/// Bytes of a block: what is read and verified at least.
pub const BLOCK_BYTES: u64 = 64 * 1024;
/// Bytes that are read in one go when a whole segment is looked at.
const VERIFIED_AT_ONCE_BYTES: usize = 8 * 1024 * 1024;
/// The extension of the file that holds them, added to the segment's.
pub const EXTENSION: &str = "sums";
/// What the file begins with: its kind and its version.
const MAGIC: &[u8; 8] = b"SHSUMS01";

/// Of blocks.
static JOINER: LazyLock<Joiner> = LazyLock::new(|| Joiner::of_pieces(BLOCK_BYTES as usize));

/// The checksum of each block of one segment. The last block may be shorter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockSums {
    name: SegmentName,
    bytes: u64,
    blocks: Vec<u32>,
}

impl BlockSums {
    /// Where those of the segment at `segment` are.
    pub fn path(segment: &Path) -> PathBuf {
        segment.with_added_extension(EXTENSION)
    }

    /// Length of the segment.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// CRC-32C of the whole segment.
    pub fn crc32c(&self) -> u32 {
        self.crc32c_of(0..self.blocks.len())
    }

    /// CRC-32C of these blocks as one.
    fn crc32c_of(&self, blocks: Range<usize>) -> u32 {
        blocks.fold(0, |before, number| {
            let bytes = BLOCK_BYTES.min(self.bytes - number as u64 * BLOCK_BYTES);
            JOINER.join(before, self.blocks[number], bytes as usize)
        })
    }

    /// The file's bytes: kind, segment, length, checksums, and the checksum of
    /// all that.
    pub fn encode(&self) -> Vec<u8> {
        let name = self.name.to_string();
        let mut file = Vec::with_capacity(32 + name.len() + self.blocks.len() * 4);
        file.extend_from_slice(MAGIC);
        file.extend_from_slice(&(name.len() as u32).to_le_bytes());
        file.extend_from_slice(name.as_bytes());
        file.extend_from_slice(&self.bytes.to_le_bytes());
        self.blocks.iter().for_each(|block| file.extend_from_slice(&block.to_le_bytes()));
        let sum = checksum::crc32c(&file);
        file.extend_from_slice(&sum.to_le_bytes());
        file
    }

    /// Reads what [`BlockSums::encode`] wrote for this segment.
    ///
    /// # Errors
    /// `InvalidData` where it is damaged, or of another segment.
    pub fn decode(name: SegmentName, file: &[u8]) -> io::Result<Self> {
        let sums = Self::parse(name, file);
        sums.ok_or_else(|| damaged(format!("the checksums of segment {name} are damaged or not its own")))
    }

    fn parse(name: SegmentName, file: &[u8]) -> Option<Self> {
        let (file, sum) = file.split_last_chunk::<4>()?;
        if checksum::crc32c(file) != u32::from_le_bytes(*sum) {
            return None;
        }
        let rest = file.strip_prefix(MAGIC)?;
        let (length, rest) = rest.split_first_chunk::<4>()?;
        let (text, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        if text != name.to_string().as_bytes() {
            return None;
        }
        let (bytes, rest) = rest.split_first_chunk::<8>()?;
        let bytes = u64::from_le_bytes(*bytes);
        let (blocks, rest) = rest.as_chunks::<4>();
        let is_whole = rest.is_empty() && blocks.len() as u64 == bytes.div_ceil(BLOCK_BYTES);
        is_whole.then(|| Self {
            name,
            bytes,
            blocks: blocks.iter().map(|sum| u32::from_le_bytes(*sum)).collect(),
        })
    }

    /// Loads those of the segment at `path`.
    ///
    /// # Errors
    /// `NotFound`, `InvalidData`, and what the disk says.
    pub fn load(name: SegmentName, path: &Path) -> io::Result<Self> {
        Self::decode(name, &std::fs::read(Self::path(path))?)
    }

    /// Looks whether all of a segment is as it was written.
    ///
    /// # Errors
    /// `InvalidData` or `UnexpectedEof` where it is not, and what the disk says.
    pub fn verify(&self, file: &File) -> io::Result<()> {
        for start in (0..self.bytes).step_by(VERIFIED_AT_ONCE_BYTES) {
            self.read(file, start..self.bytes.min(start + VERIFIED_AT_ONCE_BYTES as u64))?;
        }
        Ok(())
    }

    /// As [`BlockSums::read`], to be sent at once, with the CRC-32C of the part: of whole
    /// blocks it is known already.
    ///
    /// # Errors
    /// As there.
    pub fn read_summed(&self, file: &File, range: Range<u64>) -> io::Result<(Bytes, u32)> {
        let data = self.verified(file, range.clone(), read_to_send)?;
        let is_at_blocks = range.start.is_multiple_of(BLOCK_BYTES)
            && (range.end.is_multiple_of(BLOCK_BYTES) || range.end == self.bytes);
        let crc32c = if is_at_blocks && !range.is_empty() {
            let [from, to] = [range.start / BLOCK_BYTES, range.end.div_ceil(BLOCK_BYTES)];
            self.crc32c_of(from as usize..to as usize)
        } else {
            checksum::crc32c(&data)
        };
        Ok((data, crc32c))
    }

    /// The part `range` of the segment's file, every block of it verified.
    ///
    /// # Errors
    /// `InvalidData` naming the block whose bytes are not what was written;
    /// `UnexpectedEof` where the file is too short.
    pub fn read(&self, file: &File, range: Range<u64>) -> io::Result<Bytes> {
        self.verified(file, range, read_exact)
    }

    fn verified(
        &self,
        file: &File,
        range: Range<u64>,
        read: impl FnOnce(&File, Range<u64>) -> io::Result<Bytes>,
    ) -> io::Result<Bytes> {
        if range.end > self.bytes || range.start > range.end {
            return Err(io::Error::other(format!(
                "bytes {range:?} of segment {} were asked for, which has {}",
                self.name, self.bytes
            )));
        }
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let blocks = self.blocks_of(&range);
        let whole = read(file, blocks.clone())?;
        self.check(blocks.start, &whole)?;
        Ok(whole.slice((range.start - blocks.start) as usize..(range.end - blocks.start) as usize))
    }

    /// As [`BlockSums::read`], of what the system has in memory; none where it has not, or
    /// where a block is not what was written.
    pub fn read_at_hand(&self, file: &File, range: Range<u64>) -> Option<Bytes> {
        if range.end > self.bytes || range.is_empty() {
            return None;
        }
        let blocks = self.blocks_of(&range);
        let length = usize::try_from(blocks.end - blocks.start).ok()?;
        page_cache::with_bytes(file, blocks.start, length, |whole| {
            self.check(blocks.start, whole).ok()?;
            let wanted = (range.start - blocks.start) as usize..(range.end - blocks.start) as usize;
            Some(Bytes::copy_from_slice(&whole[wanted]))
        })
    }

    /// The bytes of all blocks that have some of `range`.
    fn blocks_of(&self, range: &Range<u64>) -> Range<u64> {
        let start = range.start / BLOCK_BYTES * BLOCK_BYTES;
        start..self.bytes.min(range.end.div_ceil(BLOCK_BYTES) * BLOCK_BYTES)
    }

    /// Looks whether blocks, the first of which begins at `start`, are what was
    /// written.
    fn check(&self, start: u64, blocks: &[u8]) -> io::Result<()> {
        let known = &self.blocks[(start / BLOCK_BYTES) as usize..];
        let starts = (start..).step_by(BLOCK_BYTES as usize);
        for ((block, expected), at) in blocks.chunks(BLOCK_BYTES as usize).zip(known).zip(starts) {
            if checksum::crc32c(block) != *expected {
                return Err(damaged(format!(
                    "segment {}: the bytes from {at} on are not those that were written",
                    self.name
                )));
            }
        }
        Ok(())
    }
}

fn damaged(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Makes the sums of a segment whose bytes come piece by piece.
#[derive(Clone, Debug, Default)]
pub struct BlockSummer {
    bytes: u64,
    blocks: Vec<u32>,
    /// Of the block that is not full yet.
    open: u32,
}

impl BlockSummer {
    /// Takes the next piece.
    pub fn update(&mut self, mut piece: &[u8]) {
        while !piece.is_empty() {
            let room = BLOCK_BYTES - self.bytes % BLOCK_BYTES;
            let length = piece.len().min(room as usize);
            self.open = crc32c::crc32c_append(self.open, &piece[..length]);
            self.bytes += length as u64;
            if self.bytes.is_multiple_of(BLOCK_BYTES) {
                self.blocks.push(std::mem::take(&mut self.open));
            }
            piece = &piece[length..];
        }
    }

    /// The sums of all pieces, as those of the segment `name`.
    pub fn finish(mut self, name: SegmentName) -> BlockSums {
        if !self.bytes.is_multiple_of(BLOCK_BYTES) {
            self.blocks.push(self.open);
        }
        BlockSums { name, bytes: self.bytes, blocks: self.blocks }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use shoal_proto::{SegmentId, TableId};

    use super::*;

    fn name(shard: u32) -> SegmentName {
        SegmentName { table: TableId(7), shard, segment: SegmentId::random() }
    }

    fn bytes(length: usize) -> Vec<u8> {
        (0..length).map(|index| (index * 31 % 251) as u8).collect()
    }

    fn sums(name: SegmentName, whole: &[u8], piece: usize) -> BlockSums {
        let mut summer = BlockSummer::default();
        whole.chunks(piece).for_each(|piece| summer.update(piece));
        summer.finish(name)
    }

    #[test]
    fn pieces_of_any_size_give_the_same_sums_and_they_are_kept() {
        for length in [0, 1, 65_535, 65_536, 65_537, 400_000] {
            let (name, whole) = (name(0), bytes(length));
            let expected = sums(name, &whole, length.max(1));
            for piece in [1, 1000, 65_536, 100_000] {
                assert_eq!(sums(name, &whole, piece), expected);
            }
            assert_eq!(expected.crc32c(), checksum::crc32c(&whole), "{length} bytes");
            assert_eq!(BlockSums::decode(name, &expected.encode()).unwrap(), expected);
        }
    }

    #[test]
    fn every_flipped_byte_of_the_sums_is_noticed_and_others_are_refused() {
        let (one, other) = (name(0), name(1));
        let encoded = sums(one, &bytes(300_000), 4096).encode();
        for index in 0..encoded.len() {
            let mut flipped = encoded.clone();
            flipped[index] ^= 0x10;
            assert!(BlockSums::decode(one, &flipped).is_err(), "byte {index}");
        }
        assert!(BlockSums::decode(other, &encoded).is_err());
        assert!(BlockSums::decode(one, &encoded[..encoded.len() - 4]).is_err());
        assert!(BlockSums::decode(one, b"").is_err());
    }

    #[test]
    fn every_block_is_verified_before_it_is_given() {
        let (name, whole) = (name(0), bytes(300_001));
        let sums = sums(name, &whole, 5000);
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&whole, 0).unwrap();
        let at_blocks = [0..65_536, 65_536..196_608, 262_144..300_001];
        let elsewhere = [0..300_001, 0..1, 65_535..65_537, 100_000..200_000, 300_000..300_001, 5..5, 0..0];
        for range in at_blocks.into_iter().chain(elsewhere) {
            let (read, sum) = sums.read_summed(&file, range.clone()).unwrap();
            assert_eq!(read, whole[range.start as usize..range.end as usize]);
            assert_eq!(sum, checksum::crc32c(&read), "{range:?}");
            // Not every file system can tell what it holds in memory.
            if let Some(at_hand) = sums.read_at_hand(&file, range) {
                assert_eq!(at_hand, read);
            }
        }
        // One byte in each 4 KiB in turn.
        for at in (0..300_001_u64).step_by(4096) {
            let byte = whole[at as usize];
            file.write_all_at(&[byte ^ 1], at).unwrap();
            let error = sums.read(&file, at..at + 1).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
            assert!(sums.read(&file, 0..300_001).is_err());
            assert_eq!(sums.read_at_hand(&file, at..at + 1), None);
            file.write_all_at(&[byte], at).unwrap();
        }
        assert!(sums.read(&file, 0..300_001).is_ok());
        file.set_len(200_000).unwrap();
        assert_eq!(sums.read(&file, 190_000..210_000).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(sums.read_at_hand(&file, 190_000..210_000), None);
        assert!(sums.read(&file, 0..400_000).is_err());
        assert_eq!(sums.read_at_hand(&file, 0..400_000), None);
    }
}
