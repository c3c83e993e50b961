//! The time of each answer over the run, with the faults behind, as SVG.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use plotters::prelude::*;
use plotters::style::FontTransform;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::faults::Fault;
use super::log::{Answered, Totals, Verdict};
use crate::report::COLOURS;

const SIZE: (u32, u32) = (1600, 640);
/// Of the answers of one kind that were asked for within one of so many parts
/// of the run, only the slowest is drawn.
const COLUMNS: f64 = 1000.0;

/// Draws the answers as points, those that are wrong or missing as crosses,
/// and each fault as a band with its name.
///
/// # Errors
/// When the file cannot be written.
pub(super) fn write(path: &Path, title: &str, totals: &Totals) -> Result<()> {
    let end_s = totals.answers.iter().map(|answer| answer.asked_s + answer.ms / 1e3).fold(1.0, f64::max);
    let top_ms = totals.worst_ms().max(10.0) * 2.0;
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..end_s, (1.0..top_ms).log_scale())?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_desc("asked after, s")
        .y_desc("answered within, ms")
        .y_label_formatter(&|ms| format!("{ms:.0}"))
        .draw()?;
    chart.draw_series(totals.faults.iter().map(|suffered| {
        let corners = [(suffered.from_s, 1.0), (suffered.to_s.unwrap_or(end_s), top_ms)];
        Rectangle::new(corners, colour_of(suffered.fault).mix(0.2).filled())
    }))?;
    let upright = ("sans-serif", 11).into_font().transform(FontTransform::Rotate90);
    chart.draw_series(totals.faults.iter().map(|suffered| {
        let style = upright.color(&colour_of(suffered.fault)).pos(Pos::new(HPos::Left, VPos::Bottom));
        let label = format!("{} {}", suffered.fault.name(), suffered.node);
        Text::new(label, (suffered.from_s, top_ms * 0.95), style)
    }))?;
    for (number, (kind, answers)) in drawn(&totals.answers, end_s).into_iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        chart
            .draw_series(answers.iter().map(|answer| Circle::new(place(answer), 2, colour.filled())))?
            .label(kind)
            .legend(move |(x, y)| Circle::new((x + 6, y), 3, colour.filled()));
    }
    let bad: Vec<_> = totals.answers.iter().filter(|answer| answer.verdict != Verdict::Right).collect();
    if !bad.is_empty() {
        chart
            .draw_series(bad.into_iter().map(|answer| Cross::new(place(answer), 6, RED.stroke_width(2))))?
            .label("wrong or failed")
            .legend(|(x, y)| Cross::new((x + 6, y), 4, RED.stroke_width(2)));
    }
    chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.3)).draw()?;
    area.present().with_context(|| format!("write {}", path.display()))?;
    Ok(())
}

fn place(answer: &Answered) -> (f64, f64) {
    (answer.asked_s, answer.ms.max(1.0))
}

/// What is drawn of the answers, by kind.
fn drawn(answers: &[Answered], end_s: f64) -> BTreeMap<&'static str, Vec<&Answered>> {
    let mut slowest: BTreeMap<(&'static str, u32), &Answered> = BTreeMap::new();
    for answer in answers {
        let column = (answer.asked_s / end_s * COLUMNS) as u32;
        let kept = slowest.entry((answer.kind, column)).or_insert(answer);
        if answer.ms > kept.ms {
            *kept = answer;
        }
    }
    let mut kinds: BTreeMap<&'static str, Vec<&Answered>> = BTreeMap::new();
    for ((kind, _), answer) in slowest {
        kinds.entry(kind).or_default().push(answer);
    }
    kinds
}

fn colour_of(fault: Fault) -> RGBColor {
    match fault {
        Fault::Kill => RGBColor(200, 30, 30),
        Fault::Freeze => RGBColor(30, 90, 200),
        Fault::Slow => RGBColor(150, 120, 0),
        Fault::Corrupt => RGBColor(130, 40, 160),
        Fault::Cut => RGBColor(20, 130, 60),
        Fault::CutIn | Fault::CutOut => RGBColor(20, 150, 130),
        Fault::DiskFull => RGBColor(90, 90, 90),
    }
}

#[cfg(test)]
mod tests {
    use super::super::log::Suffered;
    use super::*;

    #[test]
    fn the_chart_has_the_faults_and_what_was_wrong() {
        let answer = |asked_s: f64, ms: f64, verdict| Answered { kind: "scan", asked_s, ms, verdict };
        let totals = Totals {
            answers: vec![
                answer(1.0, 12.0, Verdict::Right),
                answer(1.001, 4000.0, Verdict::Right),
                answer(9.0, 3.0, Verdict::Wrong),
            ],
            faults: vec![Suffered { node: "worker-2".into(), fault: Fault::CutIn, from_s: 1.5, to_s: None }],
            on_struck: 0,
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chart.svg");
        write(&path, "chaos, seed 1", &totals).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("</svg>") && text.contains("cut in worker-2"), "{text}");
        assert!(text.contains("wrong or failed"), "{text}");
        // The two that were asked for at the same time are one point.
        let drawn = drawn(&totals.answers, 9.0);
        assert_eq!(drawn["scan"].iter().map(|answer| answer.ms).collect::<Vec<_>>(), [4000.0, 3.0]);
    }
}
