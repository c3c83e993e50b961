//! Backslash commands of whoever embeds the shell.

use futures::future::BoxFuture;

use crate::client::ClientError;

/// Shows text where results go, at once.
pub type Show<'a> = &'a mut (dyn FnMut(&str) + Send);

/// Adds backslash commands to a session.
pub trait BackslashHook: Send + Sync {
    /// Lines for `\?`, such as `("\\kill WORKER", "ends a worker")`. The word
    /// after each backslash is the name of a command.
    fn help(&self) -> Vec<(String, String)>;

    /// Names of its commands, as [`BackslashHook::help`] has them.
    fn commands(&self) -> Vec<String> {
        let name = |usage: &String| Some(usage.split_whitespace().next()?.strip_prefix('\\')?.to_owned());
        self.help().iter().filter_map(|(usage, _)| name(usage)).collect()
    }

    /// Words that may follow `\command` and the words that were typed after it,
    /// for completion.
    fn arguments(&self, _command: &str, _typed: &[&str]) -> Vec<String> {
        Vec::new()
    }

    /// Runs `\command argument`. None: there is no such command. An `Ok` is
    /// text to show; what takes its time shows more with `show` before. Ctrl-C
    /// drops the future.
    fn run<'a>(
        &'a self,
        command: &'a str,
        argument: &'a str,
        show: Show<'a>,
    ) -> BoxFuture<'a, Option<Result<String, ClientError>>>;
}

/// Adds none.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoHook;

impl BackslashHook for NoHook {
    fn help(&self) -> Vec<(String, String)> {
        Vec::new()
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
