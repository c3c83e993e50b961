//! Names as statements write them, and as the catalog has them.

use datafusion::common::TableReference;
use datafusion::sql::sqlparser::ast::ObjectName;

use crate::Error;
use crate::session::Settings;
use crate::sql::fold_identifier;

/// The longest name.
const NAME_BYTES_MAX: usize = 128;

/// The name of a schema.
pub(super) fn plain_name(name: &ObjectName) -> Result<String, Error> {
    let [part] = name.0.as_slice() else {
        return Err(Error::Invalid(format!("`{name}` has too many parts: a schema has one name")));
    };
    let ident = part.as_ident().ok_or_else(|| Error::Invalid(format!("`{name}` is not a name")))?;
    Ok(fold_identifier(ident.clone()))
}

/// Schema and name; the session's schema where none is given.
pub(super) fn full_name(name: &ObjectName, settings: &Settings) -> Result<(String, String), Error> {
    let parts: Option<Vec<String>> =
        name.0.iter().map(|part| part.as_ident().map(|ident| fold_identifier(ident.clone()))).collect();
    let catalog = &settings.options.catalog;
    match parts.as_deref() {
        Some([name]) => Ok((catalog.default_schema.clone(), name.clone())),
        Some([schema_name, name]) => Ok((schema_name.clone(), name.clone())),
        Some([database, schema_name, name]) if *database == catalog.default_catalog => {
            Ok((schema_name.clone(), name.clone()))
        }
        _ => Err(Error::Invalid(format!(
            "`{name}` is not a table's name: write name, schema.name or {}.schema.name",
            catalog.default_catalog
        ))),
    }
}

/// Schema and name of a reference that DataFusion made.
pub(super) fn resolved(reference: &TableReference, settings: &Settings) -> (String, String) {
    let schema_name = reference.schema().unwrap_or(&settings.options.catalog.default_schema);
    (schema_name.to_owned(), reference.table().to_owned())
}

/// Whether something new can have this name.
pub(super) fn check_name(kind: &str, name: &str) -> Result<(), Error> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
        return Err(Error::Invalid(format!(
            "`{}` cannot name a {kind}: names have 1 to {NAME_BYTES_MAX} bytes and no control characters",
            name.escape_default()
        )));
    }
    Ok(())
}
