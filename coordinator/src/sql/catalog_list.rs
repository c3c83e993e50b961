//! One snapshot of the catalog, as DataFusion resolves names in it.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::view::ViewTable;
use datafusion::catalog::{CatalogProvider, CatalogProviderList, SchemaProvider, TableProvider};
use datafusion::common::{Result, plan_datafusion_err, plan_err};
use datafusion::config::ConfigOptions;
use datafusion::sql::parser::Statement as DfStatement;

use shoal_proto::{ErrorCode, Failure};

use super::looked_up::{LookedUp, Meaning};
use super::parse::{Statement, parse};
use super::system_tables::{SYSTEM_SCHEMA, SystemTables};
use crate::Error;
use crate::catalog::{State, View};
use crate::files::external_table;
use crate::query::{ShardTable, StateTemplate};

/// The one catalog that there is.
pub(crate) const CATALOG: &str = "shoal";
/// Views that may stand on one another.
pub(crate) const VIEW_DEPTH_MAX: usize = 16;

/// A snapshot's names. Cheap to clone.
#[derive(Clone)]
pub struct SnapshotCatalogs {
    snapshot: Arc<State>,
    system: SystemTables,
    template: Arc<StateTemplate>,
    options: Arc<ConfigOptions>,
    looked_up: LookedUp,
    view_depth: usize,
    is_for_writing: bool,
    /// Why the snapshot may be an old one.
    stale: Option<Arc<str>>,
}

impl SnapshotCatalogs {
    /// The names of `snapshot` for a session with these settings. What is looked
    /// up is noted in `looked_up`.
    pub fn new(
        snapshot: Arc<State>,
        system: SystemTables,
        template: Arc<StateTemplate>,
        options: Arc<ConfigOptions>,
        looked_up: LookedUp,
    ) -> Self {
        let (view_depth, is_for_writing, stale) = (0, false, None);
        Self { snapshot, system, template, options, looked_up, view_depth, is_for_writing, stale }
    }

    /// The same names for planning a write: see [`ShardTable::to_write`].
    pub fn for_writing(self) -> Self {
        Self { is_for_writing: true, ..self }
    }

    /// The same names where the snapshot may be an old one: only system tables
    /// can be read, and others fail with this error.
    pub fn stale(self, error: &Error) -> Self {
        Self { stale: Some(error.to_string().into()), ..self }
    }

    /// The query behind a view. It is planned anew: what it reads may have
    /// changed since it was made.
    async fn view(&self, view: &View) -> Result<Arc<dyn TableProvider>> {
        if self.view_depth >= VIEW_DEPTH_MAX {
            return plan_err!(
                "views stand on one another more than {VIEW_DEPTH_MAX} deep at `{}`",
                view.name
            );
        }
        let query = match parse(&view.sql).map_err(datafusion::error::DataFusionError::from)? {
            Statement::Query(query) => query,
            _ => return plan_err!("view `{}` is not a query", view.name),
        };
        let plan = self
            .plan_view(*query, view.default_schema.as_deref())
            .await
            .map_err(|error| error.context(format!("view `{}`", view.name)))?;
        let plan = match &view.columns {
            None => plan,
            Some(names) if names.len() == plan.schema().fields().len() => {
                let columns = plan.schema().columns();
                let renamed = columns
                    .into_iter()
                    .zip(names)
                    .map(|(column, name)| datafusion::logical_expr::Expr::Column(column).alias(name));
                datafusion::logical_expr::LogicalPlanBuilder::from(plan)
                    .project(renamed.collect::<Vec<_>>())?
                    .build()?
            }
            Some(names) => {
                return plan_err!(
                    "view `{}` names {} columns and its query gives {}",
                    view.name,
                    names.len(),
                    plan.schema().fields().len()
                );
            }
        };
        Ok(Arc::new(ViewTable::new(plan, Some(view.sql.clone()))))
    }

