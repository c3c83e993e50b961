//! Where the time of a query went, as a table: written for people, and read again
//! by who wants the numbers.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::work::{Moved, Scanned, Work};
use crate::query::timeline::Elapsed;

/// The first line of the table.
const TITLE: &str = "where the time went:";
/// The names of its columns.
const COLUMNS: [&str; 7] = ["part", "ms", "counted", "rows", "bytes", "encode_ms", "decode_ms"];
/// By the clock.
const ELAPSED: &str = "elapsed";
/// Over all tasks and threads.
const SUMMED: &str = "summed";
/// In place of a number that there is none of.
const NONE: &str = "-";
/// What the words mean, below the table.
const LEGEND: &str = "elapsed: by the clock; plan, dispatch, wait and result add up to total.\n\
                      summed: work of all threads of all tasks added up, most of it done during wait.\n";

/// The parts of a query's time. As text it has a line for each, with times in
/// milliseconds to the microsecond.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimeSplit {
    /// By the clock.
    pub elapsed: Elapsed,
    /// Over all tasks and threads.
    pub work: Work,
}

/// A line of the table.
struct Line {
    part: &'static str,
    time: Option<Duration>,
    counted: &'static str,
    rows: Option<u64>,
    bytes: Option<u64>,
    encode: Option<Duration>,
    decode: Option<Duration>,
}

impl Line {
    fn elapsed(part: &'static str, time: Duration) -> Self {
        Self { time: Some(time), counted: ELAPSED, ..Self::summed(part, None) }
    }

    fn summed(part: &'static str, time: Option<Duration>) -> Self {
        Self { part, time, counted: SUMMED, rows: None, bytes: None, encode: None, decode: None }
    }

    fn moving(self, moved: Option<Moved>) -> Self {
        Self {
            rows: moved.map(|moved| moved.rows),
            bytes: moved.map(|moved| moved.bytes),
            encode: moved.map(|moved| moved.encode),
            decode: moved.map(|moved| moved.decode),
            ..self
        }
    }
}

impl TimeSplit {
    fn lines(&self) -> [Line; 8] {
        let Self { elapsed, work } = self;
        let scanned = work.scan;
        let exchange_time = work.exchange.map(|moved| moved.encode + moved.decode);
        [
            Line::elapsed("plan", elapsed.plan),
            Line::elapsed("dispatch", elapsed.dispatch),
            Line {
                rows: Some(scanned.rows),
                bytes: Some(scanned.bytes),
                ..Line::summed("scan", Some(scanned.time))
            },
            Line::summed("compute", Some(work.compute)),
            Line::summed("exchange", exchange_time).moving(work.exchange),
            Line::elapsed("wait", elapsed.wait),
            Line::elapsed("result", elapsed.result).moving(work.collected),
            Line::elapsed("total", elapsed.total),
        ]
    }
}

impl fmt::Display for TimeSplit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{TITLE}")?;
        let mut row = |cells: [&str; 7]| {
            let [part, time, counted, rows, bytes, encode, decode] = cells;
            writeln!(f, "{part:<10}{time:>12}  {counted:<8}{rows:>16}{bytes:>18}{encode:>12}{decode:>12}")
        };
        row(COLUMNS)?;
        for line in self.lines() {
            row([
                line.part,
                &cell(line.time, millis),
                line.counted,
                &cell(line.rows, count),
                &cell(line.bytes, count),
                &cell(line.encode, millis),
                &cell(line.decode, millis),
            ])?;
        }
        f.write_str(LEGEND)
    }
}

impl FromStr for TimeSplit {
    type Err = String;

    /// Reads the table out of what EXPLAIN ANALYZE says. Nothing of it may be missing
    /// or in another form.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut lines = text.lines().skip_while(|line| *line != TITLE).skip(1);
        let columns = lines.next().ok_or("there is no table of where the time went")?;
        if !columns.split_whitespace().eq(COLUMNS) {
            return Err(format!("`{columns}` are not the columns {}", COLUMNS.join(", ")));
        }
        let mut split = Self::default();
        // Says for each part how its time is counted.
        for Line { part, counted, .. } in Self::default().lines() {
            let line = lines.next().ok_or_else(|| format!("there is no line for {part}"))?;
            let refused = || format!("`{line}` is no line for {part}");
            let cells: Vec<&str> = line.split_whitespace().collect();
            let [first, time, how, rows, bytes, encode, decode] = cells[..] else { return Err(refused()) };
            if (first, how) != (part, counted) {
                return Err(refused());
            }
            let time = parsed(time, parse_millis).ok_or_else(refused)?;
            let (rows, bytes) =
                parsed(rows, parse_count).zip(parsed(bytes, parse_count)).ok_or_else(refused)?;
            let (encode, decode) =
                parsed(encode, parse_millis).zip(parsed(decode, parse_millis)).ok_or_else(refused)?;
            let moved = match (rows, bytes, encode, decode) {
                (Some(rows), Some(bytes), Some(encode), Some(decode)) => {
                    Some(Moved { rows, bytes, encode, decode })
                }
                _ => None,
            };
            let must_be = |time: Option<Duration>| time.ok_or_else(refused);
            match part {
                "plan" => split.elapsed.plan = must_be(time)?,
                "dispatch" => split.elapsed.dispatch = must_be(time)?,
                "scan" => {
                    let (rows, bytes) = rows.zip(bytes).ok_or_else(refused)?;
                    split.work.scan = Scanned { time: must_be(time)?, rows, bytes };
                }
                "compute" => split.work.compute = must_be(time)?,
                "exchange" => split.work.exchange = moved,
                "wait" => split.elapsed.wait = must_be(time)?,
                "result" => {
                    split.elapsed.result = must_be(time)?;
                    split.work.collected = moved;
                }
                _ => split.elapsed.total = must_be(time)?,
            }
        }
        Ok(split)
    }
}

