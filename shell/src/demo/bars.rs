//! Progress bars of loading, one for each table. On anything but a terminal
//! they are not drawn.

use std::io::{IsTerminal, stderr};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often a bar is drawn.
const DRAWS_PER_SECOND: u8 = 12;

/// The bars of one loading.
pub(super) struct Bars(MultiProgress);

impl Bars {
    pub(super) fn new() -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let target = if stderr().is_terminal() && !plain {
            ProgressDrawTarget::stderr_with_hz(DRAWS_PER_SECOND)
        } else {
            ProgressDrawTarget::hidden()
        };
        Self(MultiProgress::with_draw_target(target))
    }

    /// A bar for a table; without a total it counts only.
    pub(super) fn table(&self, name: &str, rows: Option<u64>) -> ProgressBar {
        let (bar, template) = match rows {
            Some(rows) => {
                (ProgressBar::new(rows), "  {prefix:<12} {bar:30} {human_pos:>11} rows  {per_sec:>15}  {msg}")
            }
            None => (
                ProgressBar::no_length(),
                "  {prefix:<12} {spinner} {human_pos:>11} rows  {per_sec:>15}  {msg}",
            ),
        };
        // The templates are constants; a wrong one would fall back to the default.
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = self.0.add(bar);
        bar.set_style(style.progress_chars("━━╌"));
        bar.set_prefix(name.to_owned());
        bar
    }

    /// Takes all bars from the screen.
    pub(super) fn clear(&self) {
        // Only a terminal that went away is in the way of this.
        let _gone = self.0.clear();
    }
}
