//! A set of hashes of bounded size that may say of others that they are in it,
//! and never of one of its own that it is not.

/// Bits of a set that is being filled: of some 700,000 hashes half are set.
const BITS_MAX: usize = 1 << 22;
/// Bits that a small set is folded to at least.
const BITS_MIN: usize = 1 << 10;
/// Bits that a number of a bit in a word takes.
const PLACE_BITS: u32 = WORD.trailing_zeros();
/// Bits of a word.
const WORD: usize = u64::BITS as usize;

/// A Bloom filter over hashes of 64 bits, register-blocked: all bits of a hash are in
/// one word, so that to look for it is one read and no branch. Its words are a power of
/// two, so that one half can be laid over the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bloom {
    words: Vec<u64>,
    /// How many bits are set.
    ones: usize,
}

impl Default for Bloom {
    fn default() -> Self {
        Self::new()
    }
}

impl Bloom {
    /// Bytes that a set takes while it is filled.
    pub const BYTES_MAX: usize = BITS_MAX / 8;

    /// An empty set of the largest size.
    pub fn new() -> Self {
        Self { words: vec![0; BITS_MAX / WORD], ones: 0 }
    }

    fn bits(&self) -> usize {
        self.words.len() * WORD
    }

    /// The word of a hash among so many, and its four bits in there. In a set of half
    /// the size they are the same but for the highest bit of the word's number.
    #[inline]
    fn place(hash: u64, words: usize) -> (usize, u64) {
        // Hashes that find a partition have low bits in common.
        let mixed = (hash ^ (hash >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let bit = |number: u32| 1_u64 << ((mixed >> (8 + number * PLACE_BITS)) & (WORD as u64 - 1));
        ((mixed >> 40) as usize & (words - 1), bit(0) | bit(1) | bit(2) | bit(3))
    }

    /// Adds a hash.
    pub fn insert(&mut self, hash: u64) {
        let (word, bits) = Self::place(hash, self.words.len());
        let word = &mut self.words[word];
        self.ones += (bits & !*word).count_ones() as usize;
        *word |= bits;
    }

    /// False only for a hash that was not added.
    #[inline]
    pub fn may_have(&self, hash: u64) -> bool {
        let (word, bits) = Self::place(hash, self.words.len());
        self.words[word] & bits == bits
    }

    /// Whether it says of too many that they are in it to be worth a look.
    pub fn is_full(&self) -> bool {
        self.ones * 2 > self.bits()
    }

    /// The same set in as few bits as keep it worth a look, also once it is put together
    /// with others of its kind, so many `parts` in all.
    #[must_use]
    pub fn folded(mut self, parts: usize) -> Self {
        let ones = |bloom: &Self| bloom.ones.saturating_mul(parts.max(1));
        while self.bits() > BITS_MIN && ones(&self).saturating_mul(8) <= self.bits() {
            let upper = self.words.split_off(self.words.len() / 2);
            self.words.iter_mut().zip(upper).for_each(|(lower, upper)| *lower |= upper);
            self.count();
        }
        self
    }

    /// All that is in one of both.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        let (mut large, small) =
            if self.words.len() >= other.words.len() { (self, other) } else { (other, self) };
        // A folded set is one of twice the size whose halves are the same.
        large.words.iter_mut().zip(small.words.iter().cycle()).for_each(|(word, more)| *word |= more);
        large.count();
        large
    }

    fn count(&mut self) {
        self.ones = self.words.iter().map(|word| word.count_ones() as usize).sum();
    }

    /// Its words, little-endian.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// What [`Bloom::to_bytes`] gave; none for what cannot have come from there.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (words, rest) = bytes.as_chunks::<8>();
        let is_size = words.len().is_power_of_two() && (BITS_MIN..=BITS_MAX).contains(&(words.len() * WORD));
        if !is_size || !rest.is_empty() {
            return None;
        }
        let mut bloom = Self { words: words.iter().map(|word| u64::from_le_bytes(*word)).collect(), ones: 0 };
        bloom.count();
        Some(bloom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(hashes: impl Iterator<Item = u64>) -> Bloom {
        let mut bloom = Bloom::new();
        hashes.for_each(|hash| bloom.insert(hash.wrapping_mul(0xd6e8_feb8_6659_fd93)));
        bloom
    }

    fn hits(bloom: &Bloom, hashes: impl Iterator<Item = u64>) -> usize {
        hashes.filter(|hash| bloom.may_have(hash.wrapping_mul(0xd6e8_feb8_6659_fd93))).count()
    }

    #[test]
    fn a_folded_set_is_small_and_still_tells_most_others() {
        let bloom = of(1..=1000).folded(1);
        assert!(bloom.to_bytes().len() <= 8 * 1024, "{} bytes", bloom.to_bytes().len());
        assert_eq!(hits(&bloom, 1..=1000), 1000);
        assert!(hits(&bloom, 1001..=11_000) < 500);
    }

    #[test]
    fn sets_of_different_sizes_are_put_together() {
        let (few, many) = (of(1..=10).folded(1), of(1000..=60_000).folded(1));
        assert!(few.words.len() < many.words.len());
        for both in [few.clone().union(many.clone()), many.union(few)] {
            assert_eq!(hits(&both, (1..=10).chain(1000..=60_000)), 59_011);
            assert!(!both.is_full());
        }
    }

    #[test]
    fn parts_that_are_folded_apart_are_no_full_set_together() {
        for (parts, keys) in [(4_u64, 3_000), (16, 3_000), (64, 7_000), (16, 1)] {
            let part = |part: u64| of((0..keys).map(|key| key * parts + part + 1)).folded(parts as usize);
            let whole = (0..parts).map(part).reduce(Bloom::union).unwrap();
            let all = parts * keys;
            assert!(!whole.is_full(), "{parts} parts of {keys} keys");
            assert_eq!(hits(&whole, 1..=all), all as usize);
            assert!(hits(&whole, all + 1..=all + 10_000) < 500, "{parts} parts of {keys} keys");
        }
    }

    #[test]
    fn too_many_make_it_full() {
        assert!(!of(1..=600_000).is_full());
        assert!(of(1..=1_000_000).is_full());
    }

    #[test]
    fn bytes_that_are_no_set_are_refused() {
        let bytes = of(1..=10).folded(1).to_bytes();
        assert_eq!(Bloom::from_bytes(&bytes), Some(of(1..=10).folded(1)));
        for wrong in [&[][..], &bytes[1..], &bytes[..bytes.len() - 8], &[0; 8], &[0; 24]] {
            assert_eq!(Bloom::from_bytes(wrong), None);
        }
        assert_eq!(Bloom::from_bytes(&vec![0; 2 * Bloom::BYTES_MAX]), None);
    }
}
