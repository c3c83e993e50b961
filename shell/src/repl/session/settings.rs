//! What a session has set, to be set again in the next one. The shell reads of
//! a statement no more than it must.

use super::super::lex::{TokenKind, tokens};
use super::repeat::{is_write, tag};
use crate::client::ClientError;

/// The id of the next write, which the coordinator takes for one write only.
const WRITE_ID: &str = "shoal.write_id";

/// The statements that make a new session like this one, in order.
#[derive(Debug, Default)]
pub(super) struct Settings(Vec<Setting>);

#[derive(Debug)]
struct Setting {
    name: String,
    statement: String,
}

impl Settings {
    /// Takes note of a statement that was run.
    pub(super) fn note(&mut self, sql: &str, outcome: &Result<(), ClientError>) {
        if outcome.is_ok()
            && let Some(name) = setting_name(sql)
        {
            // The last word counts, also over a setting that has two names.
            self.forget(&name);
            self.0.push(Setting { name, statement: sql.to_owned() });
        } else if is_write(sql) {
            self.note_write(outcome);
        }
    }

    /// Takes note of a write: another one must not have its id, and it needs
    /// that itself where it may have to be sent again.
    pub(super) fn note_write(&mut self, outcome: &Result<(), ClientError>) {
        match outcome {
            Err(
                ClientError::Lost { .. }
                | ClientError::SessionEnded(_)
                | ClientError::Stopping(_)
                | ClientError::Unreachable { .. },
            ) => {}
            Ok(()) | Err(_) => self.forget(WRITE_ID),
        }
    }

    /// Whether the next write has an id that somebody chose.
    pub(super) fn has_write_id(&self) -> bool {
        self.0.iter().any(|setting| setting.name == WRITE_ID)
    }

    /// What is to be run in a new session.
    pub(super) fn statements(&self) -> Vec<String> {
        self.0.iter().map(|setting| setting.statement.clone()).collect()
    }

    fn forget(&mut self, name: &str) {
        self.0.retain(|setting| setting.name != name);
    }
}

/// What a SET or RESET is about, in lower case; none for other statements.
fn setting_name(sql: &str) -> Option<String> {
    if !matches!(tag(sql).as_str(), "SET" | "RESET") {
        return None;
    }
    let mut name = String::new();
    let plain = |kind: TokenKind| !matches!(kind, TokenKind::Space | TokenKind::Comment);
    for token in tokens(sql).filter(|token| plain(token.kind)).skip(1) {
        let text = &sql[token.start..token.end];
        let ends = text == "=" || text.eq_ignore_ascii_case("to");
        if ends || matches!(token.kind, TokenKind::Text | TokenKind::Number) {
            break;
        }
        name.push_str(&text.trim_matches('"').to_lowercase());
    }
    Some(name)
}

#[cfg(test)]
mod tests {
    use shoal_proto::{ErrorCode, Failure};

    use super::*;

    fn check(ran: &[&str], expected: &[&str]) {
        let mut settings = Settings::default();
        for sql in ran {
            settings.note(sql, &Ok(()));
        }
        assert_eq!(settings.statements(), expected, "{ran:?}");
    }

    #[test]
    fn the_last_value_of_each_setting_is_set_again() {
        check(
            &["SET shoal.task_bytes = 1", "set Datafusion.x to 'a'", "SET shoal.Task_Bytes TO '2MiB'"],
            &["set Datafusion.x to 'a'", "SET shoal.Task_Bytes TO '2MiB'"],
        );
        check(&["SET a.b = 1", "RESET a.b"], &["RESET a.b"]);
        check(&["SET TIME ZONE '+01:00'", "SET TIME ZONE '+02:00'"], &["SET TIME ZONE '+02:00'"]);
        check(&["/* why */ SET a = 1", "SET b = 'a = 1'"], &["/* why */ SET a = 1", "SET b = 'a = 1'"]);
        check(&["SELECT 1", "SHOW a.b", "CREATE TABLE t (k INT)"], &[]);
    }

    #[test]
    fn a_setting_that_was_refused_is_not_set_again() {
        let mut settings = Settings::default();
        let refused = || Err(ClientError::Statement(Failure::new(ErrorCode::Invalid, "no")));
        settings.note("SET a = 1", &refused());
        assert_eq!(settings.statements(), Vec::<String>::new());
    }

    #[test]
    fn the_id_of_a_write_is_for_one_write() {
        let set = "SET shoal.write_id = 'once'";
        check(&[set], &[set]);
        check(&[set, "SELECT 1", "SET a = 1"], &[set, "SET a = 1"]);
        check(&[set, "INSERT INTO t VALUES (1)"], &[]);
        check(&[set, "CREATE TABLE t AS SELECT 1"], &[]);

        let mut settings = Settings::default();
        settings.note(set, &Ok(()));
        // It may have been written: to be sent again it needs its id.
        settings.note("INSERT INTO t VALUES (1)", &Err(ClientError::Lost { cause: "gone".to_owned() }));
        assert!(settings.has_write_id());
        let failed = Err(ClientError::Statement(Failure::new(ErrorCode::NotFound, "no table t")));
        settings.note("INSERT INTO t VALUES (1)", &failed);
        assert!(!settings.has_write_id());
    }
}
