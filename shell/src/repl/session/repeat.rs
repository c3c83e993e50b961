//! What may be run again after the session was lost, and what is said where
//! that may not be. Pure: how far a statement had come is told.

use shoal_proto::WriteId;

use super::super::lex::{TokenKind, tokens};
use crate::client::ClientError;

/// How far a statement has come, which decides whether it may be repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Nothing was run.
    Planning,
    /// A query runs; nothing was shown.
    Querying,
    /// A change runs.
    Changing,
    /// Rows were shown.
    Showing,
}

/// Whether a statement may be run again in the next session. `refused`: the
/// coordinator did not know the session, or is stopping, and did nothing.
pub(super) fn may_be_repeated(sql: &str, stage: Stage, refused: bool) -> bool {
    match stage {
        Stage::Planning | Stage::Querying => true,
        // The write's id makes the second time do nothing; COPY TO writes the
        // same files again, a setting is set once, however often, and what was
        // compacted stays as it is.
        Stage::Changing => {
            refused || matches!(tag(sql).as_str(), "INSERT" | "COPY" | "SET" | "RESET" | "OPTIMIZE")
        }
        Stage::Showing => false,
    }
}

/// Whether it writes rows, under the id of a write.
pub(super) fn is_write(sql: &str) -> bool {
    match tag(sql).as_str() {
        "INSERT" | "COPY" => true,
        "CREATE TABLE" => has_query(sql),
        _ => false,
    }
}

/// Whether a CREATE TABLE has an AS outside of its brackets.
fn has_query(sql: &str) -> bool {
    let mut depth = 0_usize;
    for token in tokens(sql) {
        match (token.kind, &sql[token.start..token.end]) {
            (TokenKind::Symbol, "(") => depth += 1,
            (TokenKind::Symbol, ")") => depth = depth.saturating_sub(1),
            (TokenKind::Word, word) if depth == 0 && word.eq_ignore_ascii_case("as") => return true,
            _ => {}
        }
    }
    false
}

/// How to find out what became of a change whose answer was lost. `id` is that
/// of a write; none where somebody chose one.
pub(super) fn how_to_find_out(sql: &str, id: Option<&WriteId>) -> String {
    match (is_write(sql), id) {
        (true, Some(id)) => {
            format!("it was where SELECT * FROM system.writes WHERE write_id = '{id}' finds a row")
        }
        (true, None) => "it was where system.writes has the id that was SET as shoal.write_id".to_owned(),
        (false, _) => "look before you repeat it".to_owned(),
    }
}

/// The same error, for a change that may have been made.
pub(super) fn unsettled(error: ClientError, how: &str) -> ClientError {
    let with = |text: String| format!("{text}; the statement may have been carried out or not: {how}");
    match error {
        ClientError::Lost { cause } => ClientError::Lost { cause: with(cause) },
        ClientError::Unreachable { address, cause } => {
            ClientError::Unreachable { address, cause: with(cause) }
        }
        ClientError::Statement(mut failure) => {
            failure.message = with(failure.message);
            ClientError::Statement(failure)
        }
        other => other,
    }
}

