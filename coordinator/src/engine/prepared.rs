//! Statements that were parsed and planned once, to be run any number of
//! times.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::ScalarValue;
use datafusion::logical_expr::LogicalPlan;
use datafusion::sql::parser::Statement as DfStatement;
use parking_lot::Mutex;
use shoal_proto::Failure;

use super::availability::availability_columns;
use super::kept_plans::KeptPlan;
use super::planned::{Asked, Planned, bytes_of, is_timeless, parameter_fields, with_values};
use super::rebalance::moved_columns;
use super::{Engine, Parameters, Scope};
use crate::query::{Grounds, as_meant};
use crate::session::Settings;
use crate::sql::{CopyDirection, CopySource, Statement, parse, with_function_hint};
use crate::{Error, Session};

/// Bytes that the values of a lookup may take, and those of what begins when it is announced.
pub(super) const VALUES_BYTES_MAX: usize = 64 << 10;

/// A statement that was parsed and planned once.
pub struct Prepared {
    sql: String,
    pub(super) statement: Statement,
    columns: SchemaRef,
    parameters: Schema,
    planned: Mutex<Option<Arc<Planned>>>,
    /// How long all this took.
    pub(super) took: Duration,
}

impl Prepared {
    /// The text as the client sent it.
    pub fn sql(&self) -> &str {
        &self.sql
    }

    /// Columns of the result; empty for statements that give no rows (DDL, DML,
    /// SET, KILL), which is how clients tell them apart.
    pub fn columns(&self) -> &SchemaRef {
        &self.columns
    }

    /// Whether it only reads: to run it again does no harm.
    pub fn is_query(&self) -> bool {
        self.returns_rows() && !matches!(self.statement, Statement::Rebalance)
    }

    /// Whether it is run with [`Engine::query`]; otherwise with
    /// [`Engine::update`].
    pub fn returns_rows(&self) -> bool {
        matches!(
            self.statement,
            Statement::Query(_)
                | Statement::Explain { .. }
                | Statement::Availability(_)
                | Statement::Rebalance
        )
    }

    /// One field for each parameter, in order, named `$1`, `$2`, ...; a type
    /// that cannot be inferred is `Null`.
    pub fn parameters(&self) -> &Schema {
        &self.parameters
    }

    /// The plan that is kept, where it is a lookup by shard key that can be used as it is
    /// in this version of the catalog and with these parameters. Little is left to plan
    /// then, and it is bounded.
    pub(super) fn kept_lookup(
        &self,
        session: &Session,
        settings: &Settings,
        catalog_version: u64,
        parameters: &[ScalarValue],
    ) -> Option<Arc<Planned>> {
        // For some settings functions are made anew (`StateTemplate::planning`), which takes long.
        if !settings.changed.is_empty() {
            return None;
        }
        let planned = self.kept_for(session, settings, catalog_version)?;
        if !planned.is_lookup() || bytes_of(parameters) > VALUES_BYTES_MAX {
            return None;
        }
        // Others are planned for anew, and may be compared with all rows.
        let values = self.values(parameters.to_vec()).ok()?;
        planned.takes(&values).then_some(planned)
    }

    /// The plan that is kept, where it is for this version of the catalog and for this session
    /// with these settings.
    pub(super) fn kept_for(
        &self,
        session: &Session,
        settings: &Settings,
        catalog_version: u64,
    ) -> Option<Arc<Planned>> {
        // System tables are filled when they are planned.
        let planned = self.planned.lock().clone();
        planned.filter(|kept| kept.is_for(session, settings, catalog_version) && !kept.reads_own_tables())
    }

    /// Parameters as they are put into a plan: in the types that the statement needs.
    ///
    /// # Errors
    /// `Invalid` where there are more or fewer than it has.
    pub(super) fn values(&self, parameters: Parameters) -> Result<Parameters, Error> {
        let wanted = self.parameters.fields().len();
        if parameters.len() != wanted {
            return Err(Error::Invalid(format!(
                "the statement has {wanted} parameters and {} were given",
                parameters.len()
            )));
        }
        let values = parameters.into_iter().zip(self.parameters.fields()).map(|(value, field)| {
            // A text for a number and the like: as the statement needs it.
            if field.data_type().is_null() || value.data_type() == *field.data_type() {
                return value;
            }
            // What does not fit exactly stays as it is, and is compared as it is.
            let there = value.cast_to(field.data_type()).ok();
            let back = there.as_ref().and_then(|there| there.cast_to(&value.data_type()).ok());
            match there {
                Some(there) if back.as_ref() == Some(&value) => there,
                _ => value,
            }
        });
        Ok(values.collect())
    }

