//! Statements that change the catalog, and those that change the session.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::logical_expr::{DdlStatement, LogicalPlan, Statement as PlanStatement};
use datafusion::sql::parser::Statement as DfStatement;
use datafusion::sql::sqlparser::ast::{self, ObjectName};
use shoal_data::{ReplicaCount, Table};
use shoal_proto::{TableId, WriteId};

use super::names::{check_name, full_name, plain_name};
use super::{Engine, Parameters, Prepared, Scope};
use crate::catalog::{Command, Coordinator, CoordinatorId, Outcome, View};
use crate::sql::{
    SYSTEM_SCHEMA, Statement, TableOptions, VIEW_DEPTH_MAX, complete_layout, fold_identifier, plain_columns,
};
use crate::{Error, Session};

impl Engine {
    /// Runs a statement that changes something; the rows that it changed.
    ///
    /// # Errors
    /// Then nothing was changed.
    pub async fn update(
        &self,
        session: &Arc<Session>,
        prepared: &Arc<Prepared>,
        parameters: Parameters,
        write_id: Option<WriteId>,
    ) -> Result<u64, Error> {
        session.touch();
        let change = match &prepared.statement {
            // What holds up a coordinator that is stopping can be ended.
            Statement::Kill(_) => None,
            _ => Some(self.begin_change()?),
        };
        let (engine, session, prepared) = (self.clone(), Arc::clone(session), Arc::clone(prepared));
        self.on_compute(async move {
            let _change = change;
            engine.update_here(&session, &prepared, parameters, write_id).await
        })
        .await
    }

    async fn update_here(
        &self,
        session: &Arc<Session>,
        prepared: &Prepared,
        parameters: Parameters,
        write_id: Option<WriteId>,
    ) -> Result<u64, Error> {
        match &prepared.statement {
            Statement::Query(_)
            | Statement::Explain { .. }
            | Statement::Availability(_)
            | Statement::Rebalance => {
                Err(Error::Invalid("this statement gives rows: run it as a query".into()))
            }
            Statement::Insert(insert) => self.insert(session, prepared, insert, parameters, write_id).await,
            Statement::CreateTable(create) if create.query.is_some() => {
                self.create_table_as(session, prepared, create, parameters, write_id).await
            }
            Statement::CreateTable(create) => self.create_table(session, create).await,
            Statement::CreateExternal(create) => self.create_external(session, create).await,
            Statement::CreateView(create) => self.create_view(session, create).await,
            Statement::CreateSchema { name, if_not_exists } => {
                let name = plain_name(name)?;
                check_name("schema", &name)?;
                self.apply(Command::CreateSchema { name, if_not_exists: *if_not_exists }).await
            }
            Statement::Drop { kind, names, if_exists, cascade } => {
                for name in names {
                    self.drop_one(session, *kind, name, *if_exists, *cascade).await?;
                }
                Ok(0)
            }
            Statement::Copy(copy) => self.copy(session, prepared, copy, parameters, write_id).await,
            Statement::Set(set) => self.set(session, set).await,
            Statement::AlterTable { name, if_exists, options } => {
                self.alter_table(session, name, *if_exists, options).await
            }
            Statement::DrainWorker { worker, is_draining } => {
                self.apply(Command::DrainWorker { worker: worker.clone(), is_draining: *is_draining }).await
            }
            Statement::RemoveCoordinator { coordinator } => self.remove_coordinator(coordinator).await,
            Statement::Optimize { name } => self.optimize_table(session, prepared, name).await,
            Statement::Kill(query) => match self.cancel(*query) {
                true => Ok(0),
                false => Err(Error::NotFound(format!(
                    "no query {query} runs: SELECT id, state, sql FROM system.queries shows those that do"
                ))),
            },
        }
    }

    /// Applies a command that changes no rows.
    pub(super) async fn apply(&self, command: Command) -> Result<u64, Error> {
        match self.cluster.catalog().apply(command).await? {
            Outcome::AlreadyWritten { rows } => Ok(rows),
            Outcome::Done | Outcome::Unchanged | Outcome::Table(_) | Outcome::Coordinator(_) => Ok(0),
        }
    }

