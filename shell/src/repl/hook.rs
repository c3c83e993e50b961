//! Backslash commands of whoever embeds the shell.

use futures::future::BoxFuture;

/// Adds backslash commands to a session.
pub trait BackslashHook: Send + Sync {
    /// Lines for `\?`, such as `("\\kill WORKER", "ends a worker")`. The word
    /// after each backslash is the name of a command.
    fn help(&self) -> Vec<(String, String)>;

    /// Runs `\command argument`. None: there is no such command. An `Ok` is
    /// text to show, an `Err` the reason why it failed.
    fn run<'a>(
        &'a self,
        command: &'a str,
        argument: &'a str,
    ) -> BoxFuture<'a, Option<Result<String, String>>>;
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
    ) -> BoxFuture<'a, Option<Result<String, String>>> {
        Box::pin(std::future::ready(None))
    }
}
