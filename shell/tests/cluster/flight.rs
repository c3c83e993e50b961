//! Arrow Flight SQL with `arrow-flight`'s own client: what part of the
//! protocol JDBC, ODBC and ADBC drivers lean on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, AsArray, Int64Array, StringArray};
use arrow::datatypes::DataType;
use arrow::record_batch::RecordBatch;
use arrow_flight::sql::{
    CommandGetDbSchemas, CommandGetExportedKeys, CommandGetImportedKeys, CommandGetPrimaryKeys,
    CommandGetTables, CommandGetXdbcTypeInfo, CommandStatementIngest, CommandStatementQuery, ProstMessageExt,
    SqlInfo, TableDefinitionOptions, TableExistsOption, TableNotExistOption,
};
use arrow_flight::{FlightDescriptor, FlightInfo};
use futures::TryStreamExt;
use prost::Message;
use shoal_benches::Client;

use crate::bad_input::with_client;
use crate::fixture::shared;

async fn rows(client: &mut Client, info: FlightInfo) -> usize {
    let (_, batches) = client.fetch(info).await.unwrap();
    batches.iter().map(RecordBatch::num_rows).sum()
}

/// The texts of one column, in order.
async fn texts(client: &mut Client, info: FlightInfo, column: &str) -> Vec<String> {
    let (_, batches) = client.fetch(info).await.unwrap();
    let mut texts = Vec::new();
    for batch in batches {
        let column = arrow::compute::cast(batch.column_by_name(column).unwrap(), &DataType::Utf8).unwrap();
        texts.extend(column.as_string::<i32>().iter().flatten().map(str::to_owned));
    }
    texts
}

#[test]
fn statements_that_change_something_have_no_columns() {
    with_client(shared(2), async |client| {
        for (sql, has_columns) in [
            ("CREATE TABLE fl_ddl (a INT)", false),
            ("INSERT INTO fl_ddl VALUES (1)", false),
            ("SET datafusion.execution.batch_size = 4096", false),
            ("SELECT 1", true),
            ("EXPLAIN SELECT 1", true),
            ("SHOW TABLES", true),
        ] {
            if sql.starts_with("INSERT") {
                client.update("CREATE TABLE fl_ddl (a INT)").await.unwrap();
            }
            let prepared = client.prepare(sql).await.unwrap();
            assert_eq!(!prepared.dataset_schema().unwrap().fields().is_empty(), has_columns, "{sql}");
            prepared.close().await.unwrap();
        }
        assert_eq!(client.update("INSERT INTO fl_ddl VALUES (1), (2)").await.unwrap(), 2);
        client.update("DROP TABLE fl_ddl").await.unwrap();
    });
}

#[test]
fn parameters_are_bound_for_queries_and_for_writes() {
    with_client(shared(2), async |client| {
        client.update("CREATE TABLE fl_bound (k BIGINT, s VARCHAR)").await.unwrap();
        let mut insert = client.prepare("INSERT INTO fl_bound VALUES ($1, $2)").await.unwrap();
        let keys: ArrayRef = Arc::new(Int64Array::from(vec![1, 2, 3]));
        let values: ArrayRef = Arc::new(StringArray::from(vec![Some("a"), None, Some("c")]));
        insert.set_parameters(RecordBatch::try_from_iter([("1", keys), ("2", values)]).unwrap()).unwrap();
        assert_eq!(insert.execute_update().await.unwrap(), 3);
        insert.close().await.unwrap();

        let mut select = client.prepare("SELECT s FROM fl_bound WHERE k = $1").await.unwrap();
        assert_eq!(select.parameter_schema().unwrap().fields().len(), 1);
        for (key, expected) in [(1, vec!["a"]), (3, vec!["c"]), (9, vec![])] {
            let keys: ArrayRef = Arc::new(Int64Array::from(vec![key]));
            select.set_parameters(RecordBatch::try_from_iter([("1", keys)]).unwrap()).unwrap();
            let info = select.execute().await.unwrap();
            assert_eq!(texts(client, info, "s").await, expected);
        }
        select.close().await.unwrap();
        client.update("DROP TABLE fl_bound").await.unwrap();
    });
}

