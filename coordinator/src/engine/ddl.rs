//! Statements that change the catalog, and those that change the session.

use std::sync::Arc;

use datafusion::logical_expr::{LogicalPlan, Statement as PlanStatement};
use datafusion::sql::parser::Statement as DfStatement;
use datafusion::sql::sqlparser::ast::{self, ObjectName};
use shoal_data::ReplicaCount;
use shoal_proto::WriteId;

use super::names::{check_name, full_name, plain_name};
use super::{Engine, Parameters, Prepared, Scope};
use crate::catalog::{Command, Coordinator, CoordinatorId, Outcome};
use crate::sql::{SYSTEM_SCHEMA, Statement, TableOptions};
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
