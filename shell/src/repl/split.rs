//! Input cut into statements and backslash commands, as it comes, whatever
//! quotes and comments it holds.

use super::lex::{Token, TokenKind, token_at};

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Item {
    /// A statement.
    Statement(Sql),
    /// A backslash command, without the backslash. `\g`, `\gx` and `\watch`
    /// take with them the statement that they end, if one was begun.
    Command {
        /// The command and its argument.
        text: String,
        /// The statement that it ends.
        statement: Option<Sql>,
    },
}

/// A statement's text, without its semicolon and without what precedes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sql {
    /// What is sent.
    pub(super) text: String,
    /// The line of the input where it begins, from 1.
    pub(super) line: usize,
}

/// Cuts input that comes in whole lines.
#[derive(Debug, Default)]
pub(super) struct Splitter {
    text: String,
    /// Where the statement under way begins: white space and comments before
    /// it are skipped. None while nothing but those was seen.
    begun: Option<usize>,
    /// The next token begins here.
    next: usize,
    /// Line breaks before `text`, which forgets what was returned.
    lines_before: usize,
}

impl Splitter {
    /// Takes more input. Words must not be torn apart: push whole lines, with
    /// their line breaks.
    pub(super) fn push(&mut self, input: &str) {
        let done = self.begun.unwrap_or(self.next);
        if done > 64 * 1024 && done > self.text.len() / 2 {
            self.lines_before += line_breaks(&self.text[..done]);
            self.text.drain(..done);
            self.begun = self.begun.map(|begun| begun - done);
            self.next -= done;
        }
        self.text.push_str(input);
    }

    /// The next complete thing to do; none until more is pushed.
    pub(super) fn next_item(&mut self) -> Option<Item> {
        while let Some(token) = token_at(&self.text, self.next) {
            if !token.closed {
                // An open comment before a statement is no statement.
                if token.kind != TokenKind::Comment {
                    self.begun.get_or_insert(token.start);
                }
                return None;
            }
            match token.kind {
                TokenKind::Space | TokenKind::Comment => self.next = token.end,
                TokenKind::Semicolon => {
                    self.next = token.end;
                    if let Some(statement) = self.take_statement(token.start) {
                        return Some(Item::Statement(statement));
                    }
                }
                TokenKind::Backslash => return Some(self.take_command(token)),
                TokenKind::Word
                | TokenKind::Number
                | TokenKind::Text
                | TokenKind::QuotedName
                | TokenKind::Symbol => {
                    self.begun.get_or_insert(token.start);
                    self.next = token.end;
                }
            }
        }
        None
    }

    /// At the end of the input: the statement that lacks its semicolon.
    pub(super) fn finish(&mut self) -> Option<Sql> {
        self.next = self.text.len();
        self.take_statement(self.text.len())
    }

    /// Whether more input is needed: a statement was begun, or a comment is
    /// open.
    pub(super) fn is_pending(&self) -> bool {
        self.begun.is_some() || self.next < self.text.len()
    }

    fn take_statement(&mut self, end: usize) -> Option<Sql> {
        let begun = self.begun.take()?;
        let text = self.text[begun..end].trim_end().to_owned();
        let line = self.lines_before + line_breaks(&self.text[..begun]) + 1;
        (!text.is_empty()).then_some(Sql { text, line })
    }

    /// Takes a command, which ends with its line. The statement under way
    /// goes on after it, unless the command ends it.
    fn take_command(&mut self, backslash: Token) -> Item {
        let rest = &self.text[backslash.end..];
        let length = rest.find('\n').unwrap_or(rest.len());
        let text = rest[..length].trim().to_owned();
        let name = text.split_whitespace().next().unwrap_or_default();
        let end = backslash.end + length;
        let statement = if matches!(name, "g" | "gx" | "watch") {
            self.next = end;
            self.take_statement(backslash.start)
        } else if self.begun.is_some() {
            self.text.replace_range(backslash.start..end, "");
            self.next = backslash.start;
            None
        } else {
            self.next = end;
            None
        };
        Item::Command { text, statement }
    }
}

