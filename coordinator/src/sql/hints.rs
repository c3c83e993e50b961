//! "Did you mean ...?": a misspelt name gets the nearest right one.

use shoal_proto::Failure;

/// How alike two names must be, from 0 to 1, for the one to be offered for
/// the other.
const ALIKE_MIN: f64 = 0.75;

/// The failure, with a hint where it says that a name is unknown and one of
/// `known` is near it. A hint that is there already is not doubled.
pub fn with_hint(mut failure: Failure, known: impl IntoIterator<Item = String>) -> Failure {
    let message = &failure.message;
    if message.contains("Did you mean") {
        return failure;
    }
    let Some(name) = unknown_name(message) else { return failure };
    let last = |name: &str| name.rsplit('.').next().unwrap_or(name).to_lowercase();
    let wanted = last(&name);
    let nearest = known
        .into_iter()
        .map(|known| (strsim::jaro_winkler(&wanted, &last(&known)), known))
        .filter(|(alike, known)| *alike >= ALIKE_MIN && last(known) != wanted)
        .max_by(|(left, _), (right, _)| left.total_cmp(right));
    failure.message = match nearest {
        Some((_, nearest)) => format!("{}. Did you mean `{nearest}`?", message.trim_end_matches('.')),
        None if message.contains("table") => {
            format!("{}. SHOW TABLES lists what there is", message.trim_end_matches('.'))
        }
        None => return failure,
    };
    failure
}

/// The failure, with the nearest function where one is unknown.
pub fn with_function_hint<'a>(mut failure: Failure, known: impl IntoIterator<Item = &'a str>) -> Failure {
    let Some((_, rest)) = failure.message.split_once("Invalid function '") else { return failure };
    let Some((name, _)) = rest.split_once('\'') else { return failure };
    // Two swapped letters are one mistake.
    let nearest = known
        .into_iter()
        .filter(|known| *known != shoal_data::functions::SINGLE_VALUE)
        .map(|known| (strsim::damerau_levenshtein(&name.to_lowercase(), known), known))
        .min();
    failure.message = match nearest {
        Some((mistakes, nearest)) if mistakes <= 1 + name.len() / 4 => {
            format!("function '{name}' does not exist. Did you mean `{nearest}`?")
        }
        _ => format!("function '{name}' does not exist"),
    };
    failure
}

/// The name that a message of DataFusion's says it does not know.
fn unknown_name(message: &str) -> Option<String> {
    if let Some(rest) = message.split("table '").nth(1) {
        let (name, after) = rest.split_once('\'')?;
        return after.trim_start().starts_with("not found").then(|| name.to_owned());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_proto::ErrorCode;

    fn hint(message: &str, known: &[&str]) -> String {
        let known = known.iter().map(|name| (*name).to_owned());
        with_hint(Failure::new(ErrorCode::NotFound, message), known).message
    }

    #[test]
    fn a_misspelt_function_gets_the_nearest_one() {
        let failure = Failure::new(ErrorCode::Invalid, "Invalid function 'cuont'.\nDid you mean 'cot'?");
        let message = with_function_hint(failure, ["cot", "count", "sum"]).message;
        assert!(message.ends_with("Did you mean `count`?"), "{message}");
    }

    #[test]
    fn a_misspelt_table_gets_the_nearest_one() {
        let message = "Error during planning: table 'shoal.public.lineitm' not found";
        let known = ["public.lineitem", "public.orders"];
        assert!(hint(message, &known).ends_with("Did you mean `public.lineitem`?"));
        assert!(hint(message, &["public.zebra"]).contains("SHOW TABLES"));
        assert_eq!(hint("division by zero", &known), "division by zero");
    }
}
