//! What the clients ask: lookups by key and a few queries of TPC-H, always in
//! the same order.

use anyhow::{Context, Result, ensure};
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use shoal_data::sample::{TpchTable, query};

use super::asked::Verdict;
use crate::answer::{Answer, Numbers};
use crate::client::Client;
use crate::report::say;

/// Of TPC-H: their answers are exact, and do not depend on the order of rows.
const QUERIES: [usize; 4] = [1, 4, 6, 12];
/// Lookups before each of them.
const LOOKUPS: usize = 8;
/// Seed of the keys.
const SEED: u64 = 1;

/// A question, and what it was answered first.
pub(super) struct Question {
    pub(super) sql: String,
    first: Answer,
}

/// All of them. They need the tables of TPC-H, which nobody may change.
pub struct Questions(Vec<Question>);

impl Questions {
    /// Asks each once.
    ///
    /// # Errors
    /// When one is not answered, or a lookup finds no row.
    pub async fn ask_first(client: &mut Client, scale: f64) -> Result<Self> {
        let orders = TpchTable::Orders.rows(scale);
        let mut random = StdRng::seed_from_u64(SEED);
        let mut questions = Vec::new();
        for number in QUERIES {
            for _ in 0..LOOKUPS {
                let sql = lookup(random.random_range(1..=orders));
                let question = Question::ask_first(client, sql).await?;
                ensure!(question.first.row_count() == 1, "not one row from {}", question.sql);
                questions.push(question);
            }
            let sql = query(number).with_context(|| format!("TPC-H has no query {number}"))?;
            questions.push(Question::ask_first(client, sql.to_owned()).await?);
        }
        Ok(Self(questions))
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The question of this number; they are counted round.
    pub(super) fn at(&self, number: usize) -> &Question {
        &self.0[number % self.0.len()]
    }
}

/// The generator numbers orders from 1 and uses 8 of each 32 keys.
fn lookup(order: u64) -> String {
    format!("SELECT * FROM orders WHERE o_orderkey = {}", order / 8 * 32 + order % 8)
}

impl Question {
    async fn ask_first(client: &mut Client, sql: String) -> Result<Self> {
        let asked = client.query_with_schema(&sql).await;
        let (schema, batches) = asked.with_context(|| format!("ask for the first time: {sql}"))?;
        let first = Answer::new(&schema, &batches, Numbers::Exact)?;
        Ok(Self { sql, first })
    }

    /// Compares an answer with the first one, exactly.
    ///
    /// # Errors
    /// When a value cannot be written as text.
    pub(super) fn judge(&self, schema: &SchemaRef, batches: &[RecordBatch]) -> Result<Verdict> {
        let answer = Answer::new(schema, batches, Numbers::Exact)?;
        match self.first.compare(&answer, None, 0.0) {
            Ok(()) => Ok(Verdict::Right),
            Err(difference) => {
                say(format!("wrong: {}: {difference}", self.sql));
                Ok(Verdict::Wrong)
            }
        }
    }
}