fn line_breaks(text: &str) -> usize {
    text.bytes().filter(|byte| *byte == b'\n').count()
}

/// Whether `input` can be run as it is: nothing in it waits for a semicolon
/// or a closing quote.
pub(super) fn is_complete(input: &str) -> bool {
    if ["quit", "exit", "help"].iter().any(|word| input.trim().eq_ignore_ascii_case(word)) {
        return true;
    }
    let mut splitter = Splitter::default();
    splitter.push(input);
    splitter.push("\n");
    while splitter.next_item().is_some() {}
    !splitter.is_pending()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sql(text: &str, line: usize) -> Item {
        Item::Statement(Sql { text: text.to_owned(), line })
    }

    fn command(text: &str) -> Item {
        Item::Command { text: text.to_owned(), statement: None }
    }

    /// Pushed whole and pushed by line must come to the same.
    fn check(input: &str, expected: &[Item]) {
        let mut whole = Splitter::default();
        whole.push(input);
        let mut items: Vec<Item> = std::iter::from_fn(|| whole.next_item()).collect();
        items.extend(whole.finish().map(Item::Statement));
        assert_eq!(items, expected);

        let mut by_line = Splitter::default();
        let mut items = Vec::new();
        for line in input.split_inclusive('\n') {
            by_line.push(line);
            items.extend(std::iter::from_fn(|| by_line.next_item()));
        }
        items.extend(by_line.finish().map(Item::Statement));
        assert_eq!(items, expected);
    }

    #[test]
    fn semicolons_end_statements() {
        check("select 1; select 2;\nselect 3", &[sql("select 1", 1), sql("select 2", 1), sql("select 3", 2)]);
        check(" ;; \n;", &[]);
    }

    #[test]
    fn quotes_and_comments_hide_semicolons() {
        check(
            "select ';', \"a;b\" -- x;y\n, $$;$$ /* ; /* ; */ */;",
            &[sql("select ';', \"a;b\" -- x;y\n, $$;$$ /* ; /* ; */ */", 1)],
        );
        check("select 'it''s;\n\\d';", &[sql("select 'it''s;\n\\d'", 1)]);
    }

    #[test]
    fn what_precedes_a_statement_is_not_sent() {
        check("-- a comment\n\n  /* more */ select 1;\n-- end\n", &[sql("select 1", 3)]);
        check("-- nothing\n", &[]);
    }

    #[test]
    fn commands_end_with_their_line() {
        check("\\dt\nselect 1;\n\\x on\n", &[command("dt"), sql("select 1", 2), command("x on")]);
        check("\\copy t from 'a;b.csv'\n", &[command("copy t from 'a;b.csv'")]);
        check("select\n\\timing\n1;", &[command("timing"), sql("select\n\n1", 1)]);
    }

    #[test]
    fn go_and_watch_end_the_statement_before_them() {
        let ended = |text: &str, command: &str| Item::Command {
            text: command.to_owned(),
            statement: Some(Sql { text: text.to_owned(), line: 1 }),
        };
        check("select 1 \\g out.txt\n", &[ended("select 1", "g out.txt")]);
        check("select 1 \\gx\n", &[ended("select 1", "gx")]);
        check("select 1; \\watch 2\n", &[sql("select 1", 1), command("watch 2")]);
    }

    #[test]
    fn input_is_complete_when_nothing_waits() {
        for input in
            ["", "  ", "select 1;", "\\d", "select 1 \\g", "-- note", "select 1; -- end", "select 1;;"]
        {
            assert!(is_complete(input), "{input}");
        }
        for input in ["select 1", "select ';", "select 1; select 2", "/* open", "select $$;$", "\\x\nselect"]
        {
            assert!(!is_complete(input), "{input}");
        }
    }

    #[test]
    fn a_long_script_keeps_its_line_numbers() {
        let mut splitter = Splitter::default();
        let mut last = None;
        for line in 0..20_000 {
            splitter.push(&format!("select {line};\n"));
            while let Some(item) = splitter.next_item() {
                last = Some(item);
            }
        }
        assert_eq!(last, Some(sql("select 19999", 20_000)));
        assert!(splitter.text.len() < 300_000);
    }
}
