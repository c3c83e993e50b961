//! What the Tab key offers.

use super::command::COMMANDS;
use super::hook::BackslashHook;
use super::keywords;
use super::lex::{Token, TokenKind, tokens};
use crate::client::Names;

/// What may stand at the cursor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Offer {
    /// These words, in place of what was typed from byte `start` on.
    Words {
        /// Where the word at the cursor begins.
        start: usize,
        /// The words.
        words: Vec<String>,
    },
    /// Names of local files.
    Files,
}

/// What completes `line` at byte `cursor`.
pub(super) fn offer(names: &Names, hook: &dyn BackslashHook, line: &str, cursor: usize) -> Offer {
    let typed = &line[..cursor];
    let all: Vec<Token> = tokens(line).collect();
    let before: Vec<Token> = tokens(typed).collect();
    let begins = statement_start(&before);
    let statement = &before[begins..];
    let first = statement.iter().find(|token| token.kind != TokenKind::Space);
    if let Some(first) = first
        && first.kind == TokenKind::Backslash
    {
        return complete_command(names, hook, typed, first.start);
    }
    let Some(word) = word_at(typed, statement) else {
        return Offer::Words { start: cursor, words: Vec::new() };
    };
    // The statement goes on after the cursor: its tables count, too.
    let whole_statement: Vec<&str> = all
        .iter()
        .skip(begins)
        .take_while(|token| token.kind != TokenKind::Semicolon)
        .filter(|token| !matches!(token.kind, TokenKind::Space | TokenKind::Comment))
        .map(|token| &line[token.start..token.end])
        .collect();
    let earlier: Vec<&str> = statement
        .iter()
        .filter(|token| {
            token.end <= word.start && !matches!(token.kind, TokenKind::Space | TokenKind::Comment)
        })
        .map(|token| &typed[token.start..token.end])
        .collect();
    let prefix = &typed[word.start..];
    if let [head, ..] = earlier.as_slice()
        && matches!(head.to_ascii_lowercase().as_str(), "set" | "show" | "reset")
        && let Some(offer) = complete_setting(names, typed, &earlier, word.start)
    {
        return offer;
    }
    let mut words = if let [.., qualifier, "."] = earlier.as_slice() {
        qualified(names, &whole_statement, &unquoted(qualifier), prefix)
    } else if wants_relation(&earlier) {
        relations(names, prefix)
    } else {
        expressions(names, &whole_statement, prefix)
    };
    words.sort_by_key(|word| word.to_lowercase());
    words.dedup();
    Offer::Words { start: word.start, words }
}

struct WordAt {
    start: usize,
}

/// The word that the cursor is at the end of, which may be empty; none in
/// quoted text and comments.
fn word_at(typed: &str, statement: &[Token]) -> Option<WordAt> {
    let Some(last) = statement.last() else {
        return Some(WordAt { start: typed.len() });
    };
    match last.kind {
        TokenKind::Word => Some(WordAt { start: last.start }),
        TokenKind::QuotedName if !last.closed => Some(WordAt { start: last.start }),
        TokenKind::Text | TokenKind::QuotedName | TokenKind::Number => None,
        TokenKind::Comment => None,
        TokenKind::Space | TokenKind::Semicolon | TokenKind::Backslash | TokenKind::Symbol => {
            Some(WordAt { start: typed.len() })
        }
    }
}

/// Index of the first token after the last semicolon.
fn statement_start(tokens: &[Token]) -> usize {
    tokens.iter().rposition(|token| token.kind == TokenKind::Semicolon).map_or(0, |index| index + 1)
}

fn complete_command(names: &Names, hook: &dyn BackslashHook, typed: &str, backslash: usize) -> Offer {
    let text = &typed[backslash..];
    let Some(argument) = text.rfind(char::is_whitespace) else {
        let mut words: Vec<String> = COMMANDS
            .iter()
            .filter_map(|(usage, _)| usage.split_whitespace().next())
            .map(str::to_owned)
            .chain(hook.commands().iter().map(|command| format!("\\{command}")))
            .filter(|command| command.starts_with(text))
            .collect();
        words.sort();
        words.dedup();
        return Offer::Words { start: backslash, words };
    };
    let start = backslash + argument + 1;
    let prefix = &typed[start..];
    let name = text[1..].split_whitespace().next().unwrap_or_default();
    let earlier: Vec<&str> = text[..argument].split_whitespace().skip(1).collect();
    let from = |choices: &[&str]| -> Vec<String> {
        choices
            .iter()
            .filter(|choice| choice.starts_with(prefix))
            .map(|choice| (*choice).to_owned())
            .collect()
    };
    let words = match (name, earlier.as_slice()) {
        ("d" | "dt" | "dv" | "copy", []) => match prefix.split_once('.') {
            Some((schema, rest)) => relations_of(names, schema, rest)
                .into_iter()
                .map(|relation| format!("{schema}.{relation}"))
                .collect(),
            None => relations(names, prefix),
        },
        ("dn", []) => names
            .schemas()
            .into_iter()
            .filter(|schema| schema.starts_with(prefix))
            .map(str::to_owned)
            .collect(),
        ("copy", [_]) => from(&["from", "to"]),
        ("i" | "o" | "g" | "gx", []) | ("copy", [_, _]) => return Offer::Files,
        ("x", []) => from(&["on", "off", "auto"]),
        ("timing", []) => from(&["on", "off"]),
        ("rows", []) => from(&["all"]),
        ("format", []) => from(&["table", "csv", "tsv", "json", "ndjson", "vertical", "markdown"]),
        (name, typed) => {
            hook.arguments(name, typed).into_iter().filter(|word| word.starts_with(prefix)).collect()
        }
    };
    Offer::Words { start, words }
}

