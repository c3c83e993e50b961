//! Commands that ask about the catalog: catalogs, schemas, tables, table
//! types, keys, and what Shoal can do. Their tickets are the commands
//! themselves.

use std::sync::{Arc, LazyLock};

use arrow::array::{AsArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow_flight::sql::metadata::SqlInfoDataBuilder;
use arrow_flight::sql::{Command, CommandGetTables};
use datafusion::catalog::information_schema::{INFORMATION_SCHEMA, INFORMATION_SCHEMA_TABLES};
use tonic::Status;

use super::rows::table_schema;
use super::sql_info::sql_info;
use super::status::internal;
use super::type_info::type_info;
use crate::sql::{SYSTEM_SCHEMA, SystemTables};
use crate::{Engine, Session};

/// The one catalog.
pub(super) const CATALOG: &str = "shoal";

const TABLE: &str = "TABLE";
const VIEW: &str = "VIEW";
const EXTERNAL_TABLE: &str = "EXTERNAL TABLE";
const SYSTEM_TABLE: &str = "SYSTEM TABLE";

static CATALOGS: LazyLock<SchemaRef> = LazyLock::new(|| columns(&[("catalog_name", DataType::Utf8, false)]));

static SCHEMAS: LazyLock<SchemaRef> = LazyLock::new(|| {
    columns(&[("catalog_name", DataType::Utf8, true), ("db_schema_name", DataType::Utf8, false)])
});

static TABLE_TYPES: LazyLock<SchemaRef> = LazyLock::new(|| columns(&[("table_type", DataType::Utf8, false)]));

static PRIMARY_KEYS: LazyLock<SchemaRef> = LazyLock::new(|| {
    columns(&[
        ("catalog_name", DataType::Utf8, true),
        ("db_schema_name", DataType::Utf8, true),
        ("table_name", DataType::Utf8, false),
        ("column_name", DataType::Utf8, false),
        ("key_name", DataType::Utf8, true),
        ("key_sequence", DataType::Int32, false),
    ])
});

static FOREIGN_KEYS: LazyLock<SchemaRef> = LazyLock::new(|| {
    columns(&[
        ("pk_catalog_name", DataType::Utf8, true),
        ("pk_db_schema_name", DataType::Utf8, true),
        ("pk_table_name", DataType::Utf8, false),
        ("pk_column_name", DataType::Utf8, false),
        ("fk_catalog_name", DataType::Utf8, true),
        ("fk_db_schema_name", DataType::Utf8, true),
        ("fk_table_name", DataType::Utf8, false),
        ("fk_column_name", DataType::Utf8, false),
        ("key_sequence", DataType::Int32, false),
        ("fk_key_name", DataType::Utf8, true),
        ("pk_key_name", DataType::Utf8, true),
        ("update_rule", DataType::UInt8, false),
        ("delete_rule", DataType::UInt8, false),
    ])
});

/// The columns that a command answers with; `None` where it does not ask
/// about the catalog.
///
/// # Errors
/// `Internal`.
pub(super) fn schema_of(command: &Command) -> Result<Option<SchemaRef>, Status> {
    Ok(Some(match command {
        Command::CommandGetCatalogs(_) => Arc::clone(&CATALOGS),
        Command::CommandGetDbSchemas(_) => Arc::clone(&SCHEMAS),
        Command::CommandGetTables(command) => command.clone().into_builder().schema(),
        Command::CommandGetTableTypes(_) => Arc::clone(&TABLE_TYPES),
        Command::CommandGetSqlInfo(_) => Arc::new(SqlInfoDataBuilder::schema().clone()),
        Command::CommandGetXdbcTypeInfo(_) => type_info()?.schema(),
        Command::CommandGetPrimaryKeys(_) => Arc::clone(&PRIMARY_KEYS),
        Command::CommandGetExportedKeys(_)
        | Command::CommandGetImportedKeys(_)
        | Command::CommandGetCrossReference(_) => Arc::clone(&FOREIGN_KEYS),
        _ => return Ok(None),
    }))
}

/// The rows that a command of [`schema_of`] asks for; `None` for others.
///
/// # Errors
/// `Internal`.
pub(super) async fn rows_of(
    engine: &Engine,
    session: &Arc<Session>,
    command: Command,
) -> Result<Option<RecordBatch>, Status> {
    let batch = match command {
        Command::CommandGetCatalogs(_) => texts(&CATALOGS, &[CATALOG])?,
        Command::CommandGetTableTypes(_) => {
            texts(&TABLE_TYPES, &[EXTERNAL_TABLE, SYSTEM_TABLE, TABLE, VIEW])?
        }
        Command::CommandGetDbSchemas(command) => {
            let mut schemas = command.into_builder();
            engine.catch_up().await?;
            let state = engine.catalog();
            for schema in state.schemas().chain([INFORMATION_SCHEMA, SYSTEM_SCHEMA]) {
                schemas.append(CATALOG, schema);
            }
            schemas.build().map_err(internal)?
        }
        Command::CommandGetTables(command) => tables(engine, session, command).await?,
        Command::CommandGetSqlInfo(command) => command.into_builder(sql_info()?).build().map_err(internal)?,
        Command::CommandGetXdbcTypeInfo(command) => {
            command.into_builder(type_info()?).build().map_err(internal)?
        }
        Command::CommandGetPrimaryKeys(_) => RecordBatch::new_empty(Arc::clone(&PRIMARY_KEYS)),
        Command::CommandGetExportedKeys(_)
        | Command::CommandGetImportedKeys(_)
        | Command::CommandGetCrossReference(_) => RecordBatch::new_empty(Arc::clone(&FOREIGN_KEYS)),
        _ => return Ok(None),
    };
    Ok(Some(batch))
}

/// Whether there is a schema of this name.
pub(super) fn has_schema(engine: &Engine, name: &str) -> bool {
    engine.catalog().has_schema(name) || [INFORMATION_SCHEMA, SYSTEM_SCHEMA].contains(&name)
}

async fn tables(
    engine: &Engine,
    session: &Arc<Session>,
    command: CommandGetTables,
) -> Result<RecordBatch, Status> {
    let include_schema = command.include_schema;
    // Names are filtered first: the columns of a view take a plan each.
    let mut names = CommandGetTables { include_schema: false, ..command }.into_builder();
    let mut add = |schema: &str, name: &str, kind: &str| {
        names.append(CATALOG, schema, name, kind, &Schema::empty()).map_err(internal)
    };
    engine.catch_up().await?;
    let state = engine.catalog();
    for table in state.tables() {
        add(&table.schema_name, &table.name, TABLE)?;
    }
    for view in state.views() {
        add(&view.schema_name, &view.name, VIEW)?;
    }
    for external in state.externals() {
        add(&external.schema_name, &external.name, EXTERNAL_TABLE)?;
    }
    for table in SystemTables::names() {
        add(SYSTEM_SCHEMA, table, SYSTEM_TABLE)?;
    }
    for table in INFORMATION_SCHEMA_TABLES {
        add(INFORMATION_SCHEMA, table, SYSTEM_TABLE)?;
    }
    let names = names.build().map_err(internal)?;
    if !include_schema {
        return Ok(names);
    }

    let everything = CommandGetTables {
        include_schema: true,
        catalog: None,
        db_schema_filter_pattern: None,
        table_name_filter_pattern: None,
        table_types: Vec::new(),
    };
    let mut with_columns = everything.into_builder();
    let text = |column: usize| names.column(column).as_string::<i32>();
    for row in 0..names.num_rows() {
        let (schema, name, kind) = (text(1).value(row), text(2).value(row), text(3).value(row));
        let columns = match engine.columns_of(session, schema, name).await {
            Ok(columns) => table_schema(&columns),
            // Such as a view of a table that was dropped: the others are still to be seen.
            Err(error) => {
                tracing::debug!(schema, table = name, %error, "columns are not known");
                Arc::new(Schema::empty())
            }
        };
        with_columns.append(CATALOG, schema, name, kind, &columns).map_err(internal)?;
    }
    with_columns.build().map_err(internal)
}

fn columns(columns: &[(&str, DataType, bool)]) -> SchemaRef {
    let fields: Vec<Field> = columns
        .iter()
        .map(|(name, data_type, nullable)| Field::new(*name, data_type.clone(), *nullable))
        .collect();
    Arc::new(Schema::new(fields))
}

fn texts(schema: &SchemaRef, values: &[&str]) -> Result<RecordBatch, Status> {
    let column = StringArray::from_iter_values(values);
    RecordBatch::try_new(Arc::clone(schema), vec![Arc::new(column)]).map_err(internal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_flight::sql::{CommandGetDbSchemas, CommandGetPrimaryKeys, CommandStatementQuery};

    #[test]
    fn our_schemas_are_those_of_the_builders() {
        assert_eq!(*SCHEMAS, CommandGetDbSchemas::default().into_builder().schema());
        assert_eq!(*CATALOGS, arrow_flight::sql::CommandGetCatalogs {}.into_builder().schema());
        assert_eq!(*TABLE_TYPES, arrow_flight::sql::CommandGetTableTypes {}.into_builder().schema());
    }

    #[test]
    fn only_commands_about_the_catalog_have_a_fixed_schema() {
        let keys = Command::CommandGetPrimaryKeys(CommandGetPrimaryKeys::default());
        assert_eq!(schema_of(&keys).unwrap().unwrap().fields().len(), 6);
        let query = Command::CommandStatementQuery(CommandStatementQuery::default());
        assert!(schema_of(&query).unwrap().is_none());
    }
}
