//! Which columns of a table are shown, and how wide, in a given width.

/// A text column is cut down to this before any column is left out.
const TEXT_WIDTH_MIN: usize = 16;

/// A column on the screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    /// The column shown; none for the mark where columns are left out.
    pub(super) column: Option<usize>,
    /// Its width, without the space on either side.
    pub(super) width: usize,
}

/// The columns on the screen, from left to right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fit {
    slots: Vec<Slot>,
    whole: bool,
}

impl Fit {
    /// Fits columns that would like to be `widths` wide into `available`.
    /// Text is cut before columns are left out, numbers are never cut, and
    /// what is left out is left out in the middle.
    pub(super) fn new(widths: &[usize], numeric: &[bool], available: Option<usize>) -> Self {
        let all: Vec<Slot> = widths
            .iter()
            .enumerate()
            .map(|(column, width)| Slot { column: Some(column), width: *width })
            .collect();
        let Some(available) = available.filter(|available| total(&all) > *available) else {
            return Self { slots: all, whole: true };
        };
        let is_text = |slot: &Slot| slot.column.is_some_and(|column| !numeric[column]);
        let capped = |slots: &[Slot], cap: usize| -> Vec<Slot> {
            let cut = |slot: &Slot| Slot {
                width: if is_text(slot) { slot.width.min(cap) } else { slot.width },
                ..*slot
            };
            slots.iter().map(cut).collect()
        };
        let mut shown = all;
        if total(&capped(&shown, TEXT_WIDTH_MIN)) > available && shown.len() > 2 {
            let middle = shown.len() / 2;
            shown.insert(middle, Slot { column: None, width: 1 });
            let mut mark = middle;
            // Leave out the neighbour of the mark that keeps both sides even.
            while shown.len() > 2 && total(&capped(&shown, TEXT_WIDTH_MIN)) > available {
                let (left, right) = (mark, shown.len() - mark - 1);
                if left > right {
                    mark -= 1;
                    shown.remove(mark);
                } else {
                    shown.remove(mark + 1);
                }
            }
        }
        let widest = shown.iter().filter(|slot| is_text(slot)).map(|slot| slot.width).max().unwrap_or(0);
        let cap = (TEXT_WIDTH_MIN..=widest.max(TEXT_WIDTH_MIN))
            .rev()
            .find(|cap| total(&capped(&shown, *cap)) <= available)
            // Even so too wide: the few columns left share what there is.
            .unwrap_or_else(|| (available / shown.len().max(1)).saturating_sub(3).max(1));
        Self { slots: capped(&shown, cap), whole: false }
    }

    /// The columns on the screen.
    pub(super) fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Whether all columns are shown as wide as they want to be.
    pub(super) fn is_whole(&self) -> bool {
        self.whole
    }
}

/// Width of a line: a space on each side of each column, a bar between.
fn total(slots: &[Slot]) -> usize {
    slots.iter().map(|slot| slot.width + 3).sum::<usize>().saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(widths: &[usize], numeric: &[bool], available: usize, expected: &[(Option<usize>, usize)]) {
        let fit = Fit::new(widths, numeric, Some(available));
        let slots: Vec<_> = fit.slots().iter().map(|slot| (slot.column, slot.width)).collect();
        assert_eq!(slots, expected);
    }

    #[test]
    fn what_fits_is_left_alone() {
        check(&[3, 4], &[true, false], 12, &[(Some(0), 3), (Some(1), 4)]);
        assert!(Fit::new(&[300, 400], &[true, false], None).is_whole());
    }

    #[test]
    fn text_is_cut_and_numbers_are_not() {
        check(&[20, 100], &[true, false], 60, &[(Some(0), 20), (Some(1), 35)]);
        check(&[50, 100], &[false, false], 65, &[(Some(0), 30), (Some(1), 30)]);
    }

    #[test]
    fn columns_are_left_out_in_the_middle() {
        check(&[10; 6], &[true; 6], 41, &[(Some(0), 10), (None, 1), (Some(5), 10)]);
        check(&[10; 6], &[true; 6], 42, &[(Some(0), 10), (Some(1), 10), (None, 1), (Some(5), 10)]);
    }

    #[test]
    fn one_column_is_cut_to_the_terminal() {
        check(&[500], &[false], 40, &[(Some(0), 38)]);
        check(&[500], &[false], 10, &[(Some(0), 7)]);
    }
}
