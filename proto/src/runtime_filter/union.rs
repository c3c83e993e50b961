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
    /// It cannot become whole any more.
    is_broken: bool,
}

impl Union {
    /// Takes in the part of a task of so many. The filter, when this makes it
    /// whole: once. Parts that contradict one another make none.
    pub(super) fn add(&mut self, task: u32, tasks: u32, part: KeyFilter) -> Option<KeyFilter> {
        let is_another = self.tasks.is_some_and(|known| known != tasks) || task >= tasks || tasks > TASKS_MAX;
        let has_other_keys = self.so_far.as_ref().is_some_and(|so_far| !so_far.fits(part.types.iter()));
        if self.is_broken || is_another || has_other_keys || !self.seen.insert(task) {
            self.is_broken = true;
            self.so_far = None;
            return None;
        }
        self.tasks = Some(tasks);
        let so_far = match self.so_far.take() {
            Some(so_far) => so_far.union(part),
            None => part,
        };
        if self.seen.len() == tasks as usize {
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
    fn a_task_that_comes_twice_makes_none() {
        let mut union = Union::default();
        assert!(union.add(0, 2, part(vec![1])).is_none());
        assert!(union.add(0, 2, part(vec![1])).is_none());
        assert!(union.add(1, 2, part(vec![2])).is_none());
    }

    #[test]
    fn tasks_that_contradict_one_another_make_none() {
        for (task, tasks) in [(1, 3), (2, 2), (1, TASKS_MAX + 1)] {
            let mut union = Union::default();
            assert!(union.add(0, 2, part(vec![1])).is_none());
            assert!(union.add(task, tasks, part(vec![2])).is_none());
            assert!(union.add(1, 2, part(vec![2])).is_none());
        }
        let mut union = Union::default();
        assert!(union.add(0, 2, part(vec![1])).is_none());
        let mut other = KeyCollector::new(vec![DataType::Int32]).unwrap();
        other.add(&[Arc::new(Int32Array::from(vec![2]))]).unwrap();
        assert!(union.add(1, 2, other.finish().unwrap()).is_none());
    }
}
