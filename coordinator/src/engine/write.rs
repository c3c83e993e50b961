//! Statements that write rows: staged on every replica, then committed by one
//! command. A write id that is committed already does nothing again.

use std::sync::Arc;

use datafusion::execution::SendableRecordBatchStream;
use datafusion::logical_expr::{LogicalPlan, WriteOp};
use datafusion::sql::parser::Statement as DfStatement;
use datafusion::sql::sqlparser::ast;
use futures::StreamExt;
use shoal_data::Table;
use shoal_proto::fault::{self, Step};
use shoal_proto::{QueryId, WriteId};

use super::many_rows::with_all_rows;
use super::names::{check_name, full_name, resolved};
use super::{Engine, Ingest, IngestMode, Parameters, Prepared, Scope};
use crate::catalog::{
    ChangeError, Command, Outcome, Settled, WriteRecord, bytes_in_change, check_change_bytes,
};
use crate::cluster::Cluster;
use crate::query::{Running, Stay, reads_data};
use crate::sql::{ShoalConfig, Statement, TableOptions, plain_columns};
use crate::write::{RowsLoad, Staged, WriteProgress};
use crate::{Error, Session};

/// How a write ends.
pub(super) enum Commit {
    /// Rows are added to a table that is there.
    Append,
    /// A table appears together with its rows.
    Create {
        /// Whether one that appeared meanwhile is left as it is.
        if_not_exists: bool,
    },
    /// A table takes the place of the one of its name.
    Replace,
}

impl Engine {
    pub(super) async fn insert(
        &self,
        session: &Arc<Session>,
        prepared: &Prepared,
        insert: &DfStatement,
        parameters: Parameters,
        write_id: Option<WriteId>,
    ) -> Result<u64, Error> {
        let scope = self.scope_to_write(session).await?;
        let plan = self.plan_of(session, &scope, prepared, insert, parameters).await?;
        self.insert_plan(session, prepared, scope, plan, write_id).await
    }

    /// Runs an `INSERT ... VALUES` with all rows of parameters as one write.
    /// None where the statement is of another kind: run it once per row.
    ///
    /// # Errors
    /// Then no row was written.
    pub async fn insert_rows(
        &self,
        session: &Arc<Session>,
        prepared: &Arc<Prepared>,
        runs: Vec<Parameters>,
        write_id: Option<WriteId>,
    ) -> Result<Option<u64>, Error> {
        let Statement::Insert(_) = &prepared.statement else { return Ok(None) };
        session.touch();
        let change = self.begin_change()?;
        let (engine, session, prepared) = (self.clone(), Arc::clone(session), Arc::clone(prepared));
        self.on_compute(async move {
            let _change = change;
            let Statement::Insert(insert) = &prepared.statement else { return Ok(None) };
            let scope = engine.scope_to_write(&session).await?;
            let plan = engine.unbound_plan_of(&session, &scope, &prepared, insert).await?;
            let bind = |plan, parameters| engine.bind(&prepared, plan, parameters);
            match with_all_rows(&plan, runs, bind)? {
                Some(plan) => engine.insert_plan(&session, &prepared, scope, plan, write_id).await.map(Some),
                None => Ok(None),
            }
        })
        .await
    }

    async fn insert_plan(
        &self,
        session: &Arc<Session>,
        prepared: &Prepared,
        scope: Scope,
        plan: LogicalPlan,
        write_id: Option<WriteId>,
    ) -> Result<u64, Error> {
        let write_id = self.write_id(session, write_id);
        if let Some(rows) = self.written_before(&write_id).await? {
            return Ok(rows);
        }
        let running = self.registry.begin(QueryId::random(), session.user(), prepared.sql());
        let LogicalPlan::Dml(dml) = plan else {
            return Err(Error::Internal(format!("INSERT became {}", plan.display())));
        };
        if !matches!(dml.op, WriteOp::Insert(_)) {
            return Err(Error::Unsupported(format!("{} is not supported: INSERT INTO is", dml.op.name())));
        }
        let (schema_name, name) = resolved(&dml.table_name, &scope.settings);
        let table = self.table_to_write(&scope.snapshot, &schema_name, &name)?;
        let plan = Arc::unwrap_or_clone(dml.input);
        let staged = self.stage_query(running, scope, plan, &table, &write_id).await?;
        self.commit_rows(&table, &write_id, staged, Commit::Append).await
    }