    /// A view means what it meant when it was made, whatever this session has
    /// set since.
    async fn plan_view(
        &self,
        query: DfStatement,
        default_schema: Option<&str>,
    ) -> Result<datafusion::logical_expr::LogicalPlan> {
        let deeper = Self { view_depth: self.view_depth + 1, ..self.clone() };
        let mut options = self.options.as_ref().clone();
        options.sql_parser = self.template.options().sql_parser;
        if let Some(schema) = default_schema {
            schema.clone_into(&mut options.catalog.default_schema);
        }
        let planning = self.template.planning(&options, Arc::new(deeper));
        planning.state().statement_to_plan(query).await
    }
}

impl std::fmt::Debug for SnapshotCatalogs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SnapshotCatalogs(version {})", self.snapshot.version)
    }
}

impl CatalogProviderList for SnapshotCatalogs {
    fn register_catalog(
        &self,
        _name: String,
        _catalog: Arc<dyn CatalogProvider>,
    ) -> Option<Arc<dyn CatalogProvider>> {
        None
    }

    fn catalog_names(&self) -> Vec<String> {
        vec![CATALOG.to_owned()]
    }

    fn catalog(&self, name: &str) -> Option<Arc<dyn CatalogProvider>> {
        (name == CATALOG).then(|| Arc::new(self.clone()) as Arc<dyn CatalogProvider>)
    }
}

impl CatalogProvider for SnapshotCatalogs {
    fn schema_names(&self) -> Vec<String> {
        self.snapshot.schemas().map(str::to_owned).chain([SYSTEM_SCHEMA.to_owned()]).collect()
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        (name == SYSTEM_SCHEMA || self.snapshot.has_schema(name))
            .then(|| Arc::new(SnapshotSchema { names: self.clone(), schema_name: name.to_owned() }) as _)
    }
}

/// One schema of a snapshot.
#[derive(Debug)]
struct SnapshotSchema {
    names: SnapshotCatalogs,
    schema_name: String,
}

#[async_trait]
impl SchemaProvider for SnapshotSchema {
    fn table_names(&self) -> Vec<String> {
        if self.schema_name == SYSTEM_SCHEMA {
            return SystemTables::names().map(str::to_owned).collect();
        }
        let snapshot = &self.names.snapshot;
        let is_here = |schema_name: &String| *schema_name == self.schema_name;
        let tables =
            snapshot.tables().filter(|table| is_here(&table.schema_name)).map(|table| table.name.clone());
        let views = snapshot.views().filter(|view| is_here(&view.schema_name)).map(|view| view.name.clone());
        let externals =
            snapshot.externals().filter(|table| is_here(&table.schema_name)).map(|table| table.name.clone());
        tables.chain(views).chain(externals).collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let (names, schema_name) = (&self.names, self.schema_name.as_str());
        let note = |meaning: Meaning| names.looked_up.note(schema_name, name, meaning);
        if schema_name == SYSTEM_SCHEMA {
            note(Meaning::Elsewhere);
            return names.system.table(name, &names.snapshot).map_err(|error: Error| error.into());
        }
        if let Some(stale) = &names.stale {
            return Err(Failure::new(ErrorCode::Unavailable, &**stale).into());
        }
        if let Some(table) = names.snapshot.table(schema_name, name) {
            let facts = names.snapshot.facts(table);
            note(Meaning::Table(Arc::clone(&facts)));
            let provider =
                if names.is_for_writing { ShardTable::to_write(facts) } else { ShardTable::new(facts) };
            return Ok(Some(Arc::new(provider)));
        }
        if let Some(view) = names.snapshot.view(schema_name, name) {
            note(Meaning::View(Arc::clone(view)));
            return names.view(view).await.map(Some);
        }
        if let Some(table) = names.snapshot.external(schema_name, name) {
            note(Meaning::Elsewhere);
            let provider = external_table(table).map_err(|error| plan_datafusion_err!("{error}"))?;
            return Ok(Some(provider));
        }
        note(Meaning::Nothing);
        Ok(None)
    }

    fn table_exist(&self, name: &str) -> bool {
        if self.schema_name == SYSTEM_SCHEMA {
            return SystemTables::names().any(|known| known == name);
        }
        let snapshot = &self.names.snapshot;
        snapshot.table(&self.schema_name, name).is_some()
            || snapshot.view(&self.schema_name, name).is_some()
            || snapshot.external(&self.schema_name, name).is_some()
    }
}
