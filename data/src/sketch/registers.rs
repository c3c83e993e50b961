//! The registers of one `HyperLogLog` sketch, what they say, and how they are packed.

use std::f64::consts::LN_2;

/// Bits of a hash that choose a register.
const INDEX_BITS: u32 = 10;
/// Registers; the standard error is 1.04 by their root, 3.25 %.
const REGISTERS: usize = 1 << INDEX_BITS;
/// Bits of a hash that a register looks at.
const RANK_BITS: u32 = u64::BITS - INDEX_BITS;
/// The greatest value of a register: all those bits are zero. It fits in [`PACKED_BITS`].
const RANK_MAX: u8 = (RANK_BITS + 1) as u8;
/// Bits of a packed register.
const PACKED_BITS: usize = 6;
/// Bytes of all registers, packed. Fewer bytes are pairs of a register's place and its value.
const DENSE_BYTES: usize = REGISTERS * PACKED_BITS / 8;
/// Bytes of such a pair: the place in the upper bits, the value in the lower ones.
const PAIR_BYTES: usize = 2;
const RANK_MASK: u16 = (1 << PACKED_BITS) - 1;

/// For each of the parts into which hashes fall, the longest row of zeros in it, plus one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Registers(Box<[u8; REGISTERS]>);

impl Default for Registers {
    fn default() -> Self {
        Self(Box::new([0; REGISTERS]))
    }
}

impl Registers {
    /// Takes the hash of a value.
    pub(super) fn add(&mut self, hash: u64) {
        let hash = mixed(hash);
        let place = (hash >> RANK_BITS) as usize;
        // The bit behind the last one ends the zeros.
        let rest = (hash << INDEX_BITS) | (1 << (INDEX_BITS - 1));
        let rank = (rest.leading_zeros() + 1) as u8;
        if let Some(register) = self.0.get_mut(place)
            && *register < rank
        {
            *register = rank;
        }
    }

    /// Takes all that the other has seen.
    pub(super) fn take_in(&mut self, other: &Self) {
        for (register, other) in self.0.iter_mut().zip(other.0.iter()) {
            *register = (*register).max(*other);
        }
    }

    /// About how many different hashes were taken: the estimator of O. Ertl, "New cardinality
    /// estimation algorithms for `HyperLogLog` sketches" (2017), which is as good for few of them
    /// as for many.
    pub(super) fn distinct(&self) -> u64 {
        let mut counts = [0_u32; RANK_MAX as usize + 1];
        for register in self.0.iter() {
            if let Some(count) = counts.get_mut(usize::from(*register)) {
                *count += 1;
            }
        }
        let registers = REGISTERS as f64;
        let [none, between @ .., full] = counts;
        let mut sum = registers * tau(1.0 - f64::from(full) / registers);
        for count in between.iter().rev() {
            sum = 0.5 * (sum + f64::from(*count));
        }
        sum += registers * sigma(f64::from(none) / registers);
        (registers * registers / (2.0 * LN_2) / sum).round() as u64
    }

    /// Pairs where few registers are set, otherwise all of them.
    pub(super) fn packed(&self) -> Vec<u8> {
        let set = self.0.iter().filter(|register| **register > 0).count();
        if set * PAIR_BYTES < DENSE_BYTES {
            let set = (0_u16..).zip(self.0.iter()).filter(|(_, register)| **register > 0);
            return set
                .flat_map(|(place, register)| ((place << PACKED_BITS) | u16::from(*register)).to_le_bytes())
                .collect();
        }
        let mut packed = Vec::with_capacity(DENSE_BYTES);
        for four in self.0.chunks_exact(4) {
            let bits = four.iter().rev().fold(0_u32, |bits, one| (bits << PACKED_BITS) | u32::from(*one));
            packed.extend(bits.to_le_bytes().into_iter().take(3));
        }
        packed
    }

    /// None for bytes that no registers have.
    pub(super) fn from_packed(packed: &[u8]) -> Option<Self> {
        let mut registers = Self::default();
        if packed.len() == DENSE_BYTES {
            for (four, bytes) in registers.0.chunks_exact_mut(4).zip(packed.chunks_exact(3)) {
                let mut bits = bytes.iter().rev().fold(0_u32, |bits, byte| (bits << 8) | u32::from(*byte));
                for register in four {
                    *register = (bits & u32::from(RANK_MASK)) as u8;
                    bits >>= PACKED_BITS;
                }
            }
        } else {
            if packed.len() > DENSE_BYTES || !packed.len().is_multiple_of(PAIR_BYTES) {
                return None;
            }
            for pair in packed.chunks_exact(PAIR_BYTES) {
                let pair = u16::from_le_bytes(pair.try_into().ok()?);
                *registers.0.get_mut(usize::from(pair >> PACKED_BITS))? = (pair & RANK_MASK) as u8;
            }
        }
        registers.0.iter().all(|register| *register <= RANK_MAX).then_some(registers)
    }
}

