//! Colours for what is typed.

use super::keywords::is_keyword;
use super::lex::{TokenKind, tokens};
use crate::render::Paint;

/// `input` with colours; its text is the same.
pub(super) fn highlighted(input: &str, paint: Paint) -> String {
    let mut output = String::with_capacity(input.len() * 2);
    let mut in_command = false;
    for token in tokens(input) {
        let text = &input[token.start..token.end];
        in_command = match token.kind {
            TokenKind::Backslash => true,
            TokenKind::Space if text.contains('\n') => false,
            _ => in_command,
        };
        let painted = match token.kind {
            _ if in_command => paint.command(text),
            TokenKind::Comment => paint.dim(text),
            TokenKind::Word if is_keyword(text) => paint.keyword(text),
            TokenKind::Number => paint.number(text),
            TokenKind::Text => paint.text(text),
            TokenKind::Word
            | TokenKind::QuotedName
            | TokenKind::Space
            | TokenKind::Semicolon
            | TokenKind::Backslash
            | TokenKind::Symbol => text.to_owned(),
        };
        output.push_str(&painted);
    }
    output
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keywords_text_and_numbers_have_their_colours() {
        assert_eq!(
            highlighted("select 'a', 1 -- x", Paint::COLORED),
            "\x1b[1;34mselect\x1b[0m \x1b[32m'a'\x1b[0m, \x1b[36m1\x1b[0m \x1b[2m-- x\x1b[0m"
        );
    }

    #[test]
    fn without_colour_nothing_changes() {
        for input in ["\\d t\nselect 'open", "größe ; $$ \\ $$", ""] {
            assert_eq!(highlighted(input, Paint::PLAIN), input);
        }
    }
}
