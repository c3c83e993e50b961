//! COPY and external tables: files below the import roots, and object stores.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::execution::SendableRecordBatchStream;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::sql::parser::{CreateExternalTable, Statement as DfStatement};
use datafusion::sql::sqlparser::ast::{self, Value};
use futures::StreamExt;
use shoal_data::object_stores::is_allowed;
use shoal_proto::fault::{self, Step};
use shoal_proto::{ErrorCode, Failure, QueryId, WriteId};

use super::names::{check_name, full_name};
use super::write::Commit;
use super::{Engine, Parameters, Prepared, Scope};
use crate::catalog::{Command, ExternalTable};
use crate::files::{Compression, FileFormat, Location, infer_columns, open_files, resolve, write_file};
use crate::query::Running;
use crate::sql::{Copy, CopyDirection, CopySource, ShoalConfig, plain_columns};
use crate::write::{Load, Staged, Texts, spread};
use crate::{Error, Session};

impl Engine {
    pub(super) async fn create_external(
        &self,
        session: &Session,
        create: &CreateExternalTable,
    ) -> Result<u64, Error> {
        if !create.table_partition_cols.is_empty() || !create.order_exprs.is_empty() || create.unbounded {
            return Err(Error::Unsupported(
                "PARTITIONED BY, WITH ORDER and UNBOUNDED are not supported for external tables".into(),
            ));
        }
        let [location] = create.locations.as_slice() else {
            return Err(Error::Invalid(
                "an external table has one LOCATION; it may be a pattern such as 'dir/*.parquet'".into(),
            ));
        };
        self.check_location(location)?;
        let scope = self.scope(session).await?;
        let (schema_name, name) = full_name(&create.name, &scope.settings)?;
        check_name("table", &name)?;
        self.check_schema(&scope, &schema_name)?;
        let mut options: BTreeMap<String, String> =
            create.options.iter().map(|(name, value)| (name.to_lowercase(), option_text(value))).collect();
        options.insert("format".into(), create.file_type.to_lowercase());
        let format = FileFormat::from_options(location, &options)?;
        if create.file_type.eq_ignore_ascii_case("csv")
            && format.stream_compression(location) != Compression::None
        {
            return Err(Error::Unsupported(format!(
                "`{location}` is compressed: a compressed CSV file cannot be read in place. CREATE TABLE and COPY ... FROM \
                 load it"
            )));
        }
        // Read once now, so that a table that cannot be read is not made.
        let found = infer_columns(scope.planning.state(), &self.imports, location, &format).await?;
        let columns = match create.columns.is_empty() {
            true => plain_columns(&found),
            false => self.declared_columns(&scope, create).await?,
        };
        options.remove("format");
        let table = ExternalTable {
            schema_name,
            name,
            columns,
            format: create.file_type.to_uppercase(),
            location: location.clone(),
            options,
        };
        self.apply(Command::CreateExternal {
            table,
            if_not_exists: create.if_not_exists,
            or_replace: create.or_replace,
        })
        .await
    }

    /// Refuses object stores that the operator did not name.
    fn check_location(&self, location: &str) -> Result<(), Error> {
        match resolve(&self.imports, location)? {
            Location::Remote(url) if !is_allowed(&self.object_stores, &url) => Err(Error::Invalid(format!(
                "`{location}` is not below an object store that this cluster may use: start coordinator and workers \
                 with --object-store s3://bucket/path"
            ))),
            Location::Local(_) | Location::Remote(_) => Ok(()),
        }
    }

    async fn declared_columns(
        &self,
        scope: &Scope,
        create: &CreateExternalTable,
    ) -> Result<arrow::datatypes::SchemaRef, Error> {
        let columns: Vec<_> = create.columns.iter().map(ToString::to_string).collect();
        let sql = format!("CREATE TABLE {} ({})", create.name, columns.join(", "));
        match crate::sql::parse(&sql)? {
            crate::sql::Statement::CreateTable(create) => {
                Ok(plain_columns(self.plan_create(scope, &create).await?.schema().as_arrow()))
            }
            _ => Err(Error::Internal("columns of an external table".into())),
        }
    }

    pub(super) async fn copy(
        &self,
        session: &Arc<Session>,
        prepared: &Prepared,
        copy: &Copy,
        parameters: Parameters,
        write_id: Option<WriteId>,
    ) -> Result<u64, Error> {
        self.check_location(&copy.location)?;
        match copy.direction {
            CopyDirection::From => self.copy_from(session, prepared, copy, write_id).await,
            CopyDirection::To => self.copy_to(session, prepared, copy, parameters).await,
        }
    }

