//! CREATE VIEW: a query under a name, which does not read itself.

use datafusion::sql::parser::Statement as DfStatement;
use datafusion::sql::sqlparser::ast;

use super::Engine;
use super::names::{check_name, full_name};
use crate::catalog::{Command, View};
use crate::sql::{VIEW_DEPTH_MAX, fold_identifier};
use crate::{Error, Session};

impl Engine {
    pub(super) async fn create_view(
        &self,
        session: &Session,
        create: &ast::CreateView,
    ) -> Result<u64, Error> {
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
