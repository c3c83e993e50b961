//! The one checksum of bytes at rest and of bytes between nodes: CRC-32C,
//! which processors compute at memory speed.

/// CRC-32C of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

/// Joins checksums of pieces to that of the whole, without their bytes: fast where they
/// have one length.
#[derive(Debug)]
pub struct Joiner {
    piece_bytes: usize,
    /// What each byte of a checksum becomes when a piece of zeros follows, were that
    /// piece's own checksum 0. All of this is linear.
    followed: [[u32; 256]; 4],
}

impl Joiner {
    /// For pieces most of which have so many bytes.
    pub fn of_pieces(piece_bytes: usize) -> Self {
        let of_bit: [u32; 32] = std::array::from_fn(|bit| crc32c::crc32c_combine(1 << bit, 0, piece_bytes));
        let of_byte = |byte: usize, value: usize| {
            let bits = (0..8).filter(|bit| value & (1 << bit) != 0);
            bits.fold(0, |sum, bit| sum ^ of_bit[byte * 8 + bit])
        };
        let followed = std::array::from_fn(|byte| std::array::from_fn(|value| of_byte(byte, value)));
        Self { piece_bytes, followed }
    }

    /// CRC-32C of something with the checksum `before` and one piece of so many bytes
    /// after it, whose checksum is `piece`.
    pub fn join(&self, before: u32, piece: u32, bytes: usize) -> u32 {
        if bytes != self.piece_bytes {
            return crc32c::crc32c_combine(before, piece, bytes);
        }
        let before = before.to_le_bytes().into_iter().zip(&self.followed);
        before.fold(piece, |sum, (byte, followed)| sum ^ followed[usize::from(byte)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joined_checksums_are_that_of_the_whole() {
        let whole: Vec<u8> = (0..10_000_u32).map(|i| (i * 11 % 241) as u8).collect();
        // The last one is shorter, and so may be the first one.
        for piece_bytes in [1, 100, 2_500, 999, 3_000, 20_000] {
            for first_bytes in [0, 1, piece_bytes.min(77), piece_bytes.min(10_000)] {
                let (first, rest) = whole.split_at(first_bytes);
                let joiner = Joiner::of_pieces(piece_bytes);
                let join = |before, piece: &[u8]| joiner.join(before, crc32c(piece), piece.len());
                let joined = rest.chunks(piece_bytes).fold(join(0, first), join);
                assert_eq!(joined, crc32c(&whole), "{first_bytes}, then pieces of {piece_bytes}");
            }
        }
        let joiner = Joiner::of_pieces(2);
        let [ab, cd] = [b"ab", b"cd"].map(|piece| crc32c(piece));
        assert_ne!(joiner.join(ab, cd, 2), joiner.join(cd, ab, 2));
    }

    #[test]
    fn checksum_is_the_published_crc32c() {
        // RFC 3720, appendix B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(b""), 0);
    }
}