/// What a statement does, in its own words: `CREATE TABLE`, `INSERT`, `SET`.
pub(super) fn tag(sql: &str) -> String {
    let words: Vec<String> = tokens(sql)
        .filter(|token| token.kind == TokenKind::Word)
        .take(6)
        .map(|token| sql[token.start..token.end].to_ascii_uppercase())
        .collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let of = |verb: &str, rest: &[&str]| {
        let object = rest.iter().find(|word| !matches!(**word, "OR" | "REPLACE" | "UNBOUNDED"));
        match object {
            Some(&"EXTERNAL") => format!("{verb} EXTERNAL TABLE"),
            Some(object) => format!("{verb} {object}"),
            None => verb.to_owned(),
        }
    };
    match words.as_slice() {
        [verb @ ("CREATE" | "DROP" | "ALTER"), rest @ ..] => of(verb, rest),
        ["KILL", ..] => "KILL QUERY".to_owned(),
        [verb, ..] => (*verb).to_owned(),
        [] => "OK".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use shoal_proto::{ErrorCode, Failure};

    use super::*;

    #[test]
    fn only_what_does_no_harm_twice_is_repeated() {
        for (sql, changes) in [
            ("INSERT INTO t VALUES (1)", true),
            ("copy t from 'x.csv'", true),
            ("/* note */ SET a.b = 1", true),
            ("RESET a.b", true),
            ("OPTIMIZE TABLE t", true),
            ("CREATE TABLE t (k INT)", false),
            ("CREATE TABLE t AS SELECT 1", false),
            ("DROP TABLE t", false),
            ("ALTER WORKER 'w' DRAIN", false),
            ("KILL QUERY 'q'", false),
        ] {
            assert_eq!(may_be_repeated(sql, Stage::Changing, false), changes, "{sql}");
            // Nothing was run.
            assert!(may_be_repeated(sql, Stage::Planning, false), "{sql}");
            assert!(may_be_repeated(sql, Stage::Changing, true), "{sql}");
        }
        for sql in ["SELECT 1", "WITH a AS (SELECT 1) TABLE a", "VALUES (1)", "EXPLAIN SELECT 1", "SHOW a"] {
            assert!(may_be_repeated(sql, Stage::Querying, false), "{sql}");
            assert!(!may_be_repeated(sql, Stage::Showing, false), "{sql}");
        }
    }

    #[test]
    fn writes_have_an_id_to_look_for() {
        let id = WriteId::new("w-1");
        for (sql, expected) in [
            ("INSERT INTO t VALUES (1)", true),
            ("COPY t FROM 'x.csv'", true),
            ("CREATE TABLE t AS SELECT 1", true),
            ("create or replace table t with (shards = 1) as select (1)", true),
            ("CREATE TABLE t (k INT, l INT GENERATED ALWAYS AS (k))", false),
            ("CREATE VIEW v AS SELECT 1", false),
            ("DROP TABLE t", false),
        ] {
            assert_eq!(is_write(sql), expected, "{sql}");
            assert_eq!(how_to_find_out(sql, Some(&id)).contains("write_id = 'w-1'"), expected, "{sql}");
        }
        assert!(how_to_find_out("INSERT INTO t VALUES (1)", None).contains("SET as shoal.write_id"));
    }

    #[test]
    fn an_error_says_that_the_outcome_is_not_known() {
        let failure = Failure::new(ErrorCode::Unavailable, "no majority");
        for error in [
            ClientError::Lost { cause: "gone".to_owned() },
            ClientError::Unreachable { address: "a".to_owned(), cause: "gone".to_owned() },
            ClientError::Statement(failure),
        ] {
            let code = error.exit_code();
            let error = unsettled(error, "look");
            assert!(error.to_string().ends_with("; the statement may have been carried out or not: look"));
            assert_eq!(error.exit_code(), code);
        }
        assert!(matches!(unsettled(ClientError::Cancelled, "look"), ClientError::Cancelled));
    }

    #[test]
    fn a_statement_is_named_by_its_first_words() {
        for (sql, expected) in [
            ("create table t as select 1", "CREATE TABLE"),
            ("CREATE OR REPLACE VIEW v AS SELECT 1", "CREATE VIEW"),
            ("create external table t stored as csv location 'x'", "CREATE EXTERNAL TABLE"),
            ("drop table if exists t", "DROP TABLE"),
            ("/* note */ insert into t values (1)", "INSERT"),
            ("set a.b = 1", "SET"),
            ("kill query 'x'", "KILL QUERY"),
            ("alter worker 'w' cancel drain", "ALTER WORKER"),
            ("", "OK"),
        ] {
            assert_eq!(tag(sql), expected);
        }
    }
}
