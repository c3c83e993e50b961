//! The predicted speed-up against the number of workers, as SVG.

use std::path::Path;

use anyhow::{Context, Result};
use plotters::prelude::*;

use super::cost::Step;
use crate::report::COLOURS;

const SIZE: (u32, u32) = (800, 600);

/// One line of the chart: a point for each number of workers.
struct Line {
    name: String,
    points: Vec<(f64, f64)>,
}

/// Draws the speed-up of all queries together, of the one that gains most and the
/// one that gains least, and what would be ideal.
///
/// # Errors
/// When the file cannot be written.
pub(super) fn write(path: &Path, title: &str, steps: &[Step]) -> Result<()> {
    let lines = lines(steps);
    let points = || lines.iter().flat_map(|line| &line.points).filter(|(_, speedup)| speedup.is_finite());
    let right = points().map(|(workers, _)| *workers).fold(2.0, f64::max) * 1.05;
    let top = points().map(|(_, speedup)| *speedup).fold(2.0, f64::max) * 1.05;
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..right, 0.0..top)?;
    chart.configure_mesh().x_desc("workers").y_desc("predicted speed-up").draw()?;
    for (number, line) in lines.iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        let drawn: Vec<(f64, f64)> =
            line.points.iter().copied().filter(|(_, speedup)| speedup.is_finite()).collect();
        chart.draw_series(drawn.iter().map(|point| Circle::new(*point, 3, colour.filled())))?;
        chart
            .draw_series(std::iter::once(PathElement::<(f64, f64)>::new(drawn, colour.stroke_width(2))))?
            .label(line.name.clone())
            .legend(move |(x, y)| Rectangle::new([(x, y - 2), (x + 12, y + 2)], colour.filled()));
    }
    // Lines are below the ideal one: there is room above it.
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    area.present().with_context(|| format!("write {}", path.display()))?;
    Ok(())
}

fn lines(steps: &[Step]) -> Vec<Line> {
    let (Some(first), Some(last)) = (steps.first(), steps.last()) else { return Vec::new() };
    let line = |name: String, speedup: &dyn Fn(&Step) -> f64| Line {
        name,
        points: steps.iter().map(|step| (step.workers as f64, speedup(step))).collect(),
    };
    let mut lines = vec![
        line("all queries".to_owned(), &|step: &Step| step.speedup(first)),
        line("ideal".to_owned(), &|step: &Step| step.workers as f64 / first.workers as f64),
    ];
    let mut places: Vec<usize> = (0..first.queries.len()).collect();
    places.sort_by(|a, b| last.speedup_of(first, *b).total_cmp(&last.speedup_of(first, *a)));
    if let [most, .., least] = places.as_slice() {
        for (what, place) in [("most", *most), ("least", *least)] {
            let name = format!("q{}, which gains {what}", first.queries[place].query);
            lines.push(line(name, &|step: &Step| step.speedup_of(first, place)));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::super::cost::{Moved, QueryCost, Run};
    use super::*;

    /// Queries of which each takes so many seconds.
    fn step(workers: usize, seconds: [f64; 3]) -> Step {
        let cost = |(place, seconds): (usize, f64)| {
            let run = Run { wall_s: seconds, coordinator_s: 0.0, workers_s: vec![seconds] };
            QueryCost::new(place + 1, &[run], Moved { bytes: 0, most_bytes: 0 }, 1e10)
        };
        Step::new(workers, 3, seconds.into_iter().enumerate().map(cost).collect())
    }

    #[test]
    fn the_chart_has_all_queries_and_those_that_gain_most_and_least() {
        let steps = [step(1, [4.0, 4.0, 8.0]), step(4, [3.0, 1.0, 4.0])];
        let lines = lines(&steps);
        let drawn: Vec<_> = lines.iter().map(|line| (line.name.as_str(), line.points.as_slice())).collect();
        let expected: [(&str, &[(f64, f64)]); 4] = [
            ("all queries", &[(1.0, 1.0), (4.0, 2.0)]),
            ("ideal", &[(1.0, 1.0), (4.0, 4.0)]),
            ("q2, which gains most", &[(1.0, 1.0), (4.0, 4.0)]),
            ("q1, which gains least", &[(1.0, 1.0), (4.0, 4.0 / 3.0)]),
        ];
        assert_eq!(drawn, expected);

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("growth.svg");
        write(&path, "growth, scale 1", &steps).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("</svg>") && text.contains("q2, which gains most"), "{text}");
    }
}
