//! Errors as a person sees them: the message, and a caret under the place
//! that it is about.

use super::lex::{TokenKind, tokens};
use crate::client::ClientError;
use crate::render::{Paint, display_width};

/// Columns of context that are shown on either side of the caret.
const CONTEXT_COLUMNS: usize = 32;

/// Where a statement came from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Origin {
    /// The script's name.
    pub(super) file: Option<String>,
    /// The line of the script where the statement begins, from 1.
    pub(super) line: usize,
}

/// The lines to print for an error of the statement `sql`.
pub(super) fn error_text(
    error: &ClientError,
    sql: Option<&str>,
    origin: &Origin,
    verbose: bool,
    paint: Paint,
) -> String {
    if matches!(error, ClientError::Cancelled) {
        return format!("{}\n", paint.notice("Cancelled."));
    }
    let mut text = String::new();
    if let Some(file) = &origin.file {
        text.push_str(&format!("{file}:{}: ", origin.line));
    }
    text.push_str(&paint.error("ERROR:"));
    if verbose && let Some(sqlstate) = error.sqlstate() {
        text.push_str(&format!(" {sqlstate}:"));
    }
    let message = error.to_string();
    text.push_str(&format!(" {}\n", message.trim_end()));
    if let ClientError::Statement(_) = error
        && let Some(sql) = sql
        && let Some((line, column)) = position(&message).or_else(|| named_place(&message, sql))
        && let Some(caret) = caret_lines(sql, line, column, origin, paint)
    {
        text.push_str(&caret);
    }
    text
}

/// The line and column that a message names, both from 1: `at Line: 2,
/// Column: 8` or `line 2, column 8`.
fn position(message: &str) -> Option<(usize, usize)> {
    let lower = message.to_ascii_lowercase();
    let mut from = 0;
    while let Some(found) = lower[from..].find("line") {
        let rest = &lower[from + found + 4..];
        from += found + 4;
        let Some((line, rest)) = number_after(rest, &[":", " "]) else {
            continue;
        };
        let Some(rest) = rest.trim_start_matches([',', ' ']).strip_prefix("column") else {
            continue;
        };
        if let Some((column, _)) = number_after(rest, &[":", " "])
            && line > 0
            && column > 0
        {
            return Some((line, column));
        }
    }
    None
}

fn number_after<'a>(text: &'a str, skipped: &[&str]) -> Option<(usize, &'a str)> {
    let mut text = text;
    while let Some(rest) = skipped.iter().find_map(|skip| text.strip_prefix(skip)) {
        text = rest;
    }
    let end = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..end].parse().ok()?, &text[end..]))
}

/// The place of a name that the message is about and the statement has once.
fn named_place(message: &str, sql: &str) -> Option<(usize, usize)> {
    // A hint names what is not in the statement, or not what is wrong there.
    let message = message.split("Did you mean").next().unwrap_or(message);
    let named = message.split(" named ").skip(1).filter_map(|rest| rest.split_whitespace().next());
    let quoted = ['`', '\'', '"'].into_iter().flat_map(|quote| message.split(quote).skip(1).step_by(2));
    named.chain(quoted).find_map(|name| {
        let name = name.trim_end_matches(['.', ',', ';', ':']).trim_matches(['`', '\'', '"']);
        let name = name.rsplit('.').next().unwrap_or(name);
        let mut places = tokens(sql).filter(|token| {
            let text = &sql[token.start..token.end];
            match token.kind {
                TokenKind::Word => text.eq_ignore_ascii_case(name),
                TokenKind::QuotedName => text.trim_matches('"') == name,
                _ => false,
            }
        });
        let (Some(place), None) = (places.next(), places.next()) else {
            return None;
        };
        let before = &sql[..place.start];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or(before).chars().count() + 1;
        Some((line, column))
    })
}

fn caret_lines(sql: &str, line: usize, column: usize, origin: &Origin, paint: Paint) -> Option<String> {
    let shown = sql.split('\n').nth(line - 1)?;
    let shown = shown.replace(['\t', '\r'], " ");
    let characters: Vec<char> = shown.chars().collect();
    let at = (column - 1).min(characters.len());
    let first = at.saturating_sub(CONTEXT_COLUMNS);
    let last = (at + CONTEXT_COLUMNS).min(characters.len());
    let number = if origin.file.is_some() { origin.line + line - 1 } else { line };
    let lead = format!("LINE {number}: {}", if first > 0 { "…" } else { "" });
    let before: String = characters[first..at].iter().collect();
    let after: String = characters[at..last].iter().collect();
    let more = if last < characters.len() { "…" } else { "" };
    let indent = " ".repeat(display_width(&lead) + display_width(&before));
    Some(format!("{lead}{before}{after}{more}\n{indent}{}\n", paint.error("^")))
}

#[cfg(test)]
mod tests {
    use shoal_proto::{ErrorCode, Failure};

    use super::*;

    fn check(message: &str, sql: &str, origin: &Origin, expected: &str) {
        let error = ClientError::Statement(Failure::new(ErrorCode::Invalid, message));
        assert_eq!(error_text(&error, Some(sql), origin, false, Paint::PLAIN), expected);
    }

    #[test]
    fn a_position_in_the_message_gets_a_caret() {
        check(
            "Expected: end of statement, found: t at Line: 2, Column: 6",
            "select *\nform t",
            &Origin::default(),
            "ERROR: Expected: end of statement, found: t at Line: 2, Column: 6\nLINE 2: form t\n             ^\n",
        );
    }

    #[test]
    fn a_name_in_the_message_gets_a_caret() {
        check(
            "no column `tax`; did you mean `l_tax`?",
            "select tax from lineitem",
            &Origin::default(),
            "ERROR: no column `tax`; did you mean `l_tax`?\nLINE 1: select tax from lineitem\n               ^\n",
        );
        check(
            "Schema error: No field named nope. Did you mean 't.note'?",
            "select nope, note from t",
            &Origin::default(),
            "ERROR: Schema error: No field named nope. Did you mean 't.note'?\n\
             LINE 1: select nope, note from t\n               ^\n",
        );
        check("no column `a`", "select a, a from t", &Origin::default(), "ERROR: no column `a`\n");
    }

    #[test]
    fn a_script_is_named_with_its_own_lines() {
        let origin = Origin { file: Some("x.sql".into()), line: 10 };
        check(
            "oops (line 2, column 1)",
            "a\nb",
            &origin,
            "x.sql:10: ERROR: oops (line 2, column 1)\nLINE 11: b\n         ^\n",
        );
    }

    #[test]
    fn long_lines_are_shown_around_the_caret() {
        let sql = format!("select {} oops {}", "a, ".repeat(100), "b, ".repeat(100));
        let error = ClientError::Statement(Failure::new(ErrorCode::Invalid, "no `oops`"));
        let text = error_text(&error, Some(&sql), &Origin::default(), false, Paint::PLAIN);
        let lines: Vec<&str> = text.lines().collect();
        assert!(display_width(lines[1]) < 80, "{text}");
        let caret = display_width(lines[2]) - 1;
        let under: String = lines[1].chars().skip(caret).take(4).collect();
        assert_eq!(under, "oops");
    }

    #[test]
    fn the_sqlstate_is_shown_when_asked_for() {
        let error = ClientError::Statement(Failure::new(ErrorCode::NotFound, "gone"));
        let text = error_text(&error, None, &Origin::default(), true, Paint::PLAIN);
        assert_eq!(text, "ERROR: 42P01: gone\n");
    }
}