#[test]
fn a_prepared_statement_is_as_of_each_run() {
    with_client(shared(2), async |client| {
        client.update("CREATE TABLE fl_again (k BIGINT)").await.unwrap();
        client.update("INSERT INTO fl_again VALUES (1), (2)").await.unwrap();
        let mut clock =
            client.prepare("SELECT CAST(now() AS VARCHAR) AS t FROM fl_again LIMIT 1").await.unwrap();
        let mut count = client.prepare("SELECT CAST(count(*) AS VARCHAR) AS t FROM fl_again").await.unwrap();
        let info = clock.execute().await.unwrap();
        let first = texts(client, info, "t").await;
        let info = count.execute().await.unwrap();
        assert_eq!(texts(client, info, "t").await, ["2"]);
        client.update("INSERT INTO fl_again VALUES (3)").await.unwrap();
        let info = clock.execute().await.unwrap();
        let second = texts(client, info, "t").await;
        assert_eq!((first.len(), second.len()), (1, 1));
        assert!(first < second, "{first:?} {second:?}");
        // The catalog has not changed between these two.
        let info = clock.execute().await.unwrap();
        let third = texts(client, info, "t").await;
        assert!(second < third, "{second:?} {third:?}");
        for _ in 0..2 {
            let info = count.execute().await.unwrap();
            assert_eq!(texts(client, info, "t").await, ["3"]);
        }
        clock.close().await.unwrap();
        count.close().await.unwrap();
        client.update("DROP TABLE fl_again").await.unwrap();
    });
}

#[test]
fn catalogs_schemas_tables_and_types_are_listed() {
    with_client(shared(2), async |client| {
        client.update("CREATE TABLE fl_listed (k INT NOT NULL, s VARCHAR)").await.unwrap();
        client.update("CREATE VIEW fl_view AS SELECT k FROM fl_listed").await.unwrap();
        let info = client.flight().get_catalogs().await.unwrap();
        assert!(rows(client, info).await >= 1);
        let all = CommandGetDbSchemas { catalog: None, db_schema_filter_pattern: None };
        let info = client.flight().get_db_schemas(all).await.unwrap();
        assert!(texts(client, info, "db_schema_name").await.contains(&"public".to_owned()));
        let info = client.flight().get_table_types().await.unwrap();
        assert!(rows(client, info).await >= 2);
        let matching = |with_schema| CommandGetTables {
            catalog: None,
            db_schema_filter_pattern: Some("public".into()),
            table_name_filter_pattern: Some("fl\\_%".into()),
            table_types: vec![],
            include_schema: with_schema,
        };
        let info = client.flight().get_tables(matching(false)).await.unwrap();
        let mut names = texts(client, info, "table_name").await;
        names.retain(|name| name == "fl_listed" || name == "fl_view");
        assert_eq!(names, ["fl_listed", "fl_view"]);
        let info = client.flight().get_tables(matching(true)).await.unwrap();
        let (schema, _) = client.fetch(info).await.unwrap();
        assert_eq!(schema.field_with_name("table_schema").unwrap().data_type(), &DataType::Binary);
        client.update("DROP VIEW fl_view").await.unwrap();
        client.update("DROP TABLE fl_listed").await.unwrap();
    });
}

#[test]
fn what_the_server_is_and_the_keys_that_it_has_not_are_told() {
    with_client(shared(2), async |client| {
        let info = client.flight().get_sql_info(vec![SqlInfo::FlightSqlServerName]).await.unwrap();
        assert_eq!(rows(client, info).await, 1);
        let info = client.flight().get_sql_info(vec![]).await.unwrap();
        assert!(rows(client, info).await > 5);
        let types = CommandGetXdbcTypeInfo { data_type: None };
        let info = client.flight().get_xdbc_type_info(types).await.unwrap();
        assert!(rows(client, info).await > 5);
        let table = || "t".to_owned();
        let info = client
            .flight()
            .get_primary_keys(CommandGetPrimaryKeys { catalog: None, db_schema: None, table: table() })
            .await
            .unwrap();
        assert_eq!(rows(client, info).await, 0);
        let info = client
            .flight()
            .get_exported_keys(CommandGetExportedKeys { catalog: None, db_schema: None, table: table() })
            .await
            .unwrap();
        assert_eq!(rows(client, info).await, 0);
        let info = client
            .flight()
            .get_imported_keys(CommandGetImportedKeys { catalog: None, db_schema: None, table: table() })
            .await
            .unwrap();
        let (schema, batches) = client.fetch(info).await.unwrap();
        assert!(schema.field_with_name("pk_table_name").is_ok());
        assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 0);
    });
}

