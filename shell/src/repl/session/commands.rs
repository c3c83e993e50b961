//! Running backslash commands.

use std::path::Path;
use std::time::Duration;

use arrow::record_batch::RecordBatch;
use chrono::Local;

use super::super::command::{Command, Described, parse, unknown};
use super::super::describe::{self, Pattern};
use super::super::help::help_text;
use super::super::output::Output;
use super::super::script::{Input, run_input};
use super::super::split::Sql;
use super::statements::Showing;
use super::{Flow, INCLUDE_DEPTH_MAX, Said, Session};
use crate::client::ClientError;
use crate::client::text_rows;
use crate::render::{Expanded, Format, Layout};

impl Session {
    /// Runs a command, given without its backslash. `statement` is what `\g`
    /// and `\watch` run.
    pub(super) async fn command(&mut self, text: &str, statement: Option<&Sql>) -> Result<Flow, Said> {
        match parse(text)? {
            Command::Quit => return Ok(Flow::Quit),
            Command::Help => {
                let text = help_text(&self.hook.help(), self.options.screen.stdout_paint);
                self.print(&text)?;
            }
            Command::Describe(what, pattern) => self.describe(what, pattern.as_deref()).await?,
            Command::Timing(on) => {
                self.options.timing = on.unwrap_or(!self.options.timing);
                self.confirm(&format!("Timing is {}.", if self.options.timing { "on" } else { "off" }));
            }
            Command::Expanded(expanded) => {
                self.options.expanded = expanded.unwrap_or(match self.options.expanded {
                    Expanded::Off => Expanded::On,
                    Expanded::On | Expanded::Auto => Expanded::Off,
                });
                let state = match self.options.expanded {
                    Expanded::Off => "off",
                    Expanded::On => "on",
                    Expanded::Auto => "used when a row is wider than the screen",
                };
                self.confirm(&format!("Expanded display is {state}."));
            }
            Command::Format(format) => {
                self.options.format = format.unwrap_or(self.options.format);
                self.confirm(&format!("Results are written as {}.", name_of(self.options.format)));
            }
            Command::Rows(rows) => {
                self.options.rows_shown = rows.unwrap_or(self.options.rows_shown);
                let shown = match self.options.rows_shown {
                    Some(rows) => format!("at most {rows} rows of a result"),
                    None => "all rows".to_owned(),
                };
                self.confirm(&format!("The screen shows {shown}."));
            }
            Command::Output(None) => self.output = Output::Screen,
            Command::Output(Some(file)) => self.output = Output::file(&file)?,
            Command::Go { expanded, file } => {
                let sql = self.current(statement)?;
                self.show(&sql, &Showing { expanded, file }).await?;
            }
            Command::Watch(pause) => {
                let sql = self.current(statement)?;
                self.watch(&sql, pause).await?;
            }
            Command::Include(file) => return self.include(&file).await,
            Command::Copy(copy) => self.copy(&copy).await?,
            Command::Connection => self.connection().await?,
            Command::Other { name, argument } => {
                self.interrupts.forget();
                let hook = std::sync::Arc::clone(&self.hook);
                let (output, mut shown) = (&mut self.output, Ok(()));
                let mut show = |text: &str| {
                    if shown.is_ok() {
                        shown = output.write(|out| out.write_all(text.as_bytes()));
                    }
                };
                let run = async { Ok(hook.run(&name, &argument, &mut show).await) };
                let outcome = self.interrupts.guard(run).await?;
                shown?;
                match outcome {
                    Some(Ok(text)) if text.is_empty() || text.ends_with('\n') => self.print(&text)?,
                    Some(Ok(text)) => self.print(&format!("{text}\n"))?,
                    Some(Err(why)) => return Err(why.into()),
                    None => return Err(unknown(&name).into()),
                }
                self.print_gap();
            }
        }
        Ok(Flow::Continue)
    }

    /// Says that a setting was changed.
    fn confirm(&self, text: &str) {
        if !self.options.quiet && self.interactive {
            self.print_aside(&format!("{text}\n"));
        }
    }

    /// The statement that a command is about: what precedes it, or the last.
    fn current(&mut self, statement: Option<&Sql>) -> Result<String, ClientError> {
        if let Some(sql) = statement {
            self.last = Some(sql.text.clone());
        }
        self.last.clone().ok_or_else(|| ClientError::Usage("there is no statement to run again".to_owned()))
    }

