//! The prompt: reads statements from a person until there are no more.

use std::process::ExitCode;
use std::sync::Arc;

use rustyline::error::ReadlineError;

use super::hook::BackslashHook;
use super::line::LineEditor;
use super::options::Options;
use super::session::{Flow, Session};
use super::split::{Item, Splitter};
use crate::client::Client;

/// Reads and runs statements until `\q` or Ctrl-D.
pub async fn run(client: Client, options: Options, hook: Arc<dyn BackslashHook>) -> ExitCode {
    let completing = Arc::clone(&hook);
    let mut session = Session::new(client, options, hook, true);
    session.refresh_names();
    if let Some(greeting) = session.options.greeting.take() {
        session.print_aside(&format!("{}\n", greeting.trim_end()));
    }
    let new_editor = |session: &Session| {
        LineEditor::new(
            &session.options.prompt,
            session.options.screen.stdout_paint,
            session.options.history.clone(),
            Arc::clone(&session.names),
            Arc::clone(&completing),
        )
    };
    let mut editor = None;
    loop {
        let mut reader = match editor.take().map_or_else(|| new_editor(&session), Ok) {
            Ok(reader) => reader,
            Err(error) => {
                session.print_aside(&format!("the terminal cannot be used: {error}\n"));
                return ExitCode::from(3);
            }
        };
        let read = tokio::task::spawn_blocking(move || {
            let input = reader.read();
            (reader, input)
        });
        let input = match read.await {
            Ok((reader, input)) => {
                editor = Some(reader);
                input
            }
            // The editor cannot draw some input (a line of 65,536 columns):
            // that ends the editor, not the session.
            Err(_) => {
                session.print_aside(
                    "the line editor failed and was started anew; run long statements with \\i\n",
                );
                continue;
            }
        };
        match input {
            Ok(input) => {
                if run_typed(&mut session, &input).await == Flow::Quit {
                    return ExitCode::SUCCESS;
                }
            }
            Err(ReadlineError::Interrupted) => {}
            Err(ReadlineError::Eof) => return ExitCode::SUCCESS,
            Err(error) => {
                session.print_aside(&format!("the terminal cannot be read: {error}\n"));
                return ExitCode::from(1);
            }
        }
    }
}

/// Runs what was typed; an error ends it, but not the session.
async fn run_typed(session: &mut Session, input: &str) -> Flow {
    let mut splitter = Splitter::default();
    // As psql does: the words by themselves are meant as commands.
    let input = match input.trim().trim_end_matches(';').trim_end().to_ascii_lowercase().as_str() {
        "quit" | "exit" => "\\q",
        "help" => "\\?",
        _ => input,
    };
    splitter.push(input);
    splitter.push("\n");
    while let Some(item) = splitter.next_item() {
        match session.perform(item, None).await {
            Ok(Flow::Continue) => {}
            Ok(Flow::Quit) => return Flow::Quit,
            Err(_) => return Flow::Continue,
        }
    }
    if let Some(sql) = splitter.finish() {
        // It was said; the prompt comes back.
        drop(session.perform(Item::Statement(sql), None).await);
    }
    Flow::Continue
}
