//! Which order is taken, and where none is.

use super::*;

/// A large table, one of middle size and a small one, in a chain: `facts`, `mids`, `few`.
fn chain(rows_of_few: Option<usize>) -> HashMap<String, Arc<Told>> {
    let row = || vec![vec![Some(1), Some(1)]];
    HashMap::from([
        ("facts".to_owned(), told(&[("fm", 100_000), ("fv", 10)], &row(), Some(10_000_000))),
        ("mids".to_owned(), told(&[("mk", 100_000), ("mf", 1_000)], &row(), Some(100_000))),
        ("few".to_owned(), told(&[("fk", 1_000), ("fw", 1_000)], &row(), rows_of_few)),
    ])
}

const WRITTEN: &str =
    "SELECT facts.fv, few.fw FROM facts JOIN mids ON fm = mk JOIN few ON mf = fk WHERE few.fw = 3";

async fn order_of(tables: &HashMap<String, Arc<Told>>, sql: &str) -> String {
    order(&optimised(&context(tables, true), sql).await)
}

#[tokio::test]
async fn what_leaves_out_most_is_joined_first() {
    let tables = chain(Some(1_000));
    assert_eq!(order_of(&tables, WRITTEN).await, "((few mids) facts)");
    let off = order(&optimised(&context(&tables, false), WRITTEN).await);
    assert_eq!(off, "((facts mids) few)");
}

#[tokio::test]
async fn columns_stay_as_they_were() {
    let sql = "SELECT * FROM facts JOIN mids ON fm = mk JOIN few ON mf = fk WHERE few.fw = 3";
    let tables = chain(Some(1_000));
    let (on, off) = (context(&tables, true), context(&tables, false));
    let (on, off) = (optimised(&on, sql).await, optimised(&off, sql).await);
    assert_eq!(order(&on), "((few mids) facts)");
    assert_eq!(on.schema().columns(), off.schema().columns());
}

#[tokio::test]
async fn an_order_that_was_taken_stays() {
    let tables = chain(Some(1_000));
    let context = context(&tables, true);
    let once = optimised(&context, WRITTEN).await;
    let again = context.state().optimize(&once).unwrap();
    assert_eq!(order(&once), order(&again));
}

#[tokio::test]
async fn nothing_moves_where_something_is_not_known() {
    let written = "((facts mids) few)";
    // A table without a number of rows.
    assert_eq!(order_of(&chain(None), WRITTEN).await, written);
    // Rows that are no table's.
    let tables = chain(Some(1_000));
    let sql = "SELECT fv FROM facts JOIN mids ON fm = mk JOIN (VALUES (1), (2)) AS few(fk) ON mf = fk";
    assert!(order_of(&tables, sql).await.starts_with("((facts mids)"), "{}", order_of(&tables, sql).await);
}

#[tokio::test]
async fn nothing_moves_where_it_could_mean_something_else() {
    let tables = chain(Some(1_000));
    for sql in [
        // Outer joins.
        "SELECT fv, fw FROM facts LEFT JOIN mids ON fm = mk LEFT JOIN few ON mf = fk",
        // What is computed anew for each row.
        "SELECT fv, r FROM facts JOIN mids ON fm = mk \
         JOIN (SELECT fk, fw, random() AS r FROM few) AS few ON mf = fk WHERE fw = 3",
        // What can be an error for a row that the join before would have left out.
        "SELECT fv, fw FROM facts JOIN mids ON fm = mk JOIN few ON mf = fk AND 10 / (fw - fv) > 1 WHERE fw = 3",
    ] {
        assert_eq!(order_of(&tables, sql).await, "((facts mids) few)", "{sql}");
    }
}