    async fn watch(&mut self, sql: &str, pause: Duration) -> Result<(), ClientError> {
        loop {
            let title = format!("{} (every {pause:?})\n", Local::now().format("%a %d %b %Y %H:%M:%S"));
            let title = self.options.screen.stdout_paint.head(&title);
            self.print(&title)?;
            let outcome = match self.show(sql, &Showing::default()).await {
                Ok(()) => {
                    let wait = async {
                        tokio::time::sleep(pause).await;
                        Ok(())
                    };
                    self.interrupts.guard(wait).await
                }
                Err(error) => Err(error),
            };
            match outcome {
                Ok(()) => {}
                // Ctrl-C is how it is meant to end.
                Err(ClientError::Cancelled) if self.interactive => {
                    self.print_aside("\n");
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn include(&mut self, file: &Path) -> Result<Flow, Said> {
        if self.include_depth >= INCLUDE_DEPTH_MAX {
            return Err(Said::NotYet(ClientError::Usage(format!(
                "cannot include {}: scripts include each other {INCLUDE_DEPTH_MAX} deep",
                file.display()
            ))));
        }
        self.include_depth += 1;
        let outcome = Box::pin(run_input(self, Input::File(file.to_owned()))).await;
        self.include_depth -= 1;
        let flow = outcome?;
        // At the prompt, an error that was passed over was said; that is all.
        if self.interactive {
            drop(self.take_passed_over());
        }
        Ok(flow)
    }

    async fn describe(&mut self, what: Described, text: Option<&str>) -> Result<(), ClientError> {
        let pattern = text.map(Pattern::parse).transpose()?;
        if let (Described::Any, Some(pattern)) = (what, &pattern)
            && pattern.is_name()
        {
            return self.describe_one(pattern, text.unwrap_or_default()).await;
        }
        let list = self.ask(&describe::list(what, pattern.as_ref())).await?;
        if list.iter().any(|batch| batch.num_rows() > 0) {
            let list = list.iter().map(describe::sizes_shown).collect::<Result<Vec<_>, _>>()?;
            self.print_table(&list)?;
        } else {
            let noun = match what {
                Described::Any => "tables or views",
                Described::Tables => "tables",
                Described::Views => "views",
                Described::Schemas => "schemas",
            };
            let like = text.map(|text| format!(" like {text}")).unwrap_or_default();
            self.print_aside(&format!("There are no {noun}{like}.\n"));
        }
        self.print_gap();
        Ok(())
    }

    async fn describe_one(&mut self, pattern: &Pattern, text: &str) -> Result<(), ClientError> {
        let found = text_rows(&self.ask(&describe::find(pattern)).await?);
        if found.is_empty() {
            return Err(ClientError::Usage(format!("there is no table or view {text}; \\d lists them")));
        }
        for row in found {
            let [Some(schema), Some(name), Some(kind)] = row.as_slice() else {
                continue;
            };
            let kind = if kind == "BASE TABLE" { "Table".to_owned() } else { capitalised(kind) };
            let title = self.options.screen.stdout_paint.head(&format!("{kind} {schema}.{name}"));
            self.print(&format!("{title}\n"))?;
            let columns = text_rows(&self.ask(&describe::columns(schema, name)).await?);
            self.print_table(&[describe::columns_shown(&columns)?])?;
            let layout = text_rows(&self.ask(&describe::layout(schema, name)).await?);
            if let Some(text) = layout.first().and_then(|row| describe::layout_text(row)) {
                self.print(&text)?;
            }
            if kind == "View" {
                let texts = text_rows(&self.ask(&describe::view_text(schema, name)).await?);
                if let Some(definition) = texts.into_iter().flatten().flatten().next() {
                    self.print(&format!("{definition}\n"))?;
                }
            }
            self.print_gap();
        }
        Ok(())
    }

    /// The answer to a question of the shell's own, connecting again if the
    /// connection is gone.
    async fn ask(&mut self, sql: &str) -> Result<Vec<RecordBatch>, ClientError> {
        self.interrupts.forget();
        let client = self.client.clone();
        match self.interrupts.guard(client.collect(sql)).await {
            Err(lost) if lost.session_is_gone() => {
                self.reconnect(&lost).await?;
                let client = self.client.clone();
                self.interrupts.guard(client.collect(sql)).await
            }
            answer => answer,
        }
    }

    /// Prints a small table as it is, in the session's format.
    fn print_table(&mut self, batches: &[RecordBatch]) -> Result<(), ClientError> {
        let layout =
            if self.output.is_screen() { self.options.screen_layout() } else { self.options.file_layout() };
        let layout = Layout { footer: false, null: String::new(), ..layout };
        let Some(first) = batches.first() else {
            return Ok(());
        };
        let mut renderer = layout.renderer(&first.schema());
        self.output.write(|out| {
            for batch in batches {
                renderer.rows(batch, out)?;
            }
            renderer.finish(out)
        })
    }

    /// An empty line below what a command printed at the prompt.
    fn print_gap(&self) {
        if self.interactive {
            self.print_aside("\n");
        }
    }

    async fn connection(&mut self) -> Result<(), ClientError> {
        let workers = self.ask("SELECT count(*) FROM system.workers WHERE state = 'live'").await;
        let workers =
            workers.ok().and_then(|batches| text_rows(&batches).into_iter().flatten().flatten().next());
        let workers = workers.map(|count| format!("; workers that live: {count}")).unwrap_or_default();
        let (here, all) = (self.client.address(), self.client.coordinators());
        let others: Vec<String> =
            all.iter().filter(|other| *other != here).map(ToString::to_string).collect();
        let mut text = format!("Connected to {here} as {}{workers}.\n", self.client.user());
        if !others.is_empty() {
            text.push_str(&format!("When it is gone: {}.\n", others.join(", ")));
        }
        self.print(&text)
    }
}

fn capitalised(text: &str) -> String {
    let mut characters = text.chars();
    let first = characters.next().map(|first| first.to_uppercase().to_string()).unwrap_or_default();
    first + &characters.as_str().to_lowercase()
}

fn name_of(format: Format) -> String {
    clap::ValueEnum::to_possible_value(&format).map(|value| value.get_name().to_owned()).unwrap_or_default()
}