/// Settings have dots in their names, so the word is longer than its token.
fn complete_setting(names: &Names, typed: &str, earlier: &[&str], word: usize) -> Option<Offer> {
    let is_name = |text: &&str| {
        *text == "." || text.chars().all(|character| character.is_alphanumeric() || character == '_')
    };
    if !earlier[1..].iter().all(is_name) || earlier.len() > 1 && earlier.last() != Some(&".") {
        return None;
    }
    let start = typed[..word].rfind(char::is_whitespace).map_or(0, |index| index + 1);
    let prefix = typed[start..].to_ascii_lowercase();
    let words: Vec<String> =
        names.settings.iter().filter(|name| name.starts_with(&prefix)).cloned().collect();
    (!words.is_empty()).then_some(Offer::Words { start, words })
}

/// Whether the next word names a table or view.
fn wants_relation(earlier: &[&str]) -> bool {
    let lower = |text: &&str| text.to_ascii_lowercase();
    let Some(last) = earlier.last().map(lower) else {
        return false;
    };
    if matches!(
        last.as_str(),
        "from" | "join" | "into" | "update" | "table" | "describe" | "desc" | "copy" | "view" | "exists"
    ) {
        return last != "desc" || earlier.len() == 1;
    }
    // `FROM a, |`
    last == ","
        && earlier
            .iter()
            .rev()
            .map(lower)
            .find(|word| keywords::is_keyword(word))
            .is_some_and(|clause| clause == "from")
}

fn relations(names: &Names, prefix: &str) -> Vec<String> {
    let mut words: Vec<String> = names
        .relations
        .keys()
        .filter(|relation| !matches!(relation.schema.as_str(), "information_schema" | "system"))
        .map(|relation| quoted_if_needed(&relation.name))
        .collect();
    words.extend(names.schemas().into_iter().map(|schema| format!("{}.", quoted_if_needed(schema))));
    matching(words, prefix)
}

fn relations_of(names: &Names, schema: &str, prefix: &str) -> Vec<String> {
    let words = names.relations.keys().filter(|relation| relation.schema.eq_ignore_ascii_case(schema));
    matching(words.map(|relation| quoted_if_needed(&relation.name)).collect(), prefix)
}

/// What may follow `qualifier.`: columns of a table or alias, or tables of a
/// schema.
fn qualified(names: &Names, statement: &[&str], qualifier: &str, prefix: &str) -> Vec<String> {
    let table = aliased(statement, qualifier).unwrap_or_else(|| qualifier.to_owned());
    let mut words: Vec<String> = names
        .relations
        .iter()
        .filter(|(relation, _)| relation.name.eq_ignore_ascii_case(&table))
        .flat_map(|(_, columns)| columns)
        .map(|column| quoted_if_needed(column))
        .collect();
    words = matching(words, prefix);
    words.extend(relations_of(names, qualifier, prefix));
    words
}

/// The table that `alias` stands for: `table alias` or `table AS alias`.
fn aliased(statement: &[&str], alias: &str) -> Option<String> {
    statement.windows(3).find_map(|window| {
        let (table, name) = match window {
            [table, middle, name] if middle.eq_ignore_ascii_case("as") => (table, name),
            [_, table, name] => (table, name),
            _ => return None,
        };
        let is_name =
            |text: &str| text.starts_with(|first: char| first.is_alphabetic() || matches!(first, '_' | '"'));
        (unquoted(name).eq_ignore_ascii_case(alias) && is_name(table) && !keywords::is_keyword(table))
            .then(|| unquoted(table))
    })
}

/// Columns of the statement's tables, and keywords and functions once
/// something was typed.
fn expressions(names: &Names, statement: &[&str], prefix: &str) -> Vec<String> {
    let mentioned = |name: &str| statement.iter().any(|word| unquoted(word).eq_ignore_ascii_case(name));
    let columns: Vec<String> = names
        .relations
        .iter()
        .filter(|(relation, _)| mentioned(&relation.name))
        .flat_map(|(_, columns)| columns)
        .map(|column| quoted_if_needed(column))
        .collect();
    let mut words = matching(columns, prefix);
    if !prefix.is_empty() && !prefix.starts_with('"') {
        words.extend(keywords::beginning_with(prefix));
        words.extend(matching(names.functions.iter().map(|name| format!("{name}(")).collect(), prefix));
    }
    words
}