#[tokio::test]
async fn what_is_equal_to_the_same_is_equal() {
    let row = || vec![vec![Some(1), Some(1)]];
    let tables = HashMap::from([
        ("facts".to_owned(), told(&[("fk", 100_000), ("fv", 10)], &row(), Some(10_000_000))),
        ("left_few".to_owned(), told(&[("lk", 100_000), ("lv", 100)], &row(), Some(100_000))),
        ("right_few".to_owned(), told(&[("rk", 100_000), ("rv", 100)], &row(), Some(100_000))),
    ]);
    // No condition names both of the small ones.
    let sql =
        "SELECT fv FROM facts JOIN left_few ON fk = lk JOIN right_few ON fk = rk WHERE lv = 1 AND rv = 1";
    let order = order_of(&tables, sql).await;
    assert_eq!(together(&order, &["left_few", "right_few"]), ["left_few", "right_few"], "{order}");
}

/// Of `mids`, one in a hundred or fewer are asked for.
const FEW_KEYS: &str = "SELECT fk FROM few WHERE fw < 10";

#[tokio::test]
async fn a_semi_join_goes_down_to_the_leaf_that_it_asks_about() {
    let tables = chain(Some(1_000));
    for sql in [
        format!("SELECT fv FROM facts JOIN mids ON fm = mk WHERE mk IN ({FEW_KEYS})"),
        format!("SELECT fv FROM mids JOIN facts ON fm = mk WHERE EXISTS ({FEW_KEYS} AND fk = mk)"),
    ] {
        let on = order_of(&tables, &sql).await;
        // The subquery has a name of its own.
        assert!(on.contains("(mids __correlated_sq"), "{sql}: {on}");
        let off = order(&optimised(&context(&tables, false), &sql).await);
        assert!(off.contains(") __correlated_sq"), "{sql}: {off}");
    }
}

#[tokio::test]
async fn a_semi_join_stays_where_it_leaves_out_little_or_is_not_understood() {
    let tables = chain(Some(1_000));
    for sql in [
        // There may be as many partners as rows.
        "SELECT fv FROM facts JOIN mids ON fm = mk WHERE mf IN (SELECT fk FROM few)",
        // The joins leave less of it than it has.
        "SELECT fv FROM facts JOIN mids ON fm = mk WHERE mf = 3 AND fm IN (SELECT fk FROM few WHERE fw < 10)",
        // Its keys are of two leaves.
        "SELECT fv FROM facts JOIN mids ON fm = mk \
         WHERE EXISTS (SELECT 1 FROM few WHERE fk = mf AND fw = fv AND fw < 10)",
        // It has another condition.
        "SELECT fv FROM facts JOIN mids ON fm = mk \
         WHERE EXISTS (SELECT 1 FROM few WHERE fk = mk AND fw < mf AND fw < 10)",
        // What is computed may be an error.
        "SELECT fv FROM facts JOIN mids ON fm = mk WHERE 10 / mk IN (SELECT fk FROM few WHERE fw < 10)",
        // What is not in, and what is asked for beside other joins.
        "SELECT fv FROM facts JOIN mids ON fm = mk WHERE mk NOT IN (SELECT fk FROM few WHERE fw < 10)",
        "SELECT fv FROM facts LEFT JOIN mids ON fm = mk WHERE fv IN (SELECT fk FROM few WHERE fw < 10)",
    ] {
        let text = |plan: LogicalPlan| order(&plan);
        let on = text(optimised(&context(&tables, true), sql).await);
        assert_eq!(on, text(optimised(&context(&tables, false), sql).await), "{sql}");
    }
}

#[test]
fn an_order_must_be_clearly_better_by_one_guess_and_hardly_worse_by_any() {
    assert!(is_worth_it(&[0.7, 1.1]));
    assert!(!is_worth_it(&[0.71, 0.8]));
    assert!(!is_worth_it(&[0.1, 1.11]));
}

#[test]
fn the_rule_is_after_filters_went_down_and_before_columns_are_dropped() {
    let rules = state(true).optimizers().iter().map(|rule| rule.name().to_owned()).collect::<Vec<_>>();
    let place = |name: &str| rules.iter().position(|other| other == name).unwrap_or_else(|| panic!("{name}"));
    let this = place("shoal_join_order");
    assert!(place("eliminate_cross_join") < this && place("push_down_filter") < this, "{rules:?}");
    assert_eq!(this + 1, place(BEFORE), "{rules:?}");
}
