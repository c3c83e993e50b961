//! SQL cut into tokens: just enough to find where statements end, to colour
//! them and to complete them. It accepts any text.

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenKind {
    /// White space.
    Space,
    /// `-- ...` or `/* ... */`, which nests.
    Comment,
    /// A keyword or a name without quotes.
    Word,
    /// `1`, `1.5e-3`.
    Number,
    /// `'...'`, `E'...'` or `$tag$...$tag$`.
    Text,
    /// `"..."` or `` `...` ``.
    QuotedName,
    /// `;`
    Semicolon,
    /// `\`, which begins a command of the shell.
    Backslash,
    /// Anything else, one character at a time.
    Symbol,
}

/// A token, as a range of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token {
    /// What it is.
    pub(super) kind: TokenKind,
    /// Its first byte.
    pub(super) start: usize,
    /// One past its last byte.
    pub(super) end: usize,
    /// Whether its end was found: a quote or comment may still be open.
    pub(super) closed: bool,
}

/// The token at byte `start`; none at the end of the text.
pub(super) fn token_at(text: &str, start: usize) -> Option<Token> {
    let rest = text.get(start..)?;
    let first = rest.chars().next()?;
    let second = rest[first.len_utf8()..].chars().next();
    let (kind, length) = match (first, second) {
        (';', _) => (TokenKind::Semicolon, Some(1)),
        ('\\', _) => (TokenKind::Backslash, Some(1)),
        ('-', Some('-')) => (TokenKind::Comment, Some(rest.find('\n').unwrap_or(rest.len()))),
        ('/', Some('*')) => (TokenKind::Comment, block_comment(rest)),
        ('\'', _) => (TokenKind::Text, quoted(rest, 0, '\'', false)),
        ('e' | 'E', Some('\'')) => (TokenKind::Text, quoted(rest, 1, '\'', true)),
        ('"', _) => (TokenKind::QuotedName, quoted(rest, 0, '"', false)),
        ('`', _) => (TokenKind::QuotedName, quoted(rest, 0, '`', false)),
        ('$', _) => match dollar_tag(rest) {
            Some(tag) => (TokenKind::Text, dollar_quoted(rest, tag)),
            None => (TokenKind::Symbol, Some(1)),
        },
        (first, _) if first.is_whitespace() => {
            let length = rest.find(|character: char| !character.is_whitespace()).unwrap_or(rest.len());
            (TokenKind::Space, Some(length))
        }
        (first, _) if first.is_ascii_digit() => (TokenKind::Number, Some(number(rest))),
        (first, _) if is_word_start(first) => {
            let length = rest.find(|character: char| !is_word_part(character)).unwrap_or(rest.len());
            (TokenKind::Word, Some(length))
        }
        (first, _) => (TokenKind::Symbol, Some(first.len_utf8())),
    };
    Some(Token { kind, start, end: start + length.unwrap_or(rest.len()), closed: length.is_some() })
}

/// All tokens of a text, in order and without gaps.
pub(super) fn tokens(text: &str) -> impl Iterator<Item = Token> + '_ {
    let mut next = 0;
    std::iter::from_fn(move || {
        let token = token_at(text, next)?;
        next = token.end;
        Some(token)
    })
}

fn is_word_start(character: char) -> bool {
    character.is_alphabetic() || character == '_'
}

fn is_word_part(character: char) -> bool {
    character.is_alphanumeric() || character == '_' || character == '$'
}

/// Length of what is quoted from byte `open` on; none while it is open. A
/// doubled quote is a quote.
fn quoted(rest: &str, open: usize, quote: char, escapes: bool) -> Option<usize> {
    let mut characters = rest.char_indices().skip_while(|(index, _)| *index <= open).peekable();
    while let Some((index, character)) = characters.next() {
        if escapes && character == '\\' {
            characters.next();
        } else if character == quote {
            match characters.peek() {
                Some((_, next)) if *next == quote => {
                    characters.next();
                }
                _ => return Some(index + 1),
            }
        }
    }
    None
}

fn block_comment(rest: &str) -> Option<usize> {
    let bytes = rest.as_bytes();
    let mut depth = 0_usize;
    let mut index = 0;
    while index + 1 < bytes.len() {
        match &bytes[index..index + 2] {
            b"/*" => {
                depth += 1;
                index += 2;
            }
            b"*/" => {
                depth -= 1;
                index += 2;
                if depth == 0 {
                    return Some(index);
                }
            }
            _ => index += 1,
        }
    }
    None
}

/// `$$` or `$name$` at the beginning; a parameter such as `$1` is none.
fn dollar_tag(rest: &str) -> Option<&str> {
    let name = &rest[1..];
    let end = name.find('$')?;
    let mut characters = name[..end].chars();
    let is_tag = match characters.next() {
        None => true,
        Some(first) => is_word_start(first) && characters.all(is_word_part),
    };
    is_tag.then(|| &rest[..end + 2])
}

fn dollar_quoted(rest: &str, tag: &str) -> Option<usize> {
    rest[tag.len()..].find(tag).map(|index| index + 2 * tag.len())
}

fn number(rest: &str) -> usize {
    let bytes = rest.as_bytes();
    let mut index = 0;
    while index < bytes.len() {
        let is_exponent_sign = matches!(bytes[index], b'+' | b'-') && matches!(bytes[index - 1], b'e' | b'E');
        if !(bytes[index].is_ascii_alphanumeric() || matches!(bytes[index], b'.' | b'_') || is_exponent_sign)
        {
            break;
        }
        index += 1;
    }
    index
}

#[cfg(test)]
mod tests {
    use super::TokenKind::*;
    use super::*;

    fn check(text: &str, expected: &[(TokenKind, &str)]) {
        let found: Vec<_> = tokens(text).map(|token| (token.kind, &text[token.start..token.end])).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn every_kind_is_told_apart() {
        check(
            "sel_1 'a''b'\"x\"\"y\"",
            &[(Word, "sel_1"), (Space, " "), (Text, "'a''b'"), (QuotedName, "\"x\"\"y\"")],
        );
        check("1.5e-3+$1", &[(Number, "1.5e-3"), (Symbol, "+"), (Symbol, "$"), (Number, "1")]);
        check("-- a;b\n;", &[(Comment, "-- a;b"), (Space, "\n"), (Semicolon, ";")]);
        check("/* a /* b */ ; */x", &[(Comment, "/* a /* b */ ; */"), (Word, "x")]);
        check("$$a;b$$ $t$ $$ $t$", &[(Text, "$$a;b$$"), (Space, " "), (Text, "$t$ $$ $t$")]);
        check(r"E'it\'s;' 'a\'", &[(Text, r"E'it\'s;'"), (Space, " "), (Text, r"'a\'")]);
        check("größe=日本", &[(Word, "größe"), (Symbol, "="), (Word, "日本")]);
        check("\\d", &[(Backslash, "\\"), (Word, "d")]);
    }

    #[test]
    fn open_quotes_and_comments_are_known_to_be_open() {
        for text in ["'abc", "\"abc", "/* a /* b */", "$$ab$", "$t$ab$$", "E'a\\'"] {
            let last = tokens(text).last().unwrap();
            assert!(!last.closed && last.end == text.len(), "{text}");
        }
    }
}
