//! The log: to standard error, as text or JSON.

use std::io::{IsTerminal, stderr};

use tracing_subscriber::EnvFilter;

use super::{LogFormat, LogSettings};

/// Starts logging. A second call changes nothing.
pub fn start_logging(settings: &LogSettings) {
    // openraft tells each step at the levels at which we tell what matters to an
    // operator.
    let filter = EnvFilter::new(format!("openraft=error,{}", settings.filter.0));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr);
    // A failure means that a log is there already.
    let _there = match settings.format {
        LogFormat::Text => {
            let colour =
                stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            builder.with_ansi(colour).try_init()
        }
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}
