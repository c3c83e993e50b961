//! In which order questions are asked. They are dealt in decks: of each twenty questions
//! sixteen are lookups, three small aggregates and one of TPC-H, and each query of TPC-H
//! comes once in a deck.
//!
//! A step asks whole decks, so each one asks the same mix. Were each question drawn by
//! itself, a step of some seconds had a few dozen of TPC-H, whose number and kinds
//! chance decides; these take most of the time, and rates of two steps would differ by it.

use std::collections::VecDeque;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use super::class::Class;

/// How many questions of each kind there are to choose from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kinds {
    pub(super) point: usize,
    pub(super) aggregate: usize,
    pub(super) tpch: usize,
}

/// Deals questions: a kind, and which one of it. No clock, no locks.
#[derive(Debug)]
pub(super) struct Dealer {
    kinds: Kinds,
    random: StdRng,
    deck: VecDeque<(Class, usize)>,
    dealt: usize,
    dealt_max: usize,
}

impl Dealer {
    /// No deck is begun once `dealt_max` questions were dealt. There is at least one of
    /// each kind, or nothing is dealt.
    pub(super) fn new(kinds: Kinds, random: StdRng, dealt_max: usize) -> Self {
        Self { kinds, random, deck: VecDeque::new(), dealt: 0, dealt_max }
    }

    /// The next question. Once it `is_late` the deck is finished, and no other is begun.
    pub(super) fn next(&mut self, is_late: bool) -> Option<(Class, usize)> {
        if self.deck.is_empty() && !is_late && self.dealt < self.dealt_max {
            self.shuffle();
        }
        let next = self.deck.pop_front();
        self.dealt += usize::from(next.is_some());
        next
    }

    fn shuffle(&mut self) {
        let Kinds { point, aggregate, tpch } = self.kinds;
        if point == 0 || aggregate == 0 {
            return;
        }
        let mut long: Vec<usize> = (0..tpch).collect();
        long.shuffle(&mut self.random);
        for which in long {
            let mut hand = Vec::new();
            for (class, times) in Class::HAND {
                for _ in 0..times {
                    let which = match class {
                        Class::Point => self.random.random_range(0..point),
                        Class::Aggregate => self.random.random_range(0..aggregate),
                        Class::Tpch => which,
                    };
                    hand.push((class, which));
                }
            }
            hand.shuffle(&mut self.random);
            self.deck.extend(hand);
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    const KINDS: Kinds = Kinds { point: 1_000, aggregate: 25, tpch: 22 };

    fn dealer(seed: u64, dealt_max: usize) -> Dealer {
        Dealer::new(KINDS, StdRng::seed_from_u64(seed), dealt_max)
    }

    #[test]
    fn every_step_asks_the_same_mix_wherever_it_becomes_late() {
        for late_after in [1, 21, 439, 440, 441, 1_000] {
            let mut dealer = dealer(3, usize::MAX);
            let mut dealt = Vec::new();
            while let Some(next) = dealer.next(dealt.len() >= late_after) {
                dealt.push(next);
            }
            let decks = late_after.div_ceil(440);
            assert_eq!(dealt.len(), 440 * decks);
            for query in 0..22 {
                let times = dealt.iter().filter(|next| **next == (Class::Tpch, query)).count();
                assert_eq!(times, decks, "query {query}");
            }
            let of = |class: Class| dealt.iter().filter(|next| next.0 == class).count();
            assert_eq!((of(Class::Point), of(Class::Aggregate)), (352 * decks, 66 * decks));
        }
    }

    #[test]
    fn long_ones_do_not_come_together() {
        let mut dealer = dealer(7, usize::MAX);
        for _ in 0..50 {
            let hand: Vec<_> = (0..20).filter_map(|_| dealer.next(false)).collect();
            assert_eq!(hand.iter().filter(|next| next.0 == Class::Tpch).count(), 1);
        }
    }

    #[test]
    fn seeds_decide_the_order_and_nothing_else() {
        let order = |seed| {
            let mut dealer = dealer(seed, usize::MAX);
            (0..440).map(|_| dealer.next(false)).collect::<Vec<_>>()
        };
        assert_eq!(order(1), order(1));
        assert_ne!(order(1), order(2));
    }

    #[test]
    fn no_deck_is_begun_when_all_were_dealt_or_there_is_nothing_to_deal() {
        let mut all = dealer(1, 441);
        assert_eq!(std::iter::from_fn(|| all.next(false)).count(), 880);
        let kinds = Kinds { point: 0, ..KINDS };
        let mut nothing = Dealer::new(kinds, StdRng::seed_from_u64(1), 10);
        assert_eq!(nothing.next(false), None);
    }
}
