//! Tests of the parser.

use super::*;

fn refuse(sql: &str) -> String {
    parse(sql).map(|statement| format!("taken as {statement:?}")).unwrap_err().to_string()
}

#[test]
fn statements_are_told_apart() {
    let kind = |sql: &str| match parse(sql).unwrap() {
        Statement::Query(_) => "query",
        Statement::Explain { analyze: true, .. } => "explain analyze",
        Statement::Explain { .. } => "explain",
        Statement::Availability(_) => "availability",
        Statement::Insert(_) => "insert",
        Statement::CreateTable(_) => "table",
        Statement::CreateExternal(_) => "external",
        Statement::CreateView(_) => "view",
        Statement::CreateSchema { .. } => "schema",
        Statement::Drop { .. } => "drop",
        Statement::Copy(_) => "copy",
        Statement::Set(_) => "set",
        Statement::Kill(_) => "kill",
        Statement::AlterTable { .. } => "alter table",
        Statement::DrainWorker { .. } => "drain",
        Statement::RemoveCoordinator { .. } => "remove",
        Statement::Rebalance => "rebalance",
        Statement::Optimize { .. } => "optimize",
    };
    for (sql, expected) in [
        ("SELECT 1;", "query"),
        ("values (1), (2)", "query"),
        ("WITH a AS (SELECT 1) SELECT * FROM a", "query"),
        ("SHOW TABLES", "query"),
        ("SHOW datafusion.execution.batch_size", "query"),
        ("DESCRIBE t", "query"),
        ("EXPLAIN SELECT 1", "explain"),
        ("EXPLAIN ANALYZE SELECT 1", "explain analyze"),
        ("explain  Availability SELECT 1", "availability"),
        ("EXPLAIN AVAILABILITY s.\"T\"", "availability"),
        ("INSERT INTO t VALUES (1)", "insert"),
        ("CREATE TABLE t (a INT) WITH (shards = 4, replicas = 'all', shard_key = 'a')", "table"),
        ("CREATE TABLE t AS SELECT 1 AS a", "table"),
        ("CREATE EXTERNAL TABLE t STORED AS PARQUET LOCATION 'x.parquet'", "external"),
        ("CREATE OR REPLACE VIEW v AS SELECT 1", "view"),
        ("CREATE SCHEMA IF NOT EXISTS s", "schema"),
        ("DROP TABLE IF EXISTS a, b", "drop"),
        ("COPY t FROM '/x/*.csv' (FORMAT csv, HEADER, DELIMITER ';', NULL '')", "copy"),
        ("COPY (SELECT 1) TO 'out.parquet'", "copy"),
        ("COPY t TO 'out.csv' STORED AS CSV OPTIONS ('format.delimiter' ';')", "copy"),
        ("SET datafusion.execution.batch_size = 100", "set"),
        ("KILL QUERY '01234567-89ab-cdef-0123-456789abcdef'", "kill"),
        ("ALTER TABLE t SET (replicas = 2)", "alter table"),
        ("alter table IF EXISTS s.\"T\" set (replicas = 'all');", "alter table"),
        ("ALTER WORKER 'w1' DRAIN", "drain"),
        ("alter worker w1 cancel drain;", "drain"),
        ("OPTIMIZE TABLE t", "optimize"),
        ("optimize table s.\"T\";", "optimize"),
        ("ALTER CLUSTER REMOVE COORDINATOR 2", "remove"),
        ("alter cluster remove coordinator 'http://10.0.0.7:7400';", "remove"),
        ("/* now */ Rebalance;", "rebalance"),
    ] {
        assert_eq!(kind(sql), expected, "{sql}");
    }
}

#[test]
fn copy_options_are_read() {
    let Statement::Copy(copy) =
        parse("COPY s.t (a, \"B\") FROM 'x' WITH (FORMAT csv, HEADER, delimiter '|', null 'NA')").unwrap()
    else {
        panic!("not a COPY");
    };
    let options: Vec<_> = copy.options.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(options, ["delimiter=|", "format=csv", "header=true", "null=NA"]);
    assert!(matches!(copy.source, CopySource::Table(_, columns) if columns == ["a", "B"]));
}

#[test]
fn question_marks_are_numbered() {
    let Statement::Query(query) = parse("SELECT ? + a FROM t WHERE b = ? AND c = '?'").unwrap() else {
        panic!("not a query");
    };
    assert_eq!(query.to_string(), "SELECT $1 + a FROM t WHERE b = $2 AND c = '?'");
}