    async fn create_table(&self, session: &Session, create: &ast::CreateTable) -> Result<u64, Error> {
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
        })
    }

    async fn reserve_table(&self) -> Result<TableId, Error> {
        match self.cluster.catalog().apply(Command::ReserveTable).await? {
            Outcome::Table(id) => Ok(id),
            other => Err(Error::Internal(format!("a table id was asked for and {other:?} came"))),
        }
    }

    /// Plans CREATE TABLE [AS], without the options that are ours: the schema
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
                "CREATE TABLE with {what} is not supported: columns, AS SELECT and WITH (shards, replicas, shard_key, sort_key) are"
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

    async fn create_view(&self, session: &Session, create: &ast::CreateView) -> Result<u64, Error> {
        if create.materialized || create.temporary {
            return Err(Error::Unsupported(
                "materialized and temporary views are not supported: plain views are".into(),
            ));
        }
        let scope = self.scope(session).await?;
        let (schema_name, name) = full_name(&create.name, &scope.settings)?;
        check_name("view", &name)?;
        self.check_schema(&scope, &schema_name)?;
        // Planned once now, so that a view that cannot work is not made.
        let plan = self.plan_query(&scope, &create.query).await?;
        let columns: Vec<String> =
            create.columns.iter().map(|column| fold_identifier(column.name.clone())).collect();
        if !columns.is_empty() && columns.len() != plan.schema().fields().len() {
            return Err(Error::Invalid(format!(
                "view {name} names {} columns and its query gives {}",
                columns.len(),
                plan.schema().fields().len()
            )));
        }
        if create.if_not_exists && scope.snapshot.view(&schema_name, &name).is_some() {
            session.notice(format!("view {schema_name}.{name} exists already, skipped"));
            return Ok(0);
        }
        let columns = (!columns.is_empty()).then_some(columns);
        let default_schema = Some(scope.settings.options.catalog.default_schema.clone());
        if reads_view(&scope.snapshot, &create.query, default_schema.as_deref(), (&schema_name, &name), 0)? {
            return Err(Error::Invalid(format!(
                "view {schema_name}.{name} would read itself: give the new view another name"
            )));
        }
        let view = View { schema_name, name, sql: create.query.to_string(), columns, default_schema };
        self.apply(Command::CreateView { view, or_replace: create.or_replace }).await
    }

    async fn drop_one(
        &self,
        session: &Session,
        kind: ast::ObjectType,
        name: &ObjectName,
        if_exists: bool,
        cascade: bool,
    ) -> Result<u64, Error> {
        let settings = session.settings();
        if kind == ast::ObjectType::Schema {
            return self.apply(Command::DropSchema { name: plain_name(name)?, if_exists, cascade }).await;
        }
        let (schema_name, name) = full_name(name, &settings)?;
        self.cluster.catalog().catch_up().await?;
        let snapshot = self.catalog();
        let is_view = snapshot.view(&schema_name, &name).is_some();
        let found = match kind {
            ast::ObjectType::View => is_view,
            _ => {
                snapshot.table(&schema_name, &name).is_some()
                    || snapshot.external(&schema_name, &name).is_some()
            }
        };
        if !found && if_exists {
            session.notice(format!(
                "{} {schema_name}.{name} does not exist, skipped",
                kind.to_string().to_lowercase()
            ));
            return Ok(0);
        }
        let other = match kind {
            ast::ObjectType::View if snapshot.table(&schema_name, &name).is_some() => {
                Some("a table: DROP TABLE")
            }
            ast::ObjectType::Table if is_view => Some("a view: DROP VIEW"),
            _ => None,
        };
        if !found && let Some(other) = other {
            return Err(Error::Invalid(format!("{schema_name}.{name} is {other} drops it")));
        }
        if !found {
            return Err(self.unknown_table(&snapshot, &schema_name, &name));
        }
        self.apply(match kind {
            ast::ObjectType::View => Command::DropView { schema_name, name, if_exists },
            _ if snapshot.external(&schema_name, &name).is_some() => {
                Command::DropExternal { schema_name, name, if_exists }
            }
            _ => Command::DropTable { schema_name, name, if_exists },
        })
        .await
    }

    async fn alter_table(
        &self,
        session: &Session,
        name: &ObjectName,
        if_exists: bool,
        options: &[ast::SqlOption],
    ) -> Result<u64, Error> {
        let replicas = TableOptions::read_replicas(options)?;
        let (schema_name, name) = full_name(name, &session.settings())?;
        self.cluster.catalog().catch_up().await?;
        let snapshot = self.catalog();
        if snapshot.table(&schema_name, &name).is_none() {
            if if_exists {
                session.notice(format!("table {schema_name}.{name} does not exist, skipped"));
                return Ok(0);
            }
            return Err(self.unknown_table(&snapshot, &schema_name, &name));
        }
        let live = self.cluster.live().workers.len();
        if let ReplicaCount::Count(count) = replicas
            && count as usize > live
        {
            session.notice(format!(
                "replicas = {count}, and {live} workers are live: more copies wait for more"
            ));
        }
        self.apply(Command::SetReplicas { schema_name, name, replicas }).await
    }

    async fn remove_coordinator(&self, named: &str) -> Result<u64, Error> {
        let catalog = self.cluster.catalog();
        // One that another coordinator took in is known here then.
        catalog.catch_up().await?;
        let coordinator = coordinator_named(named, &catalog.coordinators())?;
        catalog.dismiss(coordinator).await?;
        Ok(0)
    }

    async fn set(&self, session: &Session, statement: &DfStatement) -> Result<u64, Error> {
        let scope = self.scope_to_read(session).await;
        match self.plan(&scope, statement).await? {
            LogicalPlan::Statement(PlanStatement::SetVariable(set)) => {
                session.set(&set.variable, Some(&set.value))?;
                self.tell_of_no_results(session, &set.variable);
            }
            LogicalPlan::Statement(PlanStatement::ResetVariable(reset)) => {
                session.set(&reset.variable, None)?
            }
            other => return Err(Error::Unsupported(format!("`{}` is not supported", other.display()))),
        }
        Ok(0)
    }

    pub(super) fn check_schema(&self, scope: &Scope, schema_name: &str) -> Result<(), Error> {
        if schema_name == SYSTEM_SCHEMA || schema_name == "information_schema" {
            return Err(Error::Invalid(format!("schema {schema_name} is Shoal's own: choose another one")));
        }
        if scope.snapshot.has_schema(schema_name) {
            return Ok(());
        }
        let known: Vec<_> = scope.snapshot.schemas().collect();
        Err(Error::NotFound(format!(
            "schema {schema_name} does not exist (there are: {}): make it with CREATE SCHEMA {schema_name}",
            known.join(", ")
        )))
    }

    /// The plan of a bare query.
    pub(super) async fn plan_query(&self, scope: &Scope, query: &ast::Query) -> Result<LogicalPlan, Error> {
        let statement = ast::Statement::Query(Box::new(query.clone()));
        self.plan(scope, &DfStatement::Statement(Box::new(statement))).await
    }
}

