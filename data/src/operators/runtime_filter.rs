//! Run-time filters: what the built side of a join has as keys, gathered where
//! it is built, leaves out rows of the other side where they are read, on
//! whatever worker that is. Between them goes [`shoal_proto::runtime_filter`].

mod filter;
mod keys;
mod passage;
mod scans;

use std::fmt;

use arrow::datatypes::SchemaRef;
use datafusion::common::{Result, internal_datafusion_err};
use serde::{Deserialize, Serialize};
use shoal_proto::runtime_filter::FilterId;

pub use self::filter::{ROWS_PRUNED_METRIC, RuntimeFilterExec, WAIT_METRIC};
pub use self::keys::JoinKeysExec;
pub use self::passage::passage;
pub use self::scans::into_scans;

/// Which filter, and in which columns of an operator's rows its keys are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilterKeys {
    /// Of which join.
    pub id: FilterId,
    /// Numbers of columns, in the order of the join's equalities.
    pub columns: Vec<usize>,
}

impl FilterKeys {
    /// As it travels: the operator's name, then this.
    ///
    /// # Errors
    /// None in practice.
    pub(super) fn to_bytes(&self, name: &str) -> Result<Vec<u8>> {
        let text = serde_json::to_string(self)
            .map_err(|error| internal_datafusion_err!("{name} cannot be encoded: {error}"))?;
        Ok(format!("{name} {text}").into_bytes())
    }

    /// What [`FilterKeys::to_bytes`] gave, where it is of the operator of this
    /// name.
    pub(super) fn from_bytes(name: &str, bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes.strip_prefix(name.as_bytes())?.strip_prefix(b" ")?).ok()
    }

    fn fmt_with(&self, name: &str, schema: &SchemaRef, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.columns.iter().map(|&column| match schema.fields().get(column) {
            Some(field) => format!("{}@{column}", field.name()),
            None => format!("@{column}"),
        });
        write!(f, "{name}: join={}, keys=[{}]", self.id.join, names.collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests;