#[test]
fn what_is_wrong_is_said() {
    for (sql, part) in [
        ("", "no statement"),
        (" ;; ", "no statement"),
        ("SELECT 1; SELECT 2", "one statement at a time"),
        ("SELEC 1", "SELEC"),
        ("KILL QUERY 'x'", "not a query id"),
        ("COPY t SIDEWAYS 'x'", "FROM or TO"),
        ("COPY t FROM 'x' (FORMAT csv, FORMAT json)", "twice"),
        ("DELETE FROM t", "CREATE TABLE AS"),
        ("BEGIN", "atomic"),
        ("DROP INDEX i", "tables, views and schemas"),
        ("GRANT SELECT ON t TO ada", "not supported"),
        ("ALTER TABLE t ADD COLUMN b INT", "ALTER TABLE t SET (replicas = 2) is"),
        ("ALTER TABLE t SET (replicas = 2), SET (replicas = 3)", "this ALTER TABLE is not supported"),
        ("ALTER TABLE t SET (replicas)", "Expected: ="),
        ("OPTIMIZE t", "expected OPTIMIZE TABLE name"),
        ("OPTIMIZE TABLE", "Expected: identifier"),
        ("OPTIMIZE TABLE t FINAL", "nothing expected after the statement, found FINAL"),
        ("ALTER WORKER", "expected ALTER WORKER 'name' [CANCEL] DRAIN"),
        ("ALTER WORKER 7 DRAIN", "expected ALTER WORKER 'name' [CANCEL] DRAIN"),
        ("ALTER WORKER w1", "expected ALTER WORKER 'name' [CANCEL] DRAIN"),
        ("ALTER WORKER w1 CANCEL", "expected ALTER WORKER 'name' [CANCEL] DRAIN"),
        ("ALTER WORKER w1 DRAIN CANCEL", "nothing expected after the statement, found CANCEL"),
        ("ALTER CLUSTER", "expected ALTER CLUSTER REMOVE COORDINATOR"),
        ("ALTER CLUSTER ADD WORKER 'w1'", "expected ALTER CLUSTER REMOVE COORDINATOR"),
        ("ALTER CLUSTER REMOVE WORKER 'w1'", "expected ALTER CLUSTER REMOVE COORDINATOR"),
        ("ALTER CLUSTER REMOVE COORDINATOR", "with a number or a 'URL'"),
        ("ALTER CLUSTER REMOVE COORDINATOR -1", "with a number or a 'URL'"),
        ("ALTER CLUSTER REMOVE COORDINATOR 1.5", "with a number or a 'URL'"),
        ("ALTER CLUSTER REMOVE COORDINATOR c2", "with a number or a 'URL'"),
        ("ALTER CLUSTER REMOVE COORDINATOR 2, 3", "nothing expected after the statement, found ,"),
        ("ALTER CLUSTER ADD COORDINATOR 'http://10.0.0.7:7400'", "shoal coordinator --join URL"),
        ("REBALANCE t", "nothing expected after the statement, found t"),
    ] {
        let message = refuse(sql);
        assert!(message.contains(part), "{sql}: {message}");
    }
}

#[test]
fn what_is_altered_is_read() {
    let Statement::AlterTable { name, if_exists, options } =
        parse("ALTER TABLE IF EXISTS s.\"T\" SET (replicas = 2, shards = 4)").unwrap()
    else {
        panic!("not an ALTER TABLE");
    };
    let options: Vec<_> = options.iter().map(ToString::to_string).collect();
    assert_eq!((name.to_string().as_str(), if_exists), ("s.\"T\"", true));
    assert_eq!(options, ["replicas = 2", "shards = 4"]);
    for (sql, name, expected) in [
        ("ALTER WORKER 'rack 1/w-1' DRAIN", "rack 1/w-1", true),
        ("alter worker W1 cancel drain", "W1", false),
        ("ALTER WORKER \"cancel\" DRAIN;", "cancel", true),
    ] {
        let Statement::DrainWorker { worker, is_draining } = parse(sql).unwrap() else {
            panic!("{sql} is something else");
        };
        assert_eq!((worker.as_str(), is_draining), (name, expected), "{sql}");
    }
    for (sql, expected) in [
        ("ALTER CLUSTER REMOVE COORDINATOR 2", "2"),
        ("alter cluster remove coordinator 007;", "7"),
        ("ALTER CLUSTER REMOVE COORDINATOR 'http://10.0.0.7:7400'", "http://10.0.0.7:7400"),
    ] {
        let Statement::RemoveCoordinator { coordinator } = parse(sql).unwrap() else {
            panic!("{sql} is something else");
        };
        assert_eq!(coordinator, expected, "{sql}");
    }
}

#[test]
fn what_would_need_a_deep_stack_is_refused() {
    let nested = format!("SELECT {}1{}", "(".repeat(5000), ")".repeat(5000));
    assert!(refuse(&nested).contains("nest"));
    let terms = format!("SELECT {}1", "1+".repeat(20_000));
    assert!(refuse(&terms).contains("terms"));
    let or = format!("SELECT 1 WHERE {} true", "a OR ".repeat(20_000));
    assert!(refuse(&or).contains("terms"));
    let union = format!("{} SELECT 1", "SELECT 1 UNION ALL ".repeat(20_000));
    assert!(refuse(&union).contains("terms"));
    let not = format!("SELECT {} true", "NOT ".repeat(20_000));
    assert!(refuse(&not).contains("terms"));
    assert!(refuse(&format!("SELECT '{}'", "x".repeat(10_000_000))).contains("bytes"));
    let list: Vec<_> = (0..50_000).map(|n| n.to_string()).collect();
    assert!(parse(&format!("SELECT 1 WHERE 1 IN ({})", list.join(","))).is_ok());
}
