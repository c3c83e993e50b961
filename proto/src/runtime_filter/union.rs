//! What all tasks of a join have as keys, put together from what each has.

use std::collections::BTreeSet;

use super::key_filter::KeyFilter;

/// Tasks of a join at most: a number that no cluster comes near.
const TASKS_MAX: u32 = 100_000;

/// The parts that have come of one filter.
#[derive(Debug, Default)]
pub(super) struct Union {
    tasks: Option<u32>,
    seen: BTreeSet<u32>,
    so_far: Option<KeyFilter>,
    /// The filter was given: nothing that comes now makes a difference.
    is_told: bool,
}

impl Union {
    /// Takes in the part of a task of so many. The filter, once, as soon as the parts of others
    /// make no difference to it. It is [of any key](KeyFilter::is_of_any) as soon as a part is, and where parts
    /// contradict one another: nobody is to wait for the others then.
    pub(super) fn add(&mut self, task: u32, tasks: u32, part: KeyFilter) -> Option<KeyFilter> {
        if self.is_told {
            return None;
        }
        let is_another = self.tasks.is_some_and(|known| known != tasks) || task >= tasks || tasks > TASKS_MAX;
        let has_other_keys = self.so_far.as_ref().is_some_and(|so_far| !so_far.fits(part.types.iter()));
        let contradicts = is_another || has_other_keys || !self.seen.insert(task);
        self.tasks = Some(tasks);
        let so_far = match self.so_far.take() {
            _ if contradicts => part.forgotten(),
            Some(so_far) => so_far.union(part),
            None => part,
        };
        if self.seen.len() == tasks as usize || so_far.is_of_any() {
            self.is_told = true;
            return Some(so_far);
        }
        self.so_far = Some(so_far);
        None
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int32Array, Int64Array};
    use arrow::datatypes::DataType;

    use super::*;
    use crate::runtime_filter::KeyCollector;

    fn part(keys: Vec<i64>) -> KeyFilter {
        let mut collector = KeyCollector::new(vec![DataType::Int64]).unwrap();
        collector.add(&[Arc::new(Int64Array::from(keys))]).unwrap();
        collector.finish().unwrap().folded(1)
    }

    fn kept(filter: &KeyFilter, keys: Vec<i64>) -> usize {
        let keys: ArrayRef = Arc::new(Int64Array::from(keys));
        filter.may_have(&[keys]).unwrap().true_count()
    }

    #[test]
    fn it_is_whole_with_the_last_task_and_not_before() {
        let mut union = Union::default();
        assert!(union.add(2, 3, part(vec![30, 31])).is_none());
        assert!(union.add(0, 3, part(vec![])).is_none());
        let whole = union.add(1, 3, part(vec![-5])).unwrap();
        assert_eq!(whole.rows(), 3);
        assert_eq!(kept(&whole, vec![-5, 30, 31]), 3);
        assert_eq!(kept(&whole, vec![-6, 32]), 0);
    }

    #[test]
    fn a_task_that_has_no_part_makes_it_one_of_any_key_at_once() {
        let mut union = Union::default();
        assert!(union.add(0, 3, part(vec![1])).is_none());
        let whole = union.add(1, 3, KeyFilter::of_any(vec![DataType::Int64])).unwrap();
        assert!(whole.is_of_any());
        assert_eq!(kept(&whole, vec![1, -6, 32]), 3);
        assert!(union.add(2, 3, part(vec![2])).is_none(), "once");
    }

    #[test]
    fn tasks_that_contradict_one_another_make_it_one_of_any_key() {
        // One that comes twice, and those of another count.
        for (task, tasks) in [(0, 2), (1, 3), (2, 2), (0, 0), (1, TASKS_MAX + 1)] {
            let mut union = Union::default();
            assert!(union.add(0, 2, part(vec![1])).is_none());
            assert!(union.add(task, tasks, part(vec![2])).unwrap().is_of_any());
            assert!(union.add(1, 2, part(vec![2])).is_none(), "once");
        }
        let mut union = Union::default();
        assert!(union.add(0, 2, part(vec![1])).is_none());
        let mut other = KeyCollector::new(vec![DataType::Int32]).unwrap();
        other.add(&[Arc::new(Int32Array::from(vec![2]))]).unwrap();
        assert!(union.add(1, 2, other.finish().unwrap()).unwrap().is_of_any());
    }
}
