//! What a benchmark shows: lines on the screen, JSON and a chart on disk, and
//! the last line for scripts.

use std::cmp::Ordering;
use std::fmt::Display;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use plotters::prelude::*;
use serde::Serialize;

/// Shows a line on standard output.
pub fn say(line: impl Display) {
    // Whoever reads it may have had enough.
    let _closed = writeln!(std::io::stdout().lock(), "{line}");
}

/// A benchmark's last line: `name key=value ...`.
#[derive(Debug)]
pub struct Summary {
    line: String,
}

impl Summary {
    /// Begins with the benchmark's name.
    pub fn new(name: &str) -> Self {
        Self { line: name.to_owned() }
    }

    /// Adds a value as it is written.
    pub fn with(mut self, key: &str, value: impl Display) -> Self {
        self.line.push_str(&format!(" {key}={value}"));
        self
    }

    /// Adds a number with two digits behind the point.
    pub fn with_number(self, key: &str, value: f64) -> Self {
        self.with(key, format!("{value:.2}"))
    }

    /// Adds numbers with so many digits behind the point, with commas between.
    pub fn with_list(self, key: &str, values: impl IntoIterator<Item = f64>, digits: usize) -> Self {
        let values: Vec<String> = values.into_iter().map(|value| format!("{value:.digits$}")).collect();
        self.with(key, values.join(","))
    }

    /// Shows it.
    pub fn print(&self) {
        say(&self.line);
    }

    /// The line.
    pub fn as_str(&self) -> &str {
        &self.line
    }
}

/// A number of a run, and what it may be at most.
#[derive(Clone, Copy, Debug)]
pub struct Bar {
    /// As the last line names it.
    pub key: &'static str,
    /// What was measured.
    pub measured: f64,
    /// None: whatever it is.
    pub max: Option<f64>,
}

impl Bar {
    /// A bar where there is a `max`.
    pub fn new(key: &'static str, measured: f64, max: Option<f64>) -> Self {
        Self { key, measured, max }
    }
}

/// A line for each bar that was missed. What is not a number misses any.
pub fn missed(bars: &[Bar]) -> Vec<String> {
    let lines = bars.iter().filter_map(|bar| {
        let max = bar.max.filter(|max| bar.measured.partial_cmp(max).is_none_or(Ordering::is_gt))?;
        Some(format!("missed: {} is {:.3}, and may be {max} at most", bar.key, bar.measured))
    });
    lines.collect()
}

/// A line where a number is less than it may be. What is not a number is less.
pub fn at_least(key: &str, measured: f64, min: f64) -> Option<String> {
    let is_reached = measured.partial_cmp(&min).is_some_and(Ordering::is_ge);
    (!is_reached).then(|| format!("missed: {key} is {measured:.3}, and must be {min} at least"))
}

/// Writes a report as JSON.
///
/// # Errors
/// When the file cannot be written.
pub fn write_json(path: &Path, report: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(report)?;
    std::fs::write(path, text + "\n").with_context(|| format!("write {}", path.display()))
}

/// The middle value; the mean of the two in the middle of an even number.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => sorted[odd / 2],
        even => (sorted[even / 2 - 1] + sorted[even / 2]) / 2.0,
    }
}

/// The value below which `share` (0 to 1) of the values lie.
pub fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    let index = ((sorted.len() as f64 * share).ceil() as usize).saturating_sub(1).min(last);
    sorted.get(index).copied().unwrap_or(f64::NAN)
}

/// One series of a bar chart.
#[derive(Clone, Debug)]
pub struct Series {
    /// In the legend.
    pub name: String,
    /// One value for each label.
    pub values: Vec<f64>,
}

/// Colours of series, told apart also by those who see few.
pub(crate) const COLOURS: [RGBColor; 5] = [
    RGBColor(0, 107, 164),
    RGBColor(255, 128, 14),
    RGBColor(171, 171, 171),
    RGBColor(89, 89, 89),
    RGBColor(95, 158, 209),
];

