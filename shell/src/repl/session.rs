//! A session: what runs statements and commands, one after the other,
//! whoever typed them.

mod commands;
mod copying;
mod reconnect;
mod repeat;
mod settings;
mod statements;

use std::io::Write;
use std::sync::Arc;

use parking_lot::RwLock;

use self::settings::Settings;
use super::hook::BackslashHook;
use super::interrupt::Interrupts;
use super::options::Options;
use super::output::Output;
use super::report::{Origin, error_text};
use super::split::{Item, Sql};
use crate::client::{Client, ClientError, Names};

/// Scripts that include each other are stopped here.
const INCLUDE_DEPTH_MAX: usize = 16;

/// Whether there is more to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    Continue,
    Quit,
}

/// One session with a coordinator, and how its results are shown.
pub(super) struct Session {
    pub(super) client: Client,
    pub(super) options: Options,
    pub(super) interrupts: Interrupts,
    pub(super) names: Arc<RwLock<Names>>,
    hook: Arc<dyn BackslashHook>,
    output: Output,
    settings: Settings,
    /// What `\g` and `\watch` run again.
    last: Option<String>,
    interactive: bool,
    include_depth: usize,
    /// The first error that did not stop a script.
    passed_over: Option<ClientError>,
}

impl Session {
    pub(super) fn new(
        client: Client,
        options: Options,
        hook: Arc<dyn BackslashHook>,
        interactive: bool,
    ) -> Self {
        Self {
            client,
            options,
            interrupts: Interrupts::listen(),
            names: Arc::default(),
            hook,
            output: Output::Screen,
            settings: Settings::default(),
            last: None,
            interactive,
            include_depth: 0,
            passed_over: None,
        }
    }

    /// Does one thing, and says what went wrong with it.
    ///
    /// # Errors
    /// What went wrong.
    pub(super) async fn perform(&mut self, item: Item, file: Option<&str>) -> Result<Flow, ClientError> {
        let origin =
            |sql: Option<&Sql>| Origin { file: file.map(str::to_owned), line: sql.map_or(0, |sql| sql.line) };
        match item {
            Item::Statement(sql) => {
                let outcome = self.statement(&sql.text).await;
                self.say_error(&outcome, Some(&sql.text), &origin(Some(&sql)));
                outcome.map(|()| Flow::Continue)
            }
            Item::Command { text, statement } => {
                let outcome = Box::pin(self.command(&text, statement.as_ref())).await;
                let sql = statement.as_ref().map(|sql| sql.text.as_str());
                if let Err(Said::NotYet(error)) = &outcome {
                    self.print_error(error, sql, &origin(statement.as_ref()));
                }
                outcome.map_err(Said::into_error)
            }
        }
    }

    /// Takes an error that does not stop a script; true where the script must
    /// stop all the same.
    pub(super) fn pass_over(&mut self, error: ClientError) -> Result<(), ClientError> {
        let hopeless = matches!(
            error,
            ClientError::Unreachable { .. } | ClientError::Output(_) | ClientError::Cancelled
        );
        if hopeless || self.options.on_error == super::OnError::Stop {
            return Err(error);
        }
        self.passed_over.get_or_insert(error);
        Ok(())
    }

    /// The first error that did not stop a script.
    pub(super) fn take_passed_over(&mut self) -> Option<ClientError> {
        self.passed_over.take()
    }

    /// Prints an error unless that was done.
    pub(super) fn say(&self, said: &Said) {
        if let Said::NotYet(error) = said {
            self.print_error(error, None, &Origin::default());
        }
    }

    fn say_error(&self, outcome: &Result<(), ClientError>, sql: Option<&str>, origin: &Origin) {
        if let Err(error) = outcome {
            self.print_error(error, sql, origin);
        }
    }

    fn print_error(&self, error: &ClientError, sql: Option<&str>, origin: &Origin) {
        // Whoever closed the pipe wants no more.
        if let ClientError::Output(cause) = error
            && cause.kind() == std::io::ErrorKind::BrokenPipe
        {
            return;
        }
        let mut origin = origin.clone();
        if origin.line == 0 {
            origin.file = None;
        }
        let paint = self.options.screen.stderr_paint;
        self.print_aside(&error_text(error, sql, &origin, self.options.verbose, paint));
    }

    /// Prints beside results, on standard error.
    pub(super) fn print_aside(&self, text: &str) {
        let mut stderr = std::io::stderr().lock();
        // Without standard error there is nobody to tell.
        drop(stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush()));
    }

    fn print_notice(&self, text: &str) {
        if !self.options.quiet {
            let notice = self.options.screen.stderr_paint.notice("NOTICE:");
            self.print_aside(&format!("{notice} {text}\n"));
        }
    }

    /// Prints where results go.
    fn print(&mut self, text: &str) -> Result<(), ClientError> {
        self.output.write(|out| out.write_all(text.as_bytes()))
    }

    /// Reads the names for completion anew, in the background.
    pub(super) fn refresh_names(&self) {
        if !self.interactive {
            return;
        }
        let (client, names) = (self.client.clone(), Arc::clone(&self.names));
        drop(tokio::spawn(async move {
            if let Ok(loaded) = Names::load(&client).await {
                *names.write() = loaded;
            }
        }));
    }
}

/// An error, and whether it was printed.
pub(super) enum Said {
    NotYet(ClientError),
    Already(ClientError),
}

impl Said {
    pub(super) fn into_error(self) -> ClientError {
        match self {
            Self::NotYet(error) | Self::Already(error) => error,
        }
    }
}

impl From<ClientError> for Said {
    fn from(error: ClientError) -> Self {
        Self::NotYet(error)
    }
}
