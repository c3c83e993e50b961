//! What a result rests on: what the names in its query meant, and which segments
//! their tables had.

use std::sync::Arc;

use shoal_proto::TableId;

use crate::catalog::{Contents, State, View};
use crate::sql::{LookedUp, Meaning};

/// What one name meant.
#[derive(Clone, Debug)]
enum Ground {
    /// This table, with these segments.
    Table(TableId, Contents),
    /// This query.
    View(Arc<View>),
    /// Nothing had the name.
    Nothing,
}

/// What all names of a query meant. Holds no table, and no segment.
#[derive(Clone, Debug, Default)]
pub struct Grounds(Vec<(String, String, Ground)>);

impl Grounds {
    /// Those of a query for which these names were looked up; none where one is of
    /// something that can change without the catalog.
    pub fn of(names: &LookedUp) -> Option<Self> {
        let all = names.all().into_iter().map(|(schema_name, name, meaning)| {
            let ground = match meaning {
                Meaning::Table(facts) => Ground::Table(facts.table().id, facts.contents()),
                Meaning::View(view) => Ground::View(view),
                Meaning::Nothing => Ground::Nothing,
                Meaning::Elsewhere => return None,
            };
            Some((schema_name, name, ground))
        });
        all.collect::<Option<Vec<_>>>().map(Self)
    }

    /// Whether all names mean the same in this state.
    pub(super) fn hold_in(&self, state: &State) -> bool {
        self.0.iter().all(|(schema_name, name, ground)| {
            let table = state.table(schema_name, name);
            match ground {
                Ground::Table(id, contents) => {
                    table.is_some_and(|table| table.id == *id && state.facts(table).contents() == *contents)
                }
                Ground::View(known) => state.view(schema_name, name).is_some_and(|view| view == known),
                Ground::Nothing => {
                    table.is_none()
                        && state.view(schema_name, name).is_none()
                        && state.external(schema_name, name).is_none()
                }
            }
        })
    }

    /// Bytes that they take. The text of a view is the catalog's, mostly.
    pub(super) fn bytes(&self) -> usize {
        let texts = self.0.iter().map(|(schema_name, name, _)| schema_name.len() + name.len());
        self.0.len() * size_of::<(String, String, Ground)>() + texts.sum::<usize>()
    }
}
