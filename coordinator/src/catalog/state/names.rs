//! What has a name, and how it comes and goes: schemas, and in them tables, views and
//! external tables, which share one namespace.

use std::collections::BTreeMap;
use std::sync::Arc;

use shoal_data::Table;

use super::{CatalogError, SCHEMA_DEFAULT, State, check_segments, sketches};
use crate::catalog::command::{ExternalTable, Key, Named, Outcome, View, WriteRecord};

impl State {
    pub(super) fn create_schema(
        &mut self,
        name: String,
        if_not_exists: bool,
    ) -> Result<Outcome, CatalogError> {
        if self.schemas.contains(&name) {
            return unchanged_if(if_not_exists, || format!("schema `{name}` already exists"));
        }
        self.schemas.insert(name);
        Ok(Outcome::Done)
    }

    pub(super) fn drop_schema(
        &mut self,
        name: &str,
        if_exists: bool,
        cascade: bool,
    ) -> Result<Outcome, CatalogError> {
        if !self.schemas.contains(name) {
            return if if_exists { Ok(Outcome::Unchanged) } else { Err(no_schema(name)) };
        }
        if name == SCHEMA_DEFAULT {
            return Err(CatalogError::Invalid(format!(
                "schema `{name}` is where statements without a schema look; it cannot be dropped"
            )));
        }
        let within = |key: &Key| key.0 == name;
        let held = self.tables.keys().filter(|key| within(key)).count()
            + self.views.keys().filter(|key| within(key)).count()
            + self.externals.keys().filter(|key| within(key)).count();
        if held > 0 && !cascade {
            return Err(CatalogError::Invalid(format!(
                "schema `{name}` holds {held} tables and views; drop them first, or add CASCADE"
            )));
        }
        let keys: Vec<Key> = self.tables.keys().filter(|key| within(key)).cloned().collect();
        let gone = keys.iter().filter_map(|key| self.tables.remove(key));
        self.dropped.extend(gone.flat_map(|table| table.segments.clone()));
        self.views.retain(|key, _| !within(key));
        self.externals.retain(|key, _| !within(key));
        self.schemas.remove(name);
        Ok(Outcome::Done)
    }

    /// Refuses a name that cannot be used for a new thing, which may take the place of one of
    /// kind `replaced`.
    fn check_name(&self, (schema_name, name): &Key, replaced: &str) -> Result<(), CatalogError> {
        if !self.schemas.contains(schema_name) {
            return Err(no_schema(schema_name));
        }
        let key = key(schema_name, name);
        let kinds = [
            ("table", self.tables.contains_key(&key)),
            ("view", self.views.contains_key(&key)),
            ("external table", self.externals.contains_key(&key)),
        ];
        match kinds.iter().find(|(kind, taken)| *taken && *kind != replaced) {
            Some((kind, _)) => {
                Err(CatalogError::AlreadyExists(format!("{kind} `{schema_name}.{name}` already exists")))
            }
            None => Ok(()),
        }
    }

    pub(super) fn create_table(
        &mut self,
        mut table: Table,
        existing: Existing,
        write: Option<WriteRecord>,
    ) -> Result<Outcome, CatalogError> {
        if let Some(rows) = write.as_ref().and_then(|write| self.writes.rows(&write.id)) {
            return Ok(Outcome::AlreadyWritten { rows });
        }
        table.placement.iter_mut().flatten().for_each(|worker| self.share(worker));
        table.sketches = sketches::fitting(table.sketches.take(), &table);
        let table = Arc::new(table);
        let key = table.key();
        if existing == Existing::Left && self.tables.contains_key(&key) {
            return Ok(Outcome::Unchanged);
        }
        self.check_name(&key, if existing == Existing::Replaced { "table" } else { "" })?;
        if table.id.0 == 0 || table.id.0 >= self.next_table || self.table_by_id(table.id).is_some() {
            return Err(CatalogError::Invalid(format!("table id {} was not reserved for it", table.id)));
        }
        check_segments(&table, &table.segments)?;
        if let Some(replaced) = self.tables.insert(table) {
            self.dropped.extend(replaced.segments.iter().cloned());
        }
        self.writes.extend(write);
        Ok(Outcome::Done)
    }

    pub(super) fn drop_table(
        &mut self,
        schema_name: &str,
        name: &str,
        if_exists: bool,
    ) -> Result<Outcome, CatalogError> {
        let removed = self.tables.remove(&key(schema_name, name));
        self.dropped.extend(removed.iter().flat_map(|table| &table.segments).cloned());
        dropped(removed.is_some(), "table", schema_name, name, if_exists)
    }

    pub(super) fn create_view(&mut self, view: View, or_replace: bool) -> Result<Outcome, CatalogError> {
        let view = Arc::new(view);
        self.check_name(&view.key(), if or_replace { "view" } else { "" })?;
        self.views.insert(view.key(), view);
        Ok(Outcome::Done)
    }

    pub(super) fn create_external(
        &mut self,
        table: ExternalTable,
        if_not_exists: bool,
        or_replace: bool,
    ) -> Result<Outcome, CatalogError> {
        let table = Arc::new(table);
        if if_not_exists && self.externals.contains_key(&table.key()) {
            return Ok(Outcome::Unchanged);
        }
        self.check_name(&table.key(), if or_replace { "external table" } else { "" })?;
        self.externals.insert(table.key(), table);
        Ok(Outcome::Done)
    }
}

/// What becomes of a table that has the name already.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Existing {
    Refused,
    Left,
    Replaced,
}

pub(super) fn key(schema_name: &str, name: &str) -> Key {
    (schema_name.to_owned(), name.to_owned())
}

fn no_schema(name: &str) -> CatalogError {
    CatalogError::NotFound(format!("schema `{name}` does not exist"))
}

fn unchanged_if(tolerated: bool, message: impl FnOnce() -> String) -> Result<Outcome, CatalogError> {
    if tolerated { Ok(Outcome::Unchanged) } else { Err(CatalogError::AlreadyExists(message())) }
}

pub(super) fn drop_one<T>(
    map: &mut BTreeMap<Key, T>,
    kind: &str,
    schema_name: &str,
    name: &str,
    if_exists: bool,
) -> Result<Outcome, CatalogError> {
    let was_there = map.remove(&key(schema_name, name)).is_some();
    dropped(was_there, kind, schema_name, name, if_exists)
}

fn dropped(
    was_there: bool,
    kind: &str,
    schema_name: &str,
    name: &str,
    if_exists: bool,
) -> Result<Outcome, CatalogError> {
    match was_there {
        true => Ok(Outcome::Done),
        false if if_exists => Ok(Outcome::Unchanged),
        false => Err(CatalogError::NotFound(format!("{kind} `{schema_name}.{name}` does not exist"))),
    }
}