/// The finaliser of splitmix64, which moves all bits: hashes of numbers need not be even in
/// each of their bits.
fn mixed(hash: u64) -> u64 {
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

/// What registers that saw nothing, this share of all, add to the sum.
fn sigma(mut share: f64) -> f64 {
    if share >= 1.0 {
        return f64::INFINITY;
    }
    let (mut power, mut sum) = (1.0, share);
    loop {
        share *= share;
        let before = sum;
        sum += share * power;
        power += power;
        if sum <= before {
            return sum;
        }
    }
}

/// The same of registers that can grow no more, of which 1 minus this share are.
fn tau(mut share: f64) -> f64 {
    if share <= 0.0 || share >= 1.0 {
        return 0.0;
    }
    let (mut power, mut sum) = (1.0, 1.0 - share);
    loop {
        share = share.sqrt();
        let before = sum;
        power *= 0.5;
        sum -= (1.0 - share).powi(2) * power;
        if sum >= before {
            return sum / 3.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(hashes: impl IntoIterator<Item = u64>) -> Registers {
        let mut registers = Registers::default();
        hashes.into_iter().for_each(|hash| registers.add(hash));
        registers
    }

    fn union(one: &Registers, other: &Registers) -> Registers {
        let mut union = one.clone();
        union.take_in(other);
        union
    }

    #[test]
    fn a_register_holds_the_longest_row_of_zeros() {
        assert_eq!(of([]).distinct(), 0);
        assert_eq!(RANK_MAX, 55);
        // Zero stays zero when it is mixed: the first register, and nothing but zeros.
        let zero = of([0]);
        assert_eq!(zero.0[0], RANK_MAX);
        assert!(zero.0[1..].iter().all(|register| *register == 0));
        assert_eq!(Registers::from_packed(&zero.packed()), Some(zero));
    }

    #[test]
    fn estimates_are_close_to_what_there_is() {
        for count in [1, 2, 10, 30, 100, 300, 1_000, 2_500, 5_000, 10_000, 30_000, 100_000, 1_000_000] {
            // Numbers as they are: nothing but the mixing makes hashes of them.
            for first in [1_u64, 1 << 40] {
                let found = of((0..count).map(|number| first + number)).distinct();
                let off = found.abs_diff(count);
                assert!(off <= (count / 10).max(1), "{found} in place of {count}, from {first}");
            }
        }
    }

    #[test]
    fn what_comes_again_counts_once() {
        let often = (0..100_000_u64).map(|number| number % 700);
        assert_eq!(of(often), of(0..700));
    }

    #[test]
    fn few_are_packed_in_few_bytes_and_many_in_no_more_than_all() {
        for (count, bytes_max) in
            [(0, 0), (1, 2), (10, 20), (100, 200), (300, 600), (1_000, 768), (100_000, 768)]
        {
            let registers = of(0..count);
            let packed = registers.packed();
            assert!(packed.len() <= bytes_max, "{count}: {} bytes", packed.len());
            assert_eq!(Registers::from_packed(&packed), Some(registers), "{count}");
        }
        assert_eq!(of(0..100_000).packed().len(), DENSE_BYTES);
    }

    #[test]
    fn bytes_that_are_none_are_refused() {
        for wrong in [vec![1], vec![0; DENSE_BYTES + 2], vec![0xff; 2], vec![0xff; DENSE_BYTES]] {
            assert_eq!(Registers::from_packed(&wrong), None, "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn a_union_is_of_all_values_in_any_order_and_form(
            one in prop::collection::vec(any::<u64>(), 0..1_500),
            other in prop::collection::vec(any::<u64>(), 0..1_500),
            third in prop::collection::vec(any::<u64>(), 0..20),
        ) {
            let all = of(one.iter().chain(&other).chain(&third).copied());
            let [one, other, third] = [one, other, third].map(of);
            prop_assert_eq!(union(&one, &other), union(&other, &one));
            prop_assert_eq!(union(&one, &one), one.clone());
            prop_assert_eq!(union(&union(&one, &other), &third), union(&one, &union(&other, &third)));
            prop_assert_eq!(&union(&union(&one, &other), &third), &all);
            let read = |registers: &Registers| Registers::from_packed(&registers.packed()).unwrap();
            prop_assert_eq!(&union(&union(&read(&one), &read(&other)), &read(&third)), &all);
            prop_assert_eq!(read(&all).distinct(), all.distinct());
        }
    }
}
