//! `--split`: where the time of each query goes, as a table in Markdown. Each query
//! is run once more for it, outside of what is timed.

use std::time::Duration;

use shoal_coordinator::query::TimeSplit;

use super::{Lane, ORACLE};
use crate::report::{median, say};

/// Columns of Shoal's, in milliseconds where nothing else is said.
const COLUMNS: &[&str] = &[
    "timed",
    "plan",
    "dispatch",
    "scan",
    "compute",
    "exchange rows",
    "exchange MB",
    "encode",
    "decode",
    "wait",
    "result",
    "total",
    "result rows",
];
/// Columns of single-process DataFusion's.
const PLAIN_COLUMNS: &[&str] = &["timed", "plan", "scan", "compute", "total"];

/// Shows the table; beside Shoal single-process DataFusion where `is_plain_wanted`. What
/// fails is a problem of its engine, and leaves its cells empty.
pub(super) async fn show(lanes: &mut [Lane], queries: &[usize], is_plain_wanted: bool) {
    say("where the time goes, in ms: one EXPLAIN ANALYZE of each query after the timed runs.");
    say("plan, dispatch, wait and result are by the clock and add up to total; scan, compute, encode and");
    say(
        "decode are work of all threads of all tasks added up. timed: the median of the timed runs, with the client.",
    );
    say("");
    for line in heading(is_plain_wanted) {
        say(line);
    }
    for (index, number) in queries.iter().enumerate() {
        let mut cells = vec![format!("q{number}")];
        for (name, columns) in wanted(is_plain_wanted) {
            let split = match lanes.iter_mut().find(|lane| lane.peer.name() == name) {
                Some(lane) => split(lane, index, *number).await,
                None => None,
            };
            cells.extend(match (split, name) {
                (Some((timed_ms, split)), ORACLE) => plain_cells(timed_ms, &split),
                (Some((timed_ms, split)), _) => cells_of(timed_ms, &split),
                (None, _) => vec![String::new(); columns.len()],
            });
        }
        say(row(&cells));
    }
    say("");
}

/// The engines of the table, and their columns.
fn wanted(is_plain_wanted: bool) -> impl Iterator<Item = (&'static str, &'static [&'static str])> {
    let plain = is_plain_wanted.then_some((ORACLE, PLAIN_COLUMNS));
    std::iter::once(("shoal", COLUMNS)).chain(plain)
}

/// The time of the timed runs, and where it goes.
async fn split(lane: &mut Lane, index: usize, number: usize) -> Option<(f64, TimeSplit)> {
    let sql = shoal_data::sample::query(number)?;
    match lane.peer.split(sql).await {
        Ok(split) => Some((median(&lane.seconds[index]) * 1e3, split)),
        Err(error) => {
            lane.problems.push(format!("where the time of q{number} goes: {error:#}"));
            None
        }
    }
}

fn heading(is_plain_wanted: bool) -> [String; 2] {
    let mut names = vec!["query".to_owned()];
    for (engine, columns) in wanted(is_plain_wanted) {
        let of = if engine == ORACLE { "datafusion: " } else { "" };
        names.extend(columns.iter().map(|column| format!("{of}{column}")));
    }
    let rule = vec!["---:".to_owned(); names.len()];
    [row(&names), row(&rule)]
}

fn row(cells: &[String]) -> String {
    format!("| {} |", cells.join(" | "))
}

fn cells_of(timed_ms: f64, split: &TimeSplit) -> Vec<String> {
    let TimeSplit { elapsed, work } = split;
    let exchange = work.exchange.unwrap_or_default();
    vec![
        format!("{timed_ms:.1}"),
        ms(elapsed.plan),
        ms(elapsed.dispatch),
        ms(work.scan.time),
        ms(work.compute),
        exchange.rows.to_string(),
        format!("{:.1}", exchange.bytes as f64 / 1e6),
        ms(exchange.encode),
        ms(exchange.decode),
        ms(elapsed.wait),
        ms(elapsed.result),
        ms(elapsed.total),
        work.collected.unwrap_or_default().rows.to_string(),
    ]
}

fn plain_cells(timed_ms: f64, split: &TimeSplit) -> Vec<String> {
    let TimeSplit { elapsed, work } = split;
    let timed = format!("{timed_ms:.1}");
    vec![timed, ms(elapsed.plan), ms(work.scan.time), ms(work.compute), ms(elapsed.total)]
}

fn ms(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use shoal_coordinator::query::{Elapsed, Moved, Scanned, Work};

    use super::*;

    #[test]
    fn a_row_has_a_cell_for_each_column() {
        let millis = Duration::from_millis;
        let elapsed = Elapsed {
            total: millis(44),
            plan: millis(2),
            dispatch: millis(1),
            wait: millis(40),
            result: millis(1),
        };
        let work = Work {
            scan: Scanned { time: millis(34), rows: 6, bytes: 7 },
            compute: millis(51),
            exchange: Some(Moved { rows: 1500, bytes: 2_100_000, encode: millis(2), decode: millis(3) }),
            collected: Some(Moved { rows: 10, ..Moved::default() }),
        };
        let split = TimeSplit { elapsed, work };
        let cells = cells_of(45.26, &split);
        assert_eq!(
            row(&cells),
            "| 45.3 | 2.0 | 1.0 | 34.0 | 51.0 | 1500 | 2.1 | 2.0 | 3.0 | 40.0 | 1.0 | 44.0 | 10 |"
        );
        assert_eq!(cells.len(), COLUMNS.len());
        let plain = plain_cells(45.26, &split);
        assert_eq!(row(&plain), "| 45.3 | 2.0 | 34.0 | 51.0 | 44.0 |");
        assert_eq!(plain.len(), PLAIN_COLUMNS.len());
        for is_plain_wanted in [false, true] {
            let cells = 1 + COLUMNS.len() + if is_plain_wanted { PLAIN_COLUMNS.len() } else { 0 };
            for line in heading(is_plain_wanted) {
                assert_eq!(line.matches('|').count(), cells + 1, "{line}");
            }
        }
    }
}