    /// What a result of what was planned in this scope rests on; none where that can
    /// change without the catalog.
    pub(super) fn grounds(&self, session: &Session, scope: &Scope) -> Option<Grounds> {
        let planned = self.planned.lock().clone().filter(|kept| kept.is_of(session, scope))?;
        Grounds::of(planned.looked_up())
    }

    /// What was planned, where that holds in this scope.
    pub(super) fn kept(&self, session: &Session, scope: &Scope) -> Option<Arc<Planned>> {
        let kept = self.kept_for(session, &scope.settings, scope.snapshot.version);
        kept.filter(|_| scope.is_caught_up)
    }
}

/// The columns of EXPLAIN.
pub(super) fn explain_columns() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("plan_type", DataType::Utf8, false),
        Field::new("plan", DataType::Utf8, false),
    ]))
}

impl Engine {
    /// Parses, checks and plans a statement without running it.
    ///
    /// # Errors
    /// `Invalid`, `NotFound` and the like, with a hint where a name is
    /// misspelt.
    pub async fn prepare(&self, session: &Arc<Session>, sql: &str) -> Result<Arc<Prepared>, Error> {
        session.touch();
        if let Some(prepared) = self.prepared_before(session, sql).await {
            return Ok(prepared);
        }
        let (engine, session, sql) = (self.clone(), Arc::clone(session), sql.to_owned());
        self.on_compute(async move { engine.prepare_here(&session, &sql).await }).await
    }

    /// The same with the plan that is kept of this text; none where there is none.
    async fn prepared_before(&self, session: &Session, sql: &str) -> Option<Arc<Prepared>> {
        let (began, settings) = (Instant::now(), session.settings());
        if !self.plans.may_have(&settings, sql) || self.cluster.catalog().catch_up().await.is_err() {
            return None;
        }
        let kept = self.plans.find(session, &settings, self.catalog().version, sql)?;
        Some(Arc::new(Prepared {
            sql: sql.to_owned(),
            statement: kept.statement,
            columns: kept.columns,
            parameters: kept.parameters,
            planned: Mutex::new(Some(kept.planned)),
            took: began.elapsed(),
        }))
    }

    async fn prepare_here(&self, session: &Arc<Session>, sql: &str) -> Result<Arc<Prepared>, Error> {
        let began = Instant::now();
        let statement = parse(sql)?;
        let scope = if matches!(statement, Statement::Insert(_)) {
            self.scope_to_write(session).await?
        } else {
            let settings = session.settings();
            let caught_up = self.cluster.catalog().catch_up().await;
            if matches!(statement, Statement::Query(_))
                && caught_up.is_ok()
                && let Some(key) = self.result_key(&settings, sql, || Ok(Vec::new()))
                && let Some(result) = self.kept_result(&key, &self.catalog())
            {
                // Nothing needs to be planned, unless it is run after a change.
                return Ok(Arc::new(Prepared {
                    sql: sql.to_owned(),
                    statement,
                    columns: Arc::clone(result.schema()),
                    parameters: Schema::empty(),
                    planned: Mutex::default(),
                    took: began.elapsed(),
                }));
            }
            self.scope_of(settings, &caught_up, |names| names)
        };
        let nothing = || Arc::new(Schema::empty());
        let mut optimised = None;
        let (columns, plan) = match &statement {
            Statement::Query(query) => {
                let plan = self.plan(&scope, query).await?;
                // A parameter without a value may be more than the optimiser can do.
                optimised = self.optimised(&scope, plan.clone()).ok();
                (result_columns(optimised.as_ref().unwrap_or(&plan)), Some(plan))
            }
            Statement::Explain { query, .. } => (explain_columns(), Some(self.plan(&scope, query).await?)),
            Statement::Availability(query) => (availability_columns(), Some(self.plan(&scope, query).await?)),
            Statement::Rebalance => (moved_columns(), None),
            Statement::Insert(insert) => (nothing(), Some(self.plan(&scope, insert).await?)),
            Statement::CreateTable(create) if create.query.is_some() => {
                (nothing(), Some(self.plan_create(&scope, create).await?))
            }
            Statement::Copy(copy) if copy.direction == CopyDirection::To => match &copy.source {
                CopySource::Query(query) => (nothing(), Some(self.plan_query(&scope, query).await?)),
                CopySource::Table(..) => (nothing(), None),
            },
            _ => (nothing(), None),
        };
        let parameters = match &plan {
            Some(plan) => parameter_fields(plan)?,
            None => Schema::empty(),
        };
        let planned = plan.map(|plan| Arc::new(Planned::of(session, &scope, plan, optimised)));
        if let (Statement::Query(_), Some(planned), true) = (&statement, &planned, scope.is_caught_up) {
            let plan = KeptPlan {
                statement: statement.clone(),
                columns: Arc::clone(&columns),
                parameters: parameters.clone(),
                planned: Arc::clone(planned),
            };
            self.plans.keep(&scope.settings, scope.snapshot.version, sql, plan);
        }
        Ok(Arc::new(Prepared {
            sql: sql.to_owned(),
            statement,
            columns,
            parameters,
            planned: Mutex::new(planned),
            took: began.elapsed(),
        }))
    }