/// The coordinator with this number or URL. A machine that was set up anew has
/// another number and the same URL, while the old number is still there.
fn coordinator_named(named: &str, all: &[Coordinator]) -> Result<CoordinatorId, Error> {
    let is_it = |it: &&Coordinator| it.id.to_string() == named || it.address == named;
    let found: Vec<_> = all.iter().filter(is_it).map(|it| it.id).collect();
    match found.as_slice() {
        [coordinator] => Ok(*coordinator),
        [] => {
            let known: Vec<_> = all.iter().map(|it| format!("{} at {}", it.id, it.address)).collect();
            Err(Error::NotFound(format!("there is no coordinator {named}; there are {}", known.join(", "))))
        }
        several => {
            let numbers: Vec<_> = several.iter().map(ToString::to_string).collect();
            Err(Error::Invalid(format!(
                "{named} is the URL of coordinators {}: name the one to remove by its number",
                numbers.join(" and ")
            )))
        }
    }
}

/// Whether a query reads a view, by itself or through other views.
fn reads_view(
    snapshot: &crate::catalog::State,
    query: &ast::Query,
    default_schema: Option<&str>,
    wanted: (&str, &str),
    depth: usize,
) -> Result<bool, Error> {
    let mut read = Vec::new();
    let visited = ast::visit_relations(query, |relation| {
        read.push(relation.clone());
        std::ops::ControlFlow::<()>::Continue(())
    });
    debug_assert!(visited.is_continue(), "nothing breaks off");
    for relation in read {
        let parts: Option<Vec<String>> = relation
            .0
            .iter()
            .map(|part| part.as_ident().map(|ident| fold_identifier(ident.clone())))
            .collect();
        let (schema_name, name) = match parts.as_deref() {
            Some([name]) => (default_schema.unwrap_or("public").to_owned(), name.clone()),
            Some([.., schema_name, name]) => (schema_name.clone(), name.clone()),
            _ => continue,
        };
        if (schema_name.as_str(), name.as_str()) == wanted {
            return Ok(true);
        }
        if let Some(view) = snapshot.view(&schema_name, &name)
            && depth < VIEW_DEPTH_MAX
            && let crate::sql::Statement::Query(statement) = crate::sql::parse(&view.sql)?
            && let DfStatement::Statement(statement) = *statement
            && let ast::Statement::Query(query) = *statement
            && reads_view(snapshot, &query, view.default_schema.as_deref(), wanted, depth + 1)?
        {
            return Ok(true);
        }
    }
    Ok(false)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_coordinator_is_named_by_its_number_or_its_url() {
        let coordinator = |id: CoordinatorId, address: &str| Coordinator {
            id,
            address: address.to_owned(),
            is_voter: true,
            is_leader: id == 1,
            is_self: id == 2,
        };
        let all = [
            coordinator(1, "http://a:7400"),
            coordinator(2, "http://b:7400"),
            coordinator(4, "http://b:7400"),
        ];
        let known = "there are 1 at http://a:7400, 2 at http://b:7400, 4 at http://b:7400";
        let several = "is the URL of coordinators 2 and 4: name the one to remove by its number";
        for (named, expected) in [
            ("1", Ok(1)),
            ("http://a:7400", Ok(1)),
            ("4", Ok(4)),
            ("3", Err(format!("NotFound: there is no coordinator 3; {known}"))),
            ("http://c:7400", Err(format!("NotFound: there is no coordinator http://c:7400; {known}"))),
            ("http://b:7400", Err(format!("Invalid: http://b:7400 {several}"))),
        ] {
            let found = coordinator_named(named, &all);
            assert_eq!(found.map_err(|error| format!("{:?}: {error}", error.code())), expected, "{named}");
        }
    }
}