#[test]
fn columns_are_told_before_a_query_runs() {
    with_client(shared(2), async |client| {
        let command = CommandStatementQuery { query: "SELECT 1 AS a, 'x' AS b".into(), transaction_id: None };
        let descriptor = FlightDescriptor::new_cmd(command.as_any().encode_to_vec());
        let mut request = tonic::Request::new(descriptor);
        let token = client.flight().token().cloned().unwrap_or_default();
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        let result = client.flight().inner_mut().get_schema(request).await.unwrap().into_inner();
        let schema = arrow::datatypes::Schema::try_from(&result).unwrap();
        let names: Vec<_> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        assert_eq!(names, ["a", "b"]);
    });
}

fn ingest(table: &str, options: Option<(TableNotExistOption, TableExistsOption)>) -> CommandStatementIngest {
    CommandStatementIngest {
        table_definition_options: options.map(|(absent, present)| TableDefinitionOptions {
            if_not_exist: absent.into(),
            if_exists: present.into(),
        }),
        table: table.into(),
        schema: None,
        catalog: None,
        temporary: false,
        transaction_id: None,
        options: Default::default(),
    }
}

#[test]
fn bulk_ingest_creates_appends_and_replaces() {
    use TableExistsOption::{Append, Fail as FailIfExists, Replace};
    use TableNotExistOption::{Create, Fail as FailIfAbsent};
    with_client(shared(2), async |client| {
        let batches = || {
            let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..10_000));
            let batch = RecordBatch::try_from_iter([("n", numbers)]).unwrap();
            futures::stream::iter((0..10).map(move |part| Ok(batch.slice(part * 1_000, 1_000))))
        };
        for (options, rows_after) in [
            ((Create, FailIfExists), Some(10_000)),
            ((Create, FailIfExists), None),
            ((FailIfAbsent, Append), Some(20_000)),
            ((Create, Append), Some(30_000)),
            ((Create, Replace), Some(10_000)),
        ] {
            let written = client.flight().execute_ingest(ingest("fl_ingest", Some(options)), batches()).await;
            match rows_after {
                None => assert!(written.is_err()),
                Some(rows) => {
                    assert_eq!(written.unwrap(), 10_000);
                    assert_eq!(client.number("SELECT count(*) FROM fl_ingest").await.unwrap(), rows);
                }
            }
        }
        assert_eq!(client.number("SELECT sum(n) FROM fl_ingest").await.unwrap(), 49_995_000);
        client.update("DROP TABLE fl_ingest").await.unwrap();
        let absent = client
            .flight()
            .execute_ingest(ingest("fl_absent", Some((FailIfAbsent, Append))), batches())
            .await;
        assert!(absent.is_err());
    });
}

#[test]
fn a_dropped_stream_ends_its_query_everywhere() {
    let cluster = shared(2);
    with_client(cluster, async |client| {
        let mut idle = cluster.connect().await.unwrap();
        let endless = "SELECT a.value, b.value FROM generate_series(1, 100000) a CROSS JOIN generate_series(1, 100000) b";
        let mut stream = idle.stream(endless).await.unwrap();
        assert!(stream.try_next().await.unwrap().is_some());
        let running = "SELECT count(*) FROM system.queries WHERE state = 'running' AND sql LIKE '%CROSS JOIN%' AND sql NOT LIKE '%system.queries%'";
        assert_eq!(client.number(running).await.unwrap(), 1);
        drop(stream);
        let deadline = Instant::now() + Duration::from_secs(2);
        while client.number(running).await.unwrap() > 0 {
            assert!(Instant::now() < deadline, "the query still runs 2 s after its stream was dropped");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
}

#[test]
fn a_killed_query_says_so_and_ends() {
    let cluster = shared(2);
    with_client(cluster, async |client| {
        let mut victim = cluster.connect().await.unwrap();
        let slow = tokio::spawn(async move {
            victim
                .query("SELECT count(*) FROM generate_series(1, 1000000) a JOIN generate_series(1, 1000000) b ON a.value % 7 < b.value % 5")
                .await
        });
        let id = "SELECT id FROM system.queries WHERE state = 'running' AND sql LIKE '%a.value \\% 7%' AND sql NOT LIKE '%system.queries%'";
        let deadline = Instant::now() + Duration::from_secs(10);
        let id = loop {
            let text = client.text(id).await.unwrap();
            if let Some(id) = text.lines().next() {
                break id.to_owned();
            }
            assert!(Instant::now() < deadline, "the query does not show up");
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        client.run(&format!("KILL QUERY '{id}'")).await.unwrap();
        let ended =
            tokio::time::timeout(Duration::from_secs(2), slow).await.expect("ends within 2 s").unwrap();
        let error = ended.unwrap_err();
        assert_eq!(error.code, tonic::Code::Cancelled, "{error}");
    });
}
