//! CREATE TABLE: what it says, and the table that it makes.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::logical_expr::{DdlStatement, LogicalPlan};
use datafusion::sql::parser::Statement as DfStatement;
use datafusion::sql::sqlparser::ast;
use shoal_data::Table;
use shoal_proto::TableId;

use super::names::{check_name, full_name};
use super::{Engine, Scope};
use crate::catalog::{Command, Outcome};
use crate::sql::{TableOptions, complete_layout, plain_columns};
use crate::{Error, Session};

impl Engine {
    pub(super) async fn create_table(
        &self,
        session: &Session,
        create: &ast::CreateTable,
    ) -> Result<u64, Error> {
        let scope = self.scope(session).await?;
        let plan = self.plan_create(&scope, create).await?;
        let columns = plain_columns(plan.schema().as_arrow());
        let Some(table) = self.new_table(session, &scope, create, columns).await? else { return Ok(0) };
        self.apply(Command::CreateTable { table, if_not_exists: create.if_not_exists, write: None }).await
    }

    /// The table that a statement makes, with an id of its own and no rows
    /// yet; none where it is there already and that is as wished.
    pub(super) async fn new_table(
        &self,
        session: &Session,
        scope: &Scope,
        create: &ast::CreateTable,
        columns: arrow::datatypes::SchemaRef,
    ) -> Result<Option<Table>, Error> {
        let (schema_name, name) = full_name(&create.name, &scope.settings)?;
        check_name("table", &name)?;
        self.check_schema(scope, &schema_name)?;
        if create.if_not_exists && scope.snapshot.table(&schema_name, &name).is_some() {
            session.notice(format!("table {schema_name}.{name} exists already, skipped"));
            return Ok(None);
        }
        let options = TableOptions::read(create)?;
        self.make_table(session, schema_name, name, columns, options).await.map(Some)
    }

    pub(super) async fn make_table(
        &self,
        session: &Session,
        schema_name: String,
        name: String,
        columns: arrow::datatypes::SchemaRef,
        options: TableOptions,
    ) -> Result<Table, Error> {
        if columns.fields().is_empty() {
            return Err(Error::Invalid(format!("table {schema_name}.{name} needs at least one column")));
        }
        if let Some(field) = columns.fields().iter().find(|field| has_interval(field.data_type())) {
            return Err(Error::Unsupported(format!(
                "column `{}` of type INTERVAL is not supported, as Parquet files hold none: store two timestamps, or a \
                 number of seconds",
                field.name()
            )));
        }
        self.cluster.workers_have_joined().await;
        let workers = self.cluster.live().workers.len();
        let layout = complete_layout(options, &columns, workers)?;
        let placement = self.cluster.place(&layout)?;
        if let Some(notice) = placement.notice {
            session.notice(notice);
        }
        let id = self.reserve_table().await?;
        Ok(Table {
            id,
            schema_name,
            name,
            columns,
            layout,
            placement: placement.shards,
            segments: Vec::new(),
            sketches: None,
        })
    }

    async fn reserve_table(&self) -> Result<TableId, Error> {
        match self.cluster.catalog().apply(Command::ReserveTable).await? {
            Outcome::Table(id) => Ok(id),
            other => Err(Error::Internal(format!("a table id was asked for and {other:?} came"))),
        }
    }

    /// Plans `CREATE TABLE [AS]`, without the options that are ours: the schema
    /// of the plan is that of the table.
    pub(super) async fn plan_create(
        &self,
        scope: &Scope,
        create: &ast::CreateTable,
    ) -> Result<LogicalPlan, Error> {
        let unsupported = [
            (create.temporary, "TEMPORARY"),
            (create.or_replace, "OR REPLACE"),
            (create.like.is_some(), "LIKE"),
            (create.partition_by.is_some(), "PARTITION BY"),
            (create.external, "EXTERNAL"),
        ];
        if let Some((_, what)) = unsupported.into_iter().find(|(is_used, _)| *is_used) {
            return Err(Error::Unsupported(format!(
                "CREATE TABLE with {what} is not supported: columns, AS SELECT and WITH (shards, replicas, shard_key, sort_key, bloom_filters) are"
            )));
        }
        for column in &create.columns {
            if let Some(option) = column.options.iter().find_map(|option| match &option.option {
                ast::ColumnOption::Null | ast::ColumnOption::NotNull | ast::ColumnOption::PrimaryKey(_) => {
                    None
                }
                other => Some(other),
            }) {
                return Err(Error::Unsupported(format!(
                    "column `{}` with {option} is not supported: NULL, NOT NULL and PRIMARY KEY are",
                    column.name
                )));
            }
        }
        let mut plain = create.clone();
        plain.table_options = ast::CreateTableOptions::None;
        if let Some(constraint) = plain
            .constraints
            .iter()
            .find(|constraint| !matches!(constraint, ast::TableConstraint::PrimaryKey(_)))
        {
            return Err(Error::Unsupported(format!(
                "`{constraint}` is not supported: rows are not checked but for NOT NULL and types"
            )));
        }
        plain.constraints.clear();
        for column in &mut plain.columns {
            column.options.retain(|option| !matches!(option.option, ast::ColumnOption::PrimaryKey(_)));
        }
        let statement = DfStatement::Statement(Box::new(ast::Statement::CreateTable(plain)));
        match self.plan(scope, &statement).await? {
            LogicalPlan::Ddl(DdlStatement::CreateMemoryTable(create)) => {
                let schema = create.input.schema();
                for (index, field) in schema.fields().iter().enumerate() {
                    if schema.fields()[..index].iter().any(|earlier| earlier.name() == field.name()) {
                        return Err(Error::Invalid(format!(
                            "column `{}` is there twice: give each its own name, with AS where it comes from a query",
                            field.name()
                        )));
                    }
                }
                Ok(Arc::unwrap_or_clone(create.input))
            }
            other => Err(Error::Internal(format!("CREATE TABLE became {}", other.display()))),
        }
    }
}

/// Whether values of a type hold intervals.
fn has_interval(data_type: &DataType) -> bool {
    match data_type {
        DataType::Interval(_) => true,
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            has_interval(item.data_type())
        }
        DataType::Struct(fields) => fields.iter().any(|field| has_interval(field.data_type())),
        DataType::Map(entries, _) => has_interval(entries.data_type()),
        _ => false,
    }
}
