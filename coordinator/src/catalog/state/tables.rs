//! The tables of a state, by name and by number.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use shoal_data::Table;
use shoal_proto::TableId;

use crate::catalog::command::{Key, Named};

/// Tables, each with one name and one number. Neither changes.
#[derive(Clone, Debug, Default)]
pub(super) struct Tables {
    by_key: BTreeMap<Key, Arc<Table>>,
    keys: BTreeMap<TableId, Key>,
}

impl Tables {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    /// All of them, by schema and name.
    pub(super) fn values(&self) -> impl Iterator<Item = &Arc<Table>> {
        self.by_key.values()
    }

    /// Their names, sorted.
    pub(super) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.by_key.keys()
    }

    pub(super) fn contains_key(&self, key: &Key) -> bool {
        self.by_key.contains_key(key)
    }

    pub(super) fn get(&self, key: &Key) -> Option<&Arc<Table>> {
        self.by_key.get(key)
    }

    pub(super) fn get_mut(&mut self, key: &Key) -> Option<&mut Arc<Table>> {
        self.by_key.get_mut(key)
    }

    pub(super) fn by_id(&self, id: TableId) -> Option<&Arc<Table>> {
        self.by_key.get(self.keys.get(&id)?)
    }

    pub(super) fn by_id_mut(&mut self, id: TableId) -> Option<&mut Arc<Table>> {
        self.by_key.get_mut(self.keys.get(&id)?)
    }

    /// Takes a table in; the one that had its name.
    pub(super) fn insert(&mut self, table: Arc<Table>) -> Option<Arc<Table>> {
        let replaced = self.by_key.insert(table.key(), Arc::clone(&table));
        if let Some(replaced) = &replaced {
            self.keys.remove(&replaced.id);
        }
        self.keys.insert(table.id, table.key());
        replaced
    }

    pub(super) fn remove(&mut self, key: &Key) -> Option<Arc<Table>> {
        let removed = self.by_key.remove(key)?;
        self.keys.remove(&removed.id);
        Some(removed)
    }
}

/// As a list: their names and numbers are in them.
impl Serialize for Tables {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.by_key.values())
    }
}

impl<'de> Deserialize<'de> for Tables {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut tables = Self::default();
        for table in Vec::<Arc<Table>>::deserialize(deserializer)? {
            tables.insert(table);
        }
        Ok(tables)
    }
}