fn cell<T>(value: Option<T>, text: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| NONE.to_owned(), text)
}

/// A cell's value, if any; no outer value where it has another form.
fn parsed<T>(cell: &str, parse: impl FnOnce(&str) -> Option<T>) -> Option<Option<T>> {
    if cell == NONE { Some(None) } else { parse(cell).map(Some) }
}

fn millis(time: Duration) -> String {
    let micros = time.as_micros();
    format!("{}.{:03}", micros / 1000, micros % 1000)
}

fn parse_millis(text: &str) -> Option<Duration> {
    let (whole, rest) = text.split_once('.').filter(|(_, rest)| rest.len() == 3)?;
    let micros = digits(whole)?.checked_mul(1000)?.checked_add(digits(rest)?)?;
    Some(Duration::from_micros(micros))
}

/// A number with its thousands apart.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn parse_count(text: &str) -> Option<u64> {
    digits(&text.replace(',', "")).filter(|number| count(*number) == text)
}

fn digits(text: &str) -> Option<u64> {
    // Not `+1`, which would be a number, too.
    text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn us(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    fn example() -> TimeSplit {
        let elapsed = Elapsed {
            total: us(43_880),
            plan: us(2_131),
            dispatch: us(1_310),
            wait: us(40_039),
            result: us(400),
        };
        let exchange = Moved { rows: 150_000, bytes: 2_100_000, encode: us(2_010), decode: us(1_400) };
        let collected = Moved { rows: 10, bytes: 1_200, encode: us(40), decode: us(31) };
        let scan = Scanned { time: us(34_020), rows: 600_572, bytes: 12_345_678 };
        let work =
            Work { scan, compute: us(1_051_200), exchange: Some(exchange), collected: Some(collected) };
        TimeSplit { elapsed, work }
    }

    const TABLE: &str = "\
where the time went:
part                ms  counted             rows             bytes   encode_ms   decode_ms
plan             2.131  elapsed                -                 -           -           -
dispatch         1.310  elapsed                -                 -           -           -
scan            34.020  summed           600,572        12,345,678           -           -
compute       1051.200  summed                 -                 -           -           -
exchange         3.410  summed           150,000         2,100,000       2.010       1.400
wait            40.039  elapsed                -                 -           -           -
result           0.400  elapsed               10             1,200       0.040       0.031
total           43.880  elapsed                -                 -           -           -
elapsed: by the clock; plan, dispatch, wait and result add up to total.
summed: work of all threads of all tasks added up, most of it done during wait.
";

    #[test]
    fn the_table_is_read_as_it_is_written() {
        let mut split = example();
        assert_eq!(split.to_string(), TABLE);
        let text = format!("┌─ Result ── on the coordinator\n└─\n{TABLE}attempts: 1\n");
        assert_eq!(text.parse(), Ok(split));
        (split.work.exchange, split.work.collected) = (None, None);
        assert_eq!(split.to_string().parse(), Ok(split));
        let none = TimeSplit::default();
        assert_eq!(none.to_string().parse(), Ok(none));
    }

    #[test]
    fn a_table_in_another_form_is_refused() {
        let refused = |text: &str| text.parse::<TimeSplit>().unwrap_err();
        assert_eq!(refused("attempts: 1\n"), "there is no table of where the time went");
        for (from, to) in [
            ("decode_ms", "decode"),
            ("scan ", "scans"),
            ("summed           600,572", "elapsed          600,572"),
            ("34.020", "34.02"),
            ("34.020", "-"),
            ("34.020", "+34.020"),
            ("600,572", "600572"),
            ("600,572", "-"),
            ("total           43.880  elapsed                -", "total           43.880  elapsed"),
        ] {
            assert!(TABLE.contains(from), "{from}");
            let why = refused(&TABLE.replace(from, to));
            assert!(why.starts_with('`'), "{from} as {to}: {why}");
        }
        let cut = TABLE.split("total").next().unwrap_or_default();
        assert_eq!(refused(cut), "there is no line for total");
    }

    #[test]
    fn amounts_read_well() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
    }
}
