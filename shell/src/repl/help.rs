//! The text of `\?`.

use super::command::COMMANDS;
use crate::render::Paint;

/// Commands with longer usage have their meaning on the next line.
const USAGE_WIDTH: usize = 24;

/// All commands and their meanings; `more` are those of a hook.
pub(super) fn help_text(more: &[(String, String)], paint: Paint) -> String {
    let own = COMMANDS.iter().map(|(usage, meaning)| ((*usage).to_owned(), (*meaning).to_owned()));
    let mut text = String::new();
    for (usage, meaning) in own {
        push_line(&mut text, &usage, &meaning, paint);
    }
    if !more.is_empty() {
        text.push('\n');
        for (usage, meaning) in more {
            push_line(&mut text, usage, meaning, paint);
        }
    }
    text.push_str(
        "\nA statement ends with a semicolon and may have any number of lines. Tab completes names.\n",
    );
    text.push_str("Ctrl-C stops a running statement, or clears what was typed; Ctrl-R searches what was typed before.\n");
    text
}

fn push_line(text: &mut String, usage: &str, meaning: &str, paint: Paint) {
    let usage_painted = paint.command(usage);
    if usage.len() > USAGE_WIDTH {
        text.push_str(&format!("  {usage_painted}\n  {:USAGE_WIDTH$}  {meaning}\n", ""));
    } else {
        let padding = " ".repeat(USAGE_WIDTH - usage.len());
        text.push_str(&format!("  {usage_painted}{padding}  {meaning}\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_and_those_of_the_hook_are_listed() {
        let text = help_text(&[("\\kill WORKER".into(), "ends a worker".into())], Paint::PLAIN);
        for (usage, _) in COMMANDS {
            assert!(text.contains(usage), "{usage}");
        }
        assert!(text.contains("  \\kill WORKER              ends a worker\n"), "{text}");
        assert!(text.lines().all(|line| line.len() <= 110), "{text}");
    }
}
