//! Sizes as people write them, the same in every flag and every `SET`.

const UNITS: [(&str, u64); 8] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

/// The bytes of a size such as `4GiB`, `512 MiB`, `1.5GB` or `2_000_000`.
///
/// # Errors
/// A sentence that says what would be right, to be put behind what was
/// written.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let wrong = || "not a size; write it like 4GiB, 512MiB, 1.5GB or a number of bytes".to_owned();
    let too_many = || "more bytes than can be counted".to_owned();
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.' && c != '_').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim();
    let factor = match unit {
        "" | "B" | "b" => 1,
        // As in other tools that take memory limits, a bare letter is binary.
        "K" | "k" => 1 << 10,
        "M" | "m" => 1 << 20,
        "G" | "g" => 1 << 30,
        "T" | "t" => 1 << 40,
        _ => {
            let known = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit));
            known.map(|(_, factor)| *factor).ok_or_else(wrong)?
        }
    };
    let number = number.replace('_', "");
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor).ok_or_else(too_many);
    }
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let bytes = (number * factor as f64).round();
    if bytes >= u64::MAX as f64 { Err(too_many()) } else { Ok(bytes as u64) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("512MiB", 512 << 20),
            ("4 GiB", 4 << 30),
            ("1048576", 1 << 20),
            ("1.5k", 1536),
            ("4GB", 4_000_000_000),
            ("2_000", 2_000),
            ("0", 0),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "lots", "5 parsecs", "-1", "1e400GiB", "99999999999TiB", "1.2.3"] {
            assert!(parse_bytes(text).is_err(), "{text} was taken");
        }
    }
}
