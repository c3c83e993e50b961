//! The one checksum of bytes at rest and of bytes between nodes: CRC-32C,
//! which processors compute at memory speed.

/// CRC-32C of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

/// A CRC-32C that is fed piece by piece.
#[derive(Clone, Copy, Debug, Default)]
pub struct Checksum {
    crc32c: u32,
    bytes: u64,
}

impl Checksum {
    /// Takes the next piece.
    pub fn update(&mut self, piece: &[u8]) {
        self.crc32c = crc32c::crc32c_append(self.crc32c, piece);
        self.bytes += piece.len() as u64;
    }

    /// CRC-32C of all pieces so far, as if they were one.
    pub fn crc32c(&self) -> u32 {
        self.crc32c
    }

    /// Length of all pieces so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_is_the_published_crc32c() {
        // RFC 3720, appendix B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(b""), 0);
    }

    #[test]
    fn pieces_give_what_the_whole_gives() {
        let whole: Vec<u8> = (0..100_000_u32).map(|i| (i * 7 % 251) as u8).collect();
        for piece_bytes in [1, 13, 4096, 99_999] {
            let mut checksum = Checksum::default();
            whole.chunks(piece_bytes).for_each(|piece| checksum.update(piece));
            assert_eq!((checksum.crc32c(), checksum.bytes()), (crc32c(&whole), whole.len() as u64));
        }
    }
}