    pub(super) async fn create_table_as(
        &self,
        session: &Arc<Session>,
        prepared: &Prepared,
        create: &ast::CreateTable,
        parameters: Parameters,
        write_id: Option<WriteId>,
    ) -> Result<u64, Error> {
        let write_id = self.write_id(session, write_id);
        if let Some(rows) = self.written_before(&write_id).await? {
            return Ok(rows);
        }
        let running = self.registry.begin(QueryId::random(), session.user(), prepared.sql());
        let scope = self.scope(session).await?;
        let plan = self.plan_create(&scope, create).await?;
        let plan = self.bind(prepared, plan, parameters)?;
        let columns = plain_columns(plan.schema().as_arrow());
        let (schema_name, name) = full_name(&create.name, &scope.settings)?;
        if !create.if_not_exists && scope.snapshot.table(&schema_name, &name).is_some() {
            return Err(Error::AlreadyExists(format!("table {schema_name}.{name} exists already")));
        }
        let Some(table) = self.new_table(session, &scope, create, columns).await? else { return Ok(0) };
        let table = Arc::new(table);
        let staged = self.stage_query(running, scope, plan, &table, &write_id).await?;
        let commit = Commit::Create { if_not_exists: create.if_not_exists };
        self.commit_rows(&table, &write_id, staged, commit).await
    }

    /// Stages the rows of a query: on the workers that compute them where it reads much, and
    /// nothing but gathering them were left to this coordinator.
    async fn stage_query(
        &self,
        running: Running,
        scope: Scope,
        plan: LogicalPlan,
        table: &Arc<Table>,
        write_id: &WriteId,
    ) -> Result<Staged, Error> {
        let load = Arc::new(RowsLoad::new(&self.writes, table, write_id)?);
        let bytes_min = ShoalConfig::of(&scope.settings.options).load_task_bytes as u64;
        let stay = reads_data(&plan).then(|| Stay { taker: load.clone(), bytes_min });
        fault::point(Step::WriteBegun);
        let mut rows = self.select_for(running, scope, plan, None, stay).await?;
        let Some(staged) = load.staged() else {
            let progress = Arc::new(WriteProgress::default());
            return crate::write::write(&self.writes, table, write_id, Box::pin(rows), progress).await;
        };
        let bytes: u64 = staged.segments.iter().map(|segment| segment.bytes).sum();
        rows.running().count(staged.rows as usize, bytes as usize);
        // Its end says that all was read.
        while let Some(batch) = rows.next().await {
            if batch?.num_rows() > 0 {
                return Err(Error::Internal("rows were loaded by workers, and came here, too".to_owned()));
            }
        }
        Ok(staged)
    }

    /// Writes the rows of a stream into a table; how many were written.
    ///
    /// # Errors
    /// Then nothing was written.
    pub async fn ingest(
        &self,
        session: &Arc<Session>,
        ingest: Ingest,
        input: SendableRecordBatchStream,
    ) -> Result<u64, Error> {
        session.touch();
        let change = self.begin_change()?;
        let (engine, session) = (self.clone(), Arc::clone(session));
        self.on_compute(async move {
            let _change = change;
            engine.ingest_here(&session, ingest, input).await
        })
        .await
    }

    async fn ingest_here(
        &self,
        session: &Arc<Session>,
        ingest: Ingest,
        input: SendableRecordBatchStream,
    ) -> Result<u64, Error> {
        let write_id = self.write_id(session, ingest.write_id);
        if let Some(rows) = self.written_before(&write_id).await? {
            return Ok(rows);
        }
        let scope = self.scope(session).await?;
        let schema_name =
            ingest.schema_name.unwrap_or_else(|| scope.settings.options.catalog.default_schema.clone());
        let name = ingest.table;
        check_name("table", &name)?;
        self.check_schema(&scope, &schema_name)?;
        let known = scope.snapshot.table(&schema_name, &name);
        let commit = match (ingest.mode, known) {
            (IngestMode::Append, None) => {
                return Err(self.unknown_table(&scope.snapshot, &schema_name, &name));
            }
            (IngestMode::Create, Some(_)) => {
                return Err(Error::AlreadyExists(format!(
                    "table {schema_name}.{name} exists already: ingest with mode append, replace or create_append"
                )));
            }
            (IngestMode::Append | IngestMode::CreateAppend, Some(_)) => Commit::Append,
            (IngestMode::Create | IngestMode::CreateAppend, None) => Commit::Create { if_not_exists: false },
            (IngestMode::Replace, _) => Commit::Replace,
        };
        let table = match (&commit, known) {
            (Commit::Append, Some(table)) => Arc::clone(table),
            _ => {
                let columns = plain_columns(&input.schema());
                let table =
                    self.make_table(session, schema_name, name, columns, TableOptions::default()).await?;
                Arc::new(table)
            }
        };
        self.write(&table, &write_id, input, commit).await
    }

