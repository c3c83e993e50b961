//! Results as text: tables, CSV, TSV, JSON, vertical and Markdown, all
//! written as the rows come.
//!
//! Nothing here knows of the network or of what a person typed.

mod cell;
mod delimited;
mod format;
mod json;
pub mod quantity;
mod style;
mod table;
mod vertical;
mod width;

#[cfg(test)]
mod tests;

pub use cell::{Cell, Cells};
pub use format::{Expanded, Format, Layout, Renderer};
pub use style::Paint;
pub use width::{display_width, truncated};
