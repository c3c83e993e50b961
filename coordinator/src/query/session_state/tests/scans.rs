//! What a scan below an exchange reads: no columns but those that are needed, and what it
//! is told of the rows that are.

use super::*;

fn predicate(scan: &str) -> Option<&str> {
    let (_, predicate) = scan.split_once(", predicate=")?;
    predicate.split(", ").next()
}

fn check_columns(plan: &str, table: &str, columns: &str) {
    let scan = scan_of(plan, table);
    assert!(scan.contains(&format!("projection=[{columns}],")), "not of {columns}: {scan}\n{plan}");
}

fn check_predicate(plan: &str, table: &str, expected: Option<&str>) {
    let predicate = predicate(scan_of(plan, table));
    // What a join tells of its keys while it runs comes behind it.
    let is_expected = match (predicate, expected) {
        (Some(predicate), Some(expected)) => predicate.starts_with(expected),
        (predicate, expected) => predicate == expected,
    };
    assert!(is_expected, "{predicate:?} and not {expected:?}\n{plan}");
}

#[tokio::test]
async fn a_scan_below_an_exchange_has_the_columns_and_the_filter_that_it_needs() {
    let grouped = plan("SELECT v, count(*) FROM t WHERE s > 3 GROUP BY v").await;
    assert_eq!(exchanges(&grouped), (1, 0), "{grouped}");
    check_columns(&grouped, "t", "v, s");
    check_predicate(&grouped, "t", Some("s@2 > 3"));

    let joined = plan("SELECT t.s FROM t JOIN u ON t.v = u.v WHERE u.s > 7 AND t.k < 5000").await;
    assert_eq!(exchanges(&joined), (2, 0), "{joined}");
    check_columns(&joined, "t", "k, v, s");
    check_predicate(&joined, "t", Some("k@0 < 5000"));
    check_columns(&joined, "u", "v, s");
    check_predicate(&joined, "u", Some("s@2 > 7"));

    // From above a projection and a subquery.
    let named = "SELECT w, count(*) FROM (SELECT v AS w, s AS x FROM t) AS named WHERE x = 3 GROUP BY w";
    let named = plan(named).await;
    check_predicate(&named, "t", Some("s@2 = 3"));

    let all = plan("SELECT v, sum(s) FROM t GROUP BY v").await;
    check_columns(&all, "t", "v, s");
    check_predicate(&all, "t", None);
}

#[tokio::test]
async fn what_filters_made_rows_is_not_told_to_scans() {
    let having = plan("SELECT v, sum(s) FROM t GROUP BY v HAVING sum(s) > 3").await;
    assert_eq!(exchanges(&having), (1, 0), "{having}");
    check_columns(&having, "t", "v, s");
    check_predicate(&having, "t", None);

    // A row without a partner has a NULL that is in no table.
    let outer = plan("SELECT t.k FROM t LEFT JOIN u ON t.v = u.v WHERE u.s IS NULL").await;
    assert_eq!(exchanges(&outer), (2, 0), "{outer}");
    check_columns(&outer, "t", "k, v");
    check_predicate(&outer, "t", None);
    check_columns(&outer, "u", "v, s");
    check_predicate(&outer, "u", None);

    let window = "SELECT v FROM (SELECT v, row_number() OVER (PARTITION BY v ORDER BY s) AS n FROM t) AS w WHERE n = 3";
    let window = plan(window).await;
    assert_eq!(exchanges(&window), (1, 0), "{window}");
    check_columns(&window, "t", "v, s");
    check_predicate(&window, "t", None);
}
