//! Whatever tables say that they have, answers are the same with the rule and without it.

use proptest::prelude::*;

use super::*;

const COLUMNS: [&str; 3] = ["a", "b", "c"];

/// A table of few rows with few values and NULLs, and what it says that it has.
#[derive(Clone, Debug)]
struct Made {
    rows: Vec<Vec<Option<i64>>>,
    told: usize,
}

fn made() -> impl Strategy<Value = Made> {
    let value = prop_oneof![1 => Just(None), 4 => (0_i64..4).prop_map(Some)];
    let rows = prop::collection::vec(prop::collection::vec(value, COLUMNS.len()), 1..9);
    (rows, 3_u32..8).prop_map(|(rows, zeros)| Made { rows, told: 10_usize.pow(zeros) })
}

/// Two columns of tables that are joined, by number.
type Pair = ((usize, usize), (usize, usize));

/// Tables, and what each but the first is joined by with those before it; more equalities, and
/// conditions that are none; and columns whose values are to be among those of another one.
fn graph() -> impl Strategy<Value = (Vec<Made>, Vec<Pair>, [Vec<Pair>; 3])> {
    (3_usize..7).prop_flat_map(|count| {
        let column = || 0..COLUMNS.len();
        let edges: Vec<_> = (1..count).map(|table| ((0..table, column()), (Just(table), column()))).collect();
        let any = || ((0..count, column()), (0..count, column()));
        (
            prop::collection::vec(made(), count),
            edges,
            prop::array::uniform3(prop::collection::vec(any(), 0..3)),
        )
    })
}

fn sql_of(edges: &[Pair], equal: &[Pair], residual: &[Pair], among: &[Pair]) -> String {
    let name = |(table, column): (usize, usize)| format!("t{table}.{}", COLUMNS[column]);
    let mut sql = "SELECT * FROM t0".to_owned();
    for (at, (left, right)) in edges.iter().enumerate() {
        sql += &format!(" JOIN t{} ON {} = {}", at + 1, name(*left), name(*right));
    }
    let equal = equal.iter().map(|(left, right)| format!("{} = {}", name(*left), name(*right)));
    let residual = residual.iter().map(|(left, right)| format!("{} <= {}", name(*left), name(*right)));
    let among = among.iter().map(|(asked, (table, column))| {
        let column = COLUMNS[*column];
        format!("{} IN (SELECT {column} FROM t{table} WHERE {column} < 3)", name(*asked))
    });
    let all: Vec<String> = equal.chain(residual).chain(among).collect();
    if !all.is_empty() {
        sql += &format!(" WHERE {}", all.join(" AND "));
    }
    sql
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn answers_do_not_depend_on_the_order((tables, edges, [equal, residual, among]) in graph()) {
        let sql = sql_of(&edges, &equal, &residual, &among);
        let tables = tables.iter().enumerate().map(|(at, made)| {
            let values = [made.told, made.told / 10, 100];
            let columns: Vec<(&str, usize)> = COLUMNS.into_iter().zip(values).collect();
            (format!("t{at}"), told(&columns, &made.rows, Some(made.told)))
        });
        let tables: HashMap<String, Arc<Told>> = tables.collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (on, off) = runtime.block_on(async {
            (rows(&context(&tables, true), &sql).await, rows(&context(&tables, false), &sql).await)
        });
        prop_assert_eq!(on, off, "{}", sql);
    }
}

/// More leaves than all orders are looked at of.
#[tokio::test]
async fn answers_do_not_depend_on_the_order_of_many() {
    let tables: HashMap<String, Arc<Told>> = (0..14_usize)
        .map(|at| {
            let rows: Vec<Vec<Option<i64>>> =
                (0..4).map(|row| vec![Some((row + at as i64) % 3), (row > 0).then_some(row % 3)]).collect();
            // The last ones are the smallest.
            let told_rows = 10_usize.pow(8 - at as u32 / 2);
            (format!("t{at}"), told(&[("a", told_rows), ("b", 50)], &rows, Some(told_rows)))
        })
        .collect();
    let joins: String = (1..14).map(|at| format!(" JOIN t{at} ON t{}.b = t{at}.a", at - 1)).collect();
    let sql = format!("SELECT count(*), sum(t0.a), sum(t13.b) FROM t0{joins}");
    let (on, off) = (context(&tables, true), context(&tables, false));
    assert_eq!(rows(&on, &sql).await, rows(&off, &sql).await);
}
