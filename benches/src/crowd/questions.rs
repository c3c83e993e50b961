//! What the clients ask, with the oracle's answers. All of it is known before
//! anything is measured, so that answers are compared and never computed then.

use anyhow::{Context, Result, ensure};
use arrow::array::AsArray;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type, SchemaRef};
use arrow::record_batch::RecordBatch;
use shoal_data::sample::{QUERIES, TpchTable, query};

use super::class::Class;
use super::deal::Kinds;
use crate::answer::{Answer, Numbers};
use crate::oracle::{Expectation, Oracle};
use crate::tpch_data::TpchData;

/// The statement of lookups.
pub(super) const LOOKUP: &str = "SELECT * FROM orders WHERE o_orderkey = $1";
/// About how many keys are looked up, spread over the table: enough that most are
/// asked for once.
const KEYS: u64 = 20_000;
/// Nations, by which customers are told apart.
const NATIONS: u32 = 25;

/// How a question is put.
pub(super) enum Form {
    /// [`LOOKUP`] with this key.
    Lookup(i64),
    /// A statement of its own.
    Statement(String),
}

/// A question, and what is right.
pub(super) struct Question {
    pub(super) class: Class,
    pub(super) form: Form,
    expected: Expectation,
}

impl Question {
    /// Compares an answer with the oracle's.
    ///
    /// # Errors
    /// The first difference.
    pub(super) fn check(&self, schema: &SchemaRef, batches: &[RecordBatch]) -> Result<()> {
        self.expected.check(schema, batches)
    }

    /// For a person.
    pub(super) fn describe(&self) -> String {
        match &self.form {
            Form::Lookup(key) => format!("order {key}"),
            Form::Statement(sql) => sql.clone(),
        }
    }
}

/// All of them.
pub(super) struct Questions {
    point: Vec<Question>,
    aggregate: Vec<Question>,
    tpch: Vec<Question>,
}

impl Questions {
    /// Has the oracle answer all over the generated tables. Which orders are looked
    /// up depends on the seed.
    ///
    /// # Errors
    /// What the oracle says.
    pub(super) async fn answered(data: &TpchData, seed: u64) -> Result<Self> {
        let oracle = Oracle::of_tables(2, data).await?;
        let point = lookups(&oracle, TpchTable::Orders.rows(data.scale()), seed).await?;
        ensure!(!point.is_empty(), "at scale {} there are no orders to look up", data.scale());
        let mut aggregate = Vec::new();
        for nation in 0..NATIONS {
            aggregate.push(answered(&oracle, Class::Aggregate, customers_of(nation)).await?);
        }
        let mut tpch = Vec::new();
        for number in 1..=QUERIES.len() {
            let sql = query(number).with_context(|| format!("TPC-H has no query {number}"))?;
            tpch.push(answered(&oracle, Class::Tpch, sql.to_owned()).await?);
        }
        Ok(Self { point, aggregate, tpch })
    }

    /// How many there are of each kind.
    pub(super) fn kinds(&self) -> Kinds {
        Kinds { point: self.point.len(), aggregate: self.aggregate.len(), tpch: self.tpch.len() }
    }

    /// One of a kind, from 0; none where there are not so many.
    pub(super) fn get(&self, class: Class, which: usize) -> Option<&Question> {
        let all = match class {
            Class::Point => &self.point,
            Class::Aggregate => &self.aggregate,
            Class::Tpch => &self.tpch,
        };
        all.get(which)
    }

    /// One lookup, one aggregate and every query of TPC-H.
    pub(super) fn of_each_kind(&self) -> impl Iterator<Item = &Question> {
        self.point.iter().take(1).chain(self.aggregate.iter().take(1)).chain(&self.tpch)
    }
}

/// A scan of a table that is small, filtered by a column that is no key of any
/// kind.
fn customers_of(nation: u32) -> String {
    format!(
        "SELECT c_mktsegment, count(*), sum(c_acctbal), max(c_acctbal) FROM customer \
         WHERE c_nationkey = {nation} GROUP BY c_mktsegment ORDER BY c_mktsegment"
    )
}

async fn answered(oracle: &Oracle, class: Class, sql: String) -> Result<Question> {
    let expected = oracle.expect(&sql, Numbers::Exact).await.with_context(|| sql.clone())?;
    Ok(Question { class, form: Form::Statement(sql), expected })
}

/// Lookups of one order in so many.
async fn lookups(oracle: &Oracle, orders: u64, seed: u64) -> Result<Vec<Question>> {
    // Of each 32 keys the generator uses 8: an odd distance meets all of these.
    let distance = (orders / KEYS) | 1;
    let sql = format!("SELECT * FROM orders WHERE o_orderkey % {distance} = {}", seed % distance);
    let (schema, batches) = oracle.run(&sql).await?;
    let mut questions = Vec::new();
    for batch in &batches {
        let keys = cast(batch.column(0), &DataType::Int64)?;
        for (row, key) in keys.as_primitive::<Int64Type>().values().iter().enumerate() {
            let answer = Answer::new(&schema, &[batch.slice(row, 1)], Numbers::Exact)?;
            let expected = Expectation { answer, order: None };
            questions.push(Question { class: Class::Point, form: Form::Lookup(*key), expected });
        }
    }
    Ok(questions)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::super::deal::Dealer;
    use super::*;

    #[tokio::test]
    async fn each_question_is_dealt_with_its_own_answer() {
        let root = tempfile::tempdir().unwrap();
        let data = TpchData::ensure(root.path(), 0.01).unwrap();
        let questions = Questions::answered(&data, 1).await.unwrap();
        assert_eq!(questions.point.len() as u64, TpchTable::Orders.rows(0.01));
        assert_eq!((questions.aggregate.len(), questions.tpch.len()), (25, 22));
        assert_eq!(questions.of_each_kind().count(), 24);

        let oracle = Oracle::of_tables(2, &data).await.unwrap();
        let mut dealer = Dealer::new(questions.kinds(), StdRng::seed_from_u64(1), usize::MAX);
        for _ in 0..40 {
            let (class, which) = dealer.next(false).unwrap();
            let question = questions.get(class, which).unwrap();
            assert_eq!(question.class, class);
            let sql = match &question.form {
                Form::Lookup(key) => LOOKUP.replace("$1", &key.to_string()),
                Form::Statement(sql) => sql.clone(),
            };
            let (schema, batches) = oracle.run(&sql).await.unwrap();
            question.check(&schema, &batches).unwrap();
            if batches.iter().any(|batch| batch.num_rows() > 0) {
                assert!(question.check(&schema, &[]).is_err(), "{sql}");
            }
        }
    }

    #[tokio::test]
    async fn with_many_orders_one_in_so_many_is_looked_up() {
        let root = tempfile::tempdir().unwrap();
        let data = TpchData::ensure(root.path(), 0.01).unwrap();
        let oracle = Oracle::of_tables(2, &data).await.unwrap();
        let orders = TpchTable::Orders.rows(0.01);
        // As if there were a hundred times as many.
        let questions = lookups(&oracle, 100 * orders, 7).await.unwrap();
        let expected = orders / ((100 * orders / KEYS) | 1);
        assert!((questions.len() as u64).abs_diff(expected) <= 20, "{} of {expected}", questions.len());
    }
}