fn matching(words: Vec<String>, prefix: &str) -> Vec<String> {
    let prefix = unquoted(prefix).to_lowercase();
    words.into_iter().filter(|word| unquoted(word).to_lowercase().starts_with(&prefix)).collect()
}

fn unquoted(word: &str) -> String {
    match word.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"').unwrap_or(rest).replace("\"\"", "\""),
        None => word.to_owned(),
    }
}

/// A name as SQL takes it: quoted unless it is in lower case and plain.
pub(super) fn quoted_if_needed(name: &str) -> String {
    let mut characters = name.chars();
    let plain = characters.next().is_some_and(|first| first.is_ascii_lowercase() || first == '_')
        && characters.all(|character| {
            character.is_ascii_lowercase() || character.is_ascii_digit() || character == '_'
        });
    if plain && !keywords::is_keyword(name) {
        name.to_owned()
    } else {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}

#[cfg(test)]
mod tests {
    use futures::future::BoxFuture;

    use super::*;
    use crate::client::{ClientError, Relation};
    use crate::repl::{NoHook, Show};

    /// Knows `\kill` and two nodes.
    struct Killing;

    impl BackslashHook for Killing {
        fn help(&self) -> Vec<(String, String)> {
            vec![("\\kill NODE".to_owned(), "ends a node".to_owned())]
        }

        fn arguments(&self, command: &str, typed: &[&str]) -> Vec<String> {
            match (command, typed) {
                ("kill", []) => ["coordinator", "worker-1"].map(str::to_owned).to_vec(),
                _ => Vec::new(),
            }
        }

        fn run<'a>(
            &'a self,
            _command: &'a str,
            _argument: &'a str,
            _show: Show<'a>,
        ) -> BoxFuture<'a, Option<Result<String, ClientError>>> {
            Box::pin(std::future::ready(None))
        }
    }

    fn names() -> Names {
        let mut names = Names::default();
        for (schema, name, columns) in [
            ("public", "orders", vec!["o_orderkey", "o_date"]),
            ("public", "lineitem", vec!["l_orderkey", "l_tax"]),
            ("public", "Odd Name", vec!["X"]),
            ("system", "workers", vec!["id", "address"]),
        ] {
            let columns = columns.into_iter().map(str::to_owned).collect();
            names.relations.insert(Relation { schema: schema.into(), name: name.into() }, columns);
        }
        names.functions.insert("sum".into());
        names.settings.insert("datafusion.execution.batch_size".into());
        names
    }

    /// `|` is the cursor.
    fn check(line: &str, expected: &[&str]) {
        let cursor = line.find('|').unwrap();
        let line = line.replacen('|', "", 1);
        let Offer::Words { words, .. } = offer(&names(), &Killing, &line, cursor) else {
            panic!("files were offered for {line}");
        };
        assert_eq!(words, expected, "{line}");
    }

    #[test]
    fn tables_follow_from_and_join() {
        check("select * from |", &["\"Odd Name\"", "lineitem", "orders", "public.", "system."]);
        check("select * from o|", &["\"Odd Name\"", "orders"]);
        check("select * from orders, li|", &["lineitem"]);
        check("select 1; drop table li|", &["lineitem"]);
        check("select * from system.w|", &["workers"]);
    }

    #[test]
    fn columns_come_from_the_tables_of_the_statement() {
        check("select l_| from lineitem", &["l_orderkey", "l_tax"]);
        check(
            "select * from orders where o|",
            &["o_date", "o_orderkey", "offset", "on", "optimize", "options", "or", "order", "outer", "over"],
        );
        check("select l.| from lineitem l", &["l_orderkey", "l_tax"]);
        check("select l.l_t| from lineitem as l", &["l_tax"]);
        check("select orders.o_d|", &["o_date"]);
        check("select l_|; select * from lineitem", &[]);
    }

    #[test]
    fn keywords_and_functions_need_a_beginning() {
        check("sel|", &["select"]);
        check("SELECT su|", &["sum("]);
        check("|", &[]);
    }

    #[test]
    fn nothing_is_offered_in_text_and_comments() {
        check("select 'fr|", &[]);
        check("-- fr|", &[]);
    }

    #[test]
    fn settings_are_whole_words() {
        check("set datafusion.exec|", &["datafusion.execution.batch_size"]);
        check("SHOW data|", &["datafusion.execution.batch_size"]);
    }

    #[test]
    fn commands_and_their_arguments_are_completed() {
        check("\\di|", &[]);
        check("\\d|", &["\\d", "\\dn", "\\dt", "\\dv"]);
        check("\\k|", &["\\kill"]);
        check("\\kill |", &["coordinator", "worker-1"]);
        check("\\kill w|", &["worker-1"]);
        check("\\kill worker-1 w|", &[]);
        check("\\d li|", &["lineitem"]);
        check("\\d system.|", &["system.workers"]);
        check("\\x a|", &["auto"]);
        assert_eq!(offer(&names(), &NoHook, "\\i fo", 5), Offer::Files);
        assert_eq!(offer(&names(), &NoHook, "\\copy t from 'fo", 16), Offer::Files);
    }
}
