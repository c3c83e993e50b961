//! How wide text is on a terminal, and cutting it to fit.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Columns that `text` takes on a terminal.
pub fn display_width(text: &str) -> usize {
    if text.is_ascii() { text.len() } else { text.width() }
}

/// `text` in at most `width` columns; what does not fit is replaced by `…`.
pub fn truncated(text: &str, width: usize) -> String {
    if display_width(text) <= width {
        return text.to_owned();
    }
    let mut kept = String::new();
    let mut taken = 0;
    for character in text.chars() {
        let columns = character.width().unwrap_or(0);
        if taken + columns + 1 > width {
            break;
        }
        taken += columns;
        kept.push(character);
    }
    if width > 0 {
        kept.push('…');
    }
    kept
}

/// `text` as one line that cannot move the cursor or change colours: control
/// characters are written as escapes, except the line breaks in `keep_lines`.
pub(super) fn made_safe(text: &str, keep_lines: bool) -> String {
    let is_harmful = |character: char| character.is_control() && !(keep_lines && character == '\n');
    if !text.contains(is_harmful) {
        return text.to_owned();
    }
    let mut safe = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        match character {
            '\n' if keep_lines => safe.push('\n'),
            '\n' => safe.push_str("\\n"),
            '\r' => safe.push_str("\\r"),
            '\t' => safe.push_str("\\t"),
            character if character.is_control() => safe.push_str(&format!("\\x{:02x}", u32::from(character))),
            character => safe.push(character),
        }
    }
    safe
}

/// Appends `text`, padded with spaces to `width` columns.
pub(super) fn push_padded(line: &mut String, text: &str, width: usize, right: bool) {
    let padding = width.saturating_sub(display_width(text));
    if right {
        line.extend(std::iter::repeat_n(' ', padding));
    }
    line.push_str(text);
    if !right {
        line.extend(std::iter::repeat_n(' ', padding));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_and_combining_characters_are_measured() {
        for (text, expected) in [("abc", 3), ("日本", 4), ("e\u{301}", 1), ("🦀", 2), ("", 0)] {
            assert_eq!(display_width(text), expected, "{text}");
        }
    }

    #[test]
    fn cut_text_fits_and_says_so() {
        for (text, width, expected) in [
            ("abcdef", 6, "abcdef"),
            ("abcdef", 4, "abc…"),
            ("日本語", 4, "日…"),
            ("ab", 1, "…"),
            ("ab", 0, ""),
        ] {
            assert_eq!(truncated(text, width), expected);
        }
    }

    #[test]
    fn no_cell_can_command_the_terminal() {
        assert_eq!(made_safe("a\x1b[31mb\tc\nd", false), "a\\x1b[31mb\\tc\\nd");
        assert_eq!(made_safe("a\nb\r", true), "a\nb\\r");
    }
}