    async fn copy_from(
        &self,
        session: &Arc<Session>,
        prepared: &Prepared,
        copy: &Copy,
        write_id: Option<WriteId>,
    ) -> Result<u64, Error> {
        let write_id = self.write_id(session, write_id);
        if let Some(rows) = self.written_before(&write_id).await? {
            return Ok(rows);
        }
        let CopySource::Table(name, named) = &copy.source else {
            return Err(Error::Invalid("COPY FROM needs a table".into()));
        };
        let running = self.registry.begin(QueryId::random(), session.user(), prepared.sql());
        let scope = self.scope(session).await?;
        let (schema_name, name) = full_name(name, &scope.settings)?;
        let table = self.table_to_write(&scope.snapshot, &schema_name, &name)?;
        let columns = match named.is_empty() {
            true => Arc::clone(&table.columns),
            false => {
                let indices = named.iter().map(|column| {
                    table.columns.index_of(column).map_err(|_| {
                        Error::NotFound(format!("column `{column}` does not exist in {}", table.full_name()))
                    })
                });
                let indices = indices.collect::<Result<Vec<_>, _>>()?;
                Arc::new(table.columns.project(&indices).map_err(|error| Error::Invalid(error.to_string()))?)
            }
        };
        let format = FileFormat::from_options(&copy.location, &copy.options)?;
        let opened =
            open_files(scope.planning.state(), &self.imports, &copy.location, &format, columns).await?;
        let task_bytes = ShoalConfig::of(&scope.settings.options).load_task_bytes as u64;
        let files_at = self.cluster.catalog().consensus().address.clone();
        for texts in [Texts::Cut, Texts::Whole] {
            let write = (&table, &write_id);
            let Some(load) = Load::new(&self.writes, write, &opened, texts, &files_at, task_bytes) else {
                break;
            };
            let is_cut = load.is_cut();
            fault::point(Step::WriteBegun);
            let staged = self.spread(&running, load).await;
            match &staged {
                // Maybe a value with a line end was cut; and what is wrong is told with its line.
                Err(error) if is_cut && error.code() == ErrorCode::Invalid => {
                    tracing::info!(%write_id, %error, "text was not loaded in parts; it is loaded as a whole");
                    running.begun_anew();
                    continue;
                }
                Err(error) => running.failed(&error.to_string()),
                Ok(_) => running.finished(),
            }
            return self.commit_rows(&table, &write_id, staged?, Commit::Append).await;
        }
        self.write(&table, &write_id, watched(running, opened.into_rows()), Commit::Append).await
    }

    /// Stages a load on the workers. Its record counts what is done, and `KILL
    /// QUERY` ends it.
    async fn spread(&self, running: &Running, load: Load) -> Result<Staged, Error> {
        let cancelled = running.cancelled();
        let count = |rows: u64, bytes: u64| running.count(rows as usize, bytes as usize);
        tokio::select! {
            biased;
            () = cancelled.cancelled() => Err(Error::Cancelled("the statement was cancelled".to_owned())),
            staged = spread(&self.writes, load, &count) => staged,
        }
    }

    async fn copy_to(
        &self,
        session: &Arc<Session>,
        prepared: &Prepared,
        copy: &Copy,
        parameters: Parameters,
    ) -> Result<u64, Error> {
        let format = FileFormat::from_options(&copy.location, &copy.options)?;
        let running = self.registry.begin(QueryId::random(), session.user(), prepared.sql());
        let scope = self.scope(session).await?;
        let plan = match &copy.source {
            CopySource::Query(query) => self.plan_query(&scope, query).await?,
            CopySource::Table(name, columns) => self.plan_table(&scope, name, columns).await?,
        };
        let plan = self.bind(prepared, plan, parameters)?;
        let state = scope.planning.state().clone();
        let rows = self.select(running, scope, plan, None).await?;
        write_file(&state, &self.imports, &copy.location, &format, Box::pin(rows)).await
    }

    /// `SELECT columns FROM table`.
    async fn plan_table(
        &self,
        scope: &Scope,
        name: &ast::ObjectName,
        columns: &[String],
    ) -> Result<LogicalPlan, Error> {
        let columns: Vec<_> =
            columns.iter().map(|column| format!("\"{}\"", column.replace('"', "\"\""))).collect();
        let columns = if columns.is_empty() { "*".to_owned() } else { columns.join(", ") };
        match crate::sql::parse(&format!("SELECT {columns} FROM {name}"))? {
            crate::sql::Statement::Query(query) => {
                let query: DfStatement = *query;
                self.plan(scope, &query).await
            }
            _ => Err(Error::Internal("COPY of a table".into())),
        }
    }
}

fn option_text(value: &Value) -> String {
    match value {
        Value::SingleQuotedString(text) | Value::DoubleQuotedString(text) => text.clone(),
        other => other.to_string(),
    }
}

/// A stream that its query's record counts, and that `KILL QUERY` ends.
fn watched(running: Running, rows: SendableRecordBatchStream) -> SendableRecordBatchStream {
    let schema = rows.schema();
    let state = (Some(running), rows);
    let counted = futures::stream::unfold(state, |(running, mut rows)| async move {
        let running = running?;
        let cancelled = running.cancelled();
        let batch = tokio::select! {
            biased;
            () = cancelled.cancelled() => {
                Some(Err(Failure::new(ErrorCode::Cancelled, "the statement was cancelled").into()))
            }
            batch = rows.next() => batch,
        };
        match batch {
            Some(Ok(batch)) => {
                running.count(batch.num_rows(), batch.get_array_memory_size());
                Some((Ok(batch), (Some(running), rows)))
            }
            Some(Err(error)) => {
                running.failed(&Failure::from_datafusion(&error).to_string());
                Some((Err(error), (None, rows)))
            }
            None => {
                running.finished();
                None
            }
        }
    });
    Box::pin(RecordBatchStreamAdapter::new(schema, counted))
}
