//! The plan that a prepared statement keeps: for which world it was made, and
//! whether it can be run as it is.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use datafusion::common::{ParamValues, ScalarValue};
use datafusion::logical_expr::LogicalPlan;

use super::Scope;
use super::lookup::{is_little, is_lookup, takes_values_late};
use crate::query::{KeptWhole, fleeting_part, is_brief, reads_own_tables};
use crate::session::Settings;
use crate::sql::LookedUp;
use crate::{Error, Session};

/// A plan and the world that it was made for.
pub(super) struct Planned {
    catalog_version: u64,
    settings_version: u64,
    session: String,
    plan: LogicalPlan,
    /// Types of its parameters, by number.
    parameters: Vec<DataType>,
    /// The same optimised, where that is right whenever it is run, and whatever
    /// its parameters are.
    optimised: Option<LogicalPlan>,
    is_lookup: bool,
    is_brief: bool,
    reads_own_tables: bool,
    /// Its physical plan, where that is one for one worker.
    whole: Arc<KeptWhole>,
    /// The names that were looked up for it.
    looked_up: LookedUp,
}

impl Planned {
    /// What was planned in this scope. `optimised` is the same plan optimised, where
    /// that was possible; it is kept where it can be.
    pub(super) fn of(
        session: &Session,
        scope: &Scope,
        plan: LogicalPlan,
        optimised: Option<LogicalPlan>,
    ) -> Self {
        let parameters = parameter_fields(&plan).ok();
        let optimised = optimised.filter(|optimised| {
            let takes_values = parameters
                .as_ref()
                .is_some_and(|known| known.fields().is_empty() || takes_values_late(&plan, optimised));
            takes_values && is_timeless(&plan)
        });
        let is_lookup = optimised.as_ref().is_some_and(is_lookup) && is_little(&plan);
        let is_brief =
            is_lookup || optimised.as_ref().is_some_and(|plan| is_brief(plan, scope.planning.state()));
        let types = parameters.iter().flat_map(|known| known.fields().iter());
        Self {
            catalog_version: scope.snapshot.version,
            settings_version: scope.settings.version,
            session: session.id().to_owned(),
            parameters: types.map(|field| field.data_type().clone()).collect(),
            is_lookup,
            is_brief,
            reads_own_tables: reads_own_tables(&plan),
            whole: Arc::default(),
            looked_up: scope.looked_up.clone(),
            plan,
            optimised,
        }
    }

    /// Whether it was made in this scope. A snapshot that may be an old one must not
    /// be read, whatever was planned before.
    pub(super) fn is_of(&self, session: &Session, scope: &Scope) -> bool {
        scope.is_caught_up && self.is_for(session, &scope.settings, scope.snapshot.version)
    }

    /// Whether it was made for this version of the catalog, and for this session with
    /// these settings of it; or for one that had changed none, as this one has not.
    pub(super) fn is_for(&self, session: &Session, settings: &Settings, catalog_version: u64) -> bool {
        self.catalog_version == catalog_version
            && self.settings_version == settings.version
            && (settings.version == 0 || self.session == session.id())
    }

    /// Whether it has an optimised plan.
    pub(super) fn is_optimised(&self) -> bool {
        self.optimised.is_some()
    }

    /// The plan as it was written.
    pub(super) fn plan(&self) -> &LogicalPlan {
        &self.plan
    }

    /// Whether it has an optimised plan, and that is a lookup; and the plan as it was
    /// written is little, too.
    pub(super) fn is_lookup(&self) -> bool {
        self.is_lookup
    }

    /// Whether it has an optimised plan that is done with soon, whatever its parameters are.
    pub(super) fn is_brief(&self) -> bool {
        self.is_brief
    }

    /// Whether it holds rows that were true only when it was made.
    pub(super) fn reads_own_tables(&self) -> bool {
        self.reads_own_tables
    }

    /// Where its physical plan is kept; none where that is another one for each run.
    pub(super) fn whole(&self) -> Option<&Arc<KeptWhole>> {
        (self.optimised.is_some() && self.parameters.is_empty()).then_some(&self.whole)
    }

    /// The names that were looked up for it.
    pub(super) fn looked_up(&self) -> &LookedUp {
        &self.looked_up
    }

    /// Whether it has an optimised plan that is right with these values for its
    /// parameters. Nulls and other types would be treated otherwise by the optimiser.
    pub(super) fn takes(&self, values: &[ScalarValue]) -> bool {
        let is_as_planned = |(value, planned): (&ScalarValue, &DataType)| {
            !planned.is_null() && !value.is_null() && value.data_type() == *planned
        };
        self.optimised.is_some()
            && values.len() == self.parameters.len()
            && values.iter().zip(&self.parameters).all(is_as_planned)
    }

    /// The optimised plan with these values for its parameters; none where there is
    /// none for them.
    ///
    /// # Errors
    /// None in practice; those of changing a plan.
    pub(super) fn optimised_with(&self, values: &[ScalarValue]) -> Result<Option<LogicalPlan>, Error> {
        let optimised = self.optimised.as_ref().filter(|_| self.takes(values));
        optimised.map(|optimised| with_values(optimised.clone(), values.to_vec())).transpose()
    }
}

/// What is to be run.
pub(super) enum Asked {
    /// A plan as it was written.
    Plan(LogicalPlan),
    /// One that is optimised already, and where its physical plan is kept.
    Optimised(LogicalPlan, Option<Arc<KeptWhole>>),
}

impl Asked {
    pub(super) fn plan(&self) -> &LogicalPlan {
        match self {
            Self::Plan(plan) | Self::Optimised(plan, _) => plan,
        }
    }
}

impl From<LogicalPlan> for Asked {
    fn from(plan: LogicalPlan) -> Self {
        Self::Plan(plan)
    }
}

/// A plan with these values for its parameters.
///
/// # Errors
/// Where one of them cannot be there.
pub(super) fn with_values(plan: LogicalPlan, values: Vec<ScalarValue>) -> Result<LogicalPlan, Error> {
    if values.is_empty() {
        return Ok(plan);
    }
    Ok(plan.with_param_values(ParamValues::from(values))?)
}

/// Bytes that values take.
pub(super) fn bytes_of(values: &[ScalarValue]) -> usize {
    values.iter().map(ScalarValue::size).sum()
}

/// Whether a plan means the same at any moment: no `now()`, no `random()`.
pub(super) fn is_timeless(plan: &LogicalPlan) -> bool {
    fleeting_part(plan).is_none()
}

/// One field for each parameter of a plan, by number.
///
/// # Errors
/// `Invalid` where parameters are not numbered from 1.
pub(super) fn parameter_fields(plan: &LogicalPlan) -> Result<Schema, Error> {
    let types = plan.get_parameter_types()?;
    let mut numbered = Vec::with_capacity(types.len());
    for (name, data_type) in types {
        let number: usize = name.trim_start_matches('$').parse().map_err(|_| {
            Error::Invalid(format!("parameter `{name}` has no number: write $1, $2 and so on, or ?"))
        })?;
        numbered.push((number, name, data_type.unwrap_or(DataType::Null)));
    }
    numbered.sort_by_key(|(number, ..)| *number);
    if let Some((expected, found)) =
        numbered.iter().enumerate().map(|(index, (number, ..))| (index + 1, *number)).find(|(a, b)| a != b)
    {
        return Err(Error::Invalid(format!("there is a parameter ${found} but no ${expected}")));
    }
    let fields = numbered.into_iter().map(|(_, name, data_type)| Field::new(name, data_type, true));
    Ok(Schema::new(fields.collect::<Vec<_>>()))
}