/// Draws grouped bars as SVG.
///
/// # Errors
/// When the file cannot be written.
pub fn write_bars(path: &Path, title: &str, unit: &str, labels: &[String], series: &[Series]) -> Result<()> {
    let values = series.iter().flat_map(|one| &one.values).copied().filter(|value| value.is_finite());
    let top = values.fold(0.0, f64::max).max(f64::MIN_POSITIVE) * 1.05;
    let area = SVGBackend::new(path, (1200, 480)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(32)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..labels.len() as f64, 0.0..top)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(labels.len() * 2)
        .x_label_formatter(&|x| {
            // A label stands at the middle of its group.
            let is_middle = (x.fract() - 0.5).abs() < 1e-6;
            if is_middle { labels.get(*x as usize).cloned().unwrap_or_default() } else { String::new() }
        })
        .y_desc(unit)
        .draw()?;
    let width = 0.8 / series.len().max(1) as f64;
    for (index, one) in series.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let bars =
            one.values.iter().enumerate().filter(|(_, value)| value.is_finite()).map(|(group, value)| {
                let left = group as f64 + 0.1 + index as f64 * width;
                Rectangle::new([(left, 0.0), (left + width, *value)], colour.filled())
            });
        chart
            .draw_series(bars)?
            .label(one.name.clone())
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], colour.filled()));
    }
    chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.3)).draw()?;
    area.present().with_context(|| format!("write {}", path.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_percentiles() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&hundred, 0.5), 50.0);
        assert_eq!(percentile(&hundred, 0.99), 99.0);
        assert_eq!(percentile(&[7.0], 0.99), 7.0);
    }

    #[test]
    fn the_last_line_is_made_of_keys_and_values() {
        let summary = Summary::new("tpch").with("right", "22/22").with_number("ratio_datafusion", 1.456);
        assert_eq!(summary.as_str(), "tpch right=22/22 ratio_datafusion=1.46");
        let summary = Summary::new("load").with_list("rate", [1.25, 200.0], 0).with_list("none", [], 1);
        assert_eq!(summary.as_str(), "load rate=1,200 none=");
    }

    #[test]
    fn a_bar_is_missed_by_what_is_beyond_it_or_no_number() {
        let none = Vec::<String>::new();
        let missed = |measured, max| missed(&[Bar::new("ratio", measured, max)]);
        assert_eq!(missed(1.5, Some(1.5)), none);
        assert_eq!(missed(1.501, Some(1.5)), ["missed: ratio is 1.501, and may be 1.5 at most"]);
        assert_eq!(missed(f64::NAN, Some(1.5)), ["missed: ratio is NaN, and may be 1.5 at most"]);
        assert_eq!(missed(1.0, Some(f64::NAN)).len(), 1);
        for measured in [1.5, f64::MAX, f64::NAN] {
            assert_eq!(missed(measured, None), none);
        }
    }

    #[test]
    fn a_bar_from_below_is_missed_by_what_is_less_or_no_number() {
        assert_eq!(at_least("ratio", 0.6, 0.6), None);
        let line = at_least("ratio", 0.599, 0.6);
        assert_eq!(line.as_deref(), Some("missed: ratio is 0.599, and must be 0.6 at least"));
        assert!(at_least("ratio", f64::NAN, 0.6).is_some() && at_least("ratio", 1.0, f64::NAN).is_some());
    }

    #[test]
    fn a_chart_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chart.svg");
        let labels: Vec<String> = (1..=22).map(|query| format!("q{query}")).collect();
        let series = [Series { name: "shoal".into(), values: vec![f64::NAN; 22] }];
        write_bars(&path, "TPC-H", "ms", &labels, &series).unwrap();
        assert!(std::fs::read_to_string(&path).unwrap().contains("</svg>"));
    }
}
