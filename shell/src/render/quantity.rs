//! Counts, sizes and times as people read them.

use std::time::Duration;

/// `1,234,567`.
pub fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 row`, `1,234 rows`.
pub fn rows(value: u64) -> String {
    format!("{} row{}", count(value), if value == 1 { "" } else { "s" })
}

/// `950`, `1.23 k`, `12.3 M`: three digits, for rates.
pub fn short(value: f64) -> String {
    scaled(value, 1000.0, &["", " k", " M", " G", " T"])
}

/// `950 B`, `1.23 kB`, `12.3 MB`: three digits, powers of 1000.
pub fn bytes(value: u64) -> String {
    scaled(value as f64, 1000.0, &[" B", " kB", " MB", " GB", " TB", " PB"])
}

fn scaled(value: f64, step: f64, units: &[&str]) -> String {
    let mut value = value.max(0.0);
    let mut unit = 0;
    // 999.5 would round to `1000`.
    while value >= 999.5 && unit + 1 < units.len() {
        value /= step;
        unit += 1;
    }
    let decimals = match value {
        _ if unit == 0 => 0,
        value if value < 9.995 => 2,
        value if value < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}{}", units[unit])
}

/// `0.8 ms`, `12 ms`, `1.23 s`, `2 min 3 s`, `1 h 2 min`.
pub fn duration(value: Duration) -> String {
    let seconds = value.as_secs_f64();
    let whole = value.as_secs();
    if seconds < 0.009_95 {
        format!("{:.1} ms", seconds * 1e3)
    } else if seconds < 0.999_5 {
        format!("{:.0} ms", seconds * 1e3)
    } else if seconds < 59.995 {
        format!("{seconds:.2} s")
    } else if whole < 3600 {
        format!("{} min {} s", whole / 60, whole % 60)
    } else {
        format!("{} h {} min", whole / 3600, whole % 3600 / 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_grouped_by_three() {
        for (value, expected) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(count(value), expected);
        }
        assert_eq!((rows(1), rows(0), rows(2000)), ("1 row".into(), "0 rows".into(), "2,000 rows".into()));
    }

    #[test]
    fn sizes_have_three_digits() {
        for (value, expected) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.00 kB"),
            (9_999, "10.0 kB"),
            (12_345, "12.3 kB"),
            (999_499, "999 kB"),
            (999_900, "1.00 MB"),
            (1_500_000_000, "1.50 GB"),
        ] {
            assert_eq!(bytes(value), expected);
        }
        assert_eq!(short(1_234_567.0), "1.23 M");
    }

    #[test]
    fn times_choose_their_unit() {
        for (millis, expected) in [
            (0, "0.0 ms"),
            (3, "3.0 ms"),
            (12, "12 ms"),
            (999, "999 ms"),
            (1_234, "1.23 s"),
            (61_000, "1 min 1 s"),
            (3_720_000, "1 h 2 min"),
        ] {
            assert_eq!(duration(Duration::from_millis(millis)), expected);
        }
    }
}
