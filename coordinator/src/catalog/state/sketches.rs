//! What a table knows of the distinct values of its columns while rows are added. Nothing here
//! takes rows out: they go with their table, or all at once.

use std::sync::Arc;

use shoal_data::{Sketches, Table};

/// Those of all rows of a table; none where they are not known. Without rows there is nothing that
/// is not known, whatever was said of it.
pub(super) fn of_table(table: &Table) -> Option<Arc<Sketches>> {
    if table.segments.is_empty() { Some(Arc::default()) } else { table.sketches.clone() }
}

/// The same where they can be those of the table's columns.
pub(super) fn fitting(sketches: Option<Arc<Sketches>>, table: &Table) -> Option<Arc<Sketches>> {
    sketches.filter(|sketches| sketches.fit(table.columns.fields().len()))
}

#[cfg(test)]
mod tests;