    /// The table that rows are to be added to.
    pub(super) fn table_to_write(
        &self,
        snapshot: &crate::catalog::State,
        schema_name: &str,
        name: &str,
    ) -> Result<Arc<Table>, Error> {
        if let Some(table) = snapshot.table(schema_name, name) {
            return Ok(Arc::clone(table));
        }
        if snapshot.view(schema_name, name).is_some() || snapshot.external(schema_name, name).is_some() {
            return Err(Error::Invalid(format!(
                "{schema_name}.{name} is a view or an external table: rows can be written into tables only"
            )));
        }
        Err(self.unknown_table(snapshot, schema_name, name))
    }

    /// The id of this write: the one that was set for it, the one that came
    /// with it (a shell makes one up for each), or a new one.
    pub(super) fn write_id(&self, session: &Session, given: Option<WriteId>) -> WriteId {
        session.take_write_id().or(given).unwrap_or_else(WriteId::random)
    }

    /// Rows of the write, where it was committed anywhere before this was asked.
    pub(super) async fn written_before(&self, write_id: &WriteId) -> Result<Option<u64>, Error> {
        self.cluster.catalog().catch_up().await?;
        Ok(self.catalog().written(write_id))
    }

    /// Stages the rows and commits them.
    pub(super) async fn write(
        &self,
        table: &Table,
        write_id: &WriteId,
        rows: SendableRecordBatchStream,
        commit: Commit,
    ) -> Result<u64, Error> {
        fault::point(Step::WriteBegun);
        let progress = Arc::new(WriteProgress::default());
        let staged = crate::write::write(&self.writes, table, write_id, rows, progress).await?;
        self.commit_rows(table, write_id, staged, commit).await
    }

    /// Commits what was staged; how many rows.
    pub(super) async fn commit_rows(
        &self,
        table: &Table,
        write_id: &WriteId,
        staged: Staged,
        commit: Commit,
    ) -> Result<u64, Error> {
        fault::point(Step::WriteStaged);
        let rows = staged.rows;
        let write = WriteRecord { id: write_id.clone(), rows };
        let (segments, sketches) = (staged.segments.clone(), staged.sketches());
        let has_sketches = sketches.is_some();
        let with_rows = || {
            let mut table = table.clone();
            table.segments = segments.iter().cloned().map(Arc::new).collect();
            table.sketches.clone_from(&sketches);
            table
        };
        let command = match commit {
            Commit::Append => Command::CommitWrite {
                write,
                table: table.id,
                segments: segments.clone(),
                replace: false,
                sketches,
            },
            Commit::Create { if_not_exists } => {
                Command::CreateTable { table: with_rows(), if_not_exists, write: Some(write) }
            }
            Commit::Replace => Command::ReplaceTable { table: with_rows(), write: Some(write) },
        };
        let mut command = staged.on_disks(command);
        // A load that can be committed without them is not refused for them.
        if has_sketches && check_change_bytes(bytes_in_change(&command)?, segments.len()).is_err() {
            command.leave_out_sketches();
        }
        // A task of its own: a client that goes away now must not leave segments
        // discarded that the catalog is about to name.
        let committing = commit_staged(Arc::clone(&self.cluster), command, staged);
        let committing = tokio::spawn(async move {
            match committing.await? {
                Outcome::Done => {
                    fault::point(Step::WriteCommitted);
                    Ok(rows)
                }
                // Somebody else's segments are in.
                Outcome::AlreadyWritten { rows } => Ok(rows),
                Outcome::Unchanged | Outcome::Table(_) | Outcome::Coordinator(_) => Ok(0),
            }
        });
        committing.await.map_err(|error| Error::Internal(format!("committing a write: {error}")))?
    }
}

/// Makes a change that names staged segments. They are kept where it is made, and
/// until it is known whether it is; otherwise they are discarded. To be run to its
/// end, whoever goes away meanwhile.
pub(super) async fn commit_staged(
    cluster: Arc<Cluster>,
    command: Command,
    staged: Staged,
) -> Result<Outcome, Error> {
    match cluster.catalog().change(command).await {
        Ok(Outcome::Done) => {
            staged.committed();
            Ok(Outcome::Done)
        }
        Err(ChangeError::Unsettled { change, error }) => {
            // The segments stay where they are until it is known.
            tokio::spawn(async move {
                match cluster.catalog().settle(change).await {
                    Settled::Made(Outcome::Done) => staged.committed(),
                    Settled::Made(_) | Settled::NotMade(_) => staged.refused(cluster.catalog()).await,
                    Settled::Unknown(error) => staged.left(&error),
                }
            });
            Err(error)
        }
        // Somebody else's segments are in, or nobody's.
        other => {
            tokio::spawn(async move { staged.refused(cluster.catalog()).await });
            other.map_err(Error::from)
        }
    }
}