    /// What a query asks for in this scope: the plan that was optimised when it
    /// was prepared, with the parameters put in, where nothing changed since and
    /// they are of the types that were planned for; or else what is still to be
    /// optimised. Where it is a lookup that was found in this scope, that is asked for.
    pub(super) async fn asked_of(
        &self,
        session: &Session,
        scope: &Scope,
        prepared: &Prepared,
        statement: &DfStatement,
        parameters: Parameters,
        lookup: Option<Arc<Planned>>,
    ) -> Result<Asked, Error> {
        let planned = match lookup.or_else(|| prepared.kept(session, scope)) {
            Some(kept) => kept,
            None => {
                let plan = self.plan(scope, statement).await?;
                let optimised = match is_timeless(&plan) {
                    // What goes wrong here goes wrong again where it is run.
                    true => self.optimised(scope, plan.clone()).ok(),
                    false => None,
                };
                let planned = Arc::new(Planned::of(session, scope, plan, optimised));
                *prepared.planned.lock() = Some(Arc::clone(&planned));
                planned
            }
        };
        let values = prepared.values(parameters)?;
        Ok(match planned.optimised_with(&values)? {
            Some(optimised) => Asked::Optimised(optimised, planned.whole().cloned()),
            None => Asked::Plan(with_values(planned.plan().clone(), values)?),
        })
    }

    /// The plan of a statement in this scope: the kept one where nothing
    /// changed since, with the parameters put in.
    pub(super) async fn plan_of(
        &self,
        session: &Session,
        scope: &Scope,
        prepared: &Prepared,
        statement: &DfStatement,
        parameters: Parameters,
    ) -> Result<LogicalPlan, Error> {
        let plan = self.unbound_plan_of(session, scope, prepared, statement).await?;
        self.bind(prepared, plan, parameters)
    }

    /// The same without parameters put in.
    pub(super) async fn unbound_plan_of(
        &self,
        session: &Session,
        scope: &Scope,
        prepared: &Prepared,
        statement: &DfStatement,
    ) -> Result<LogicalPlan, Error> {
        if let Some(kept) = prepared.kept(session, scope) {
            return Ok(kept.plan().clone());
        }
        let plan = self.plan(scope, statement).await?;
        let planned = Planned::of(session, scope, plan.clone(), None);
        *prepared.planned.lock() = Some(Arc::new(planned));
        Ok(plan)
    }

    /// Puts parameters into a plan.
    pub(super) fn bind(
        &self,
        prepared: &Prepared,
        plan: LogicalPlan,
        parameters: Parameters,
    ) -> Result<LogicalPlan, Error> {
        with_values(plan, prepared.values(parameters)?)
    }

    /// A plan as it will be run, before it becomes a physical one.
    pub(super) fn optimised(&self, scope: &Scope, plan: LogicalPlan) -> Result<LogicalPlan, Error> {
        let optimised = as_meant(plan).and_then(|plan| scope.planning.state().optimize(&plan));
        optimised.map_err(|error| self.hinted(&scope.snapshot, Failure::from_datafusion(&error)))
    }

    /// The logical plan of a statement.
    pub(super) async fn plan(&self, scope: &Scope, statement: &DfStatement) -> Result<LogicalPlan, Error> {
        let planned = scope.planning.state().statement_to_plan(statement.clone()).await;
        planned.map_err(|error| {
            let state = scope.planning.state();
            let functions = state.scalar_functions().keys().chain(state.aggregate_functions().keys());
            let functions = functions.chain(state.window_functions().keys()).map(String::as_str);
            let failure = with_function_hint(Failure::from_datafusion(&error), functions);
            self.hinted(&scope.snapshot, failure)
        })
    }
}

/// The columns that running the plan will give: those of the optimised plan,
/// whose types can differ from the bare plan's (a UNION, `round(d, 2)`).
fn result_columns(optimised: &LogicalPlan) -> SchemaRef {
    Arc::clone(optimised.schema().inner())
}

#[cfg(test)]
pub(super) mod tests;
