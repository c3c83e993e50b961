//! Which writes are committed; in a state they are a list, oldest first.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serializer};
use shoal_proto::WriteId;

use super::WRITES_MAX;
use crate::catalog::command::WriteRecord;

/// Ids of recent writes, oldest first.
#[derive(Clone, Debug, Default)]
pub(super) struct Writes {
    pub(super) order: VecDeque<Arc<WriteRecord>>,
    rows: HashMap<WriteId, u64>,
}

impl Writes {
    pub(super) fn rows(&self, write: &WriteId) -> Option<u64> {
        self.rows.get(write).copied()
    }

    pub(super) fn extend(&mut self, writes: impl IntoIterator<Item = WriteRecord>) {
        for write in writes {
            self.rows.insert(write.id.clone(), write.rows);
            self.order.push_back(Arc::new(write));
            if self.order.len() > WRITES_MAX
                && let Some(oldest) = self.order.pop_front()
            {
                self.rows.remove(&oldest.id);
            }
        }
    }
}

pub(super) fn serialize<S: Serializer>(writes: &Writes, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(writes.order.iter().map(AsRef::as_ref))
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Writes, D::Error> {
    let mut writes = Writes::default();
    writes.extend(Vec::<WriteRecord>::deserialize(deserializer)?);
    Ok(writes)
}
