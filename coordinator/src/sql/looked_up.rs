//! What the names in a statement meant when it was planned. Another statement of
//! the same text means the same as long as they do.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::catalog::{TableFacts, View};

/// What a name meant.
#[derive(Clone, Debug)]
pub enum Meaning {
    /// A table, as it was.
    Table(Arc<TableFacts>),
    /// A view. The names in its query were looked up, too.
    View(Arc<View>),
    /// Nothing had that name.
    Nothing,
    /// Something of which the catalog does not say what is in it: an external
    /// table, or a system table.
    Elsewhere,
}

/// The names that were looked up in one snapshot. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct LookedUp(Arc<Mutex<BTreeMap<(String, String), Meaning>>>);

impl LookedUp {
    /// A name was looked up.
    pub(crate) fn note(&self, schema_name: &str, name: &str, meaning: Meaning) {
        self.0.lock().insert((schema_name.to_owned(), name.to_owned()), meaning);
    }

    /// All of them: schema, name and meaning, in order.
    pub fn all(&self) -> Vec<(String, String, Meaning)> {
        let noted = self.0.lock();
        let all = noted
            .iter()
            .map(|((schema_name, name), meaning)| (schema_name.clone(), name.clone(), meaning.clone()));
        all.collect()
    }
}
