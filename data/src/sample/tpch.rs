//! The eight tables of TPC-H: their columns, how Shoal lays them out, and
//! their rows.

use std::fmt;
use std::str::FromStr;

use arrow::datatypes::{DataType, SchemaRef};
use arrow::error::ArrowError;
use arrow::record_batch::{RecordBatch, RecordBatchReader};
use tpchgen::generators::{
    CustomerGenerator, LineItemGenerator, NationGenerator, OrderGenerator, PartGenerator, PartSuppGenerator,
    RegionGenerator, SupplierGenerator,
};
use tpchgen_arrow::{
    CustomerArrow, LineItemArrow, NationArrow, OrderArrow, PartArrow, PartSuppArrow, RegionArrow,
    SupplierArrow,
};

/// A table of TPC-H.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TpchTable {
    /// 5 rows.
    Region,
    /// 25 rows.
    Nation,
    /// 10,000 rows at scale 1.
    Supplier,
    /// 150,000 rows at scale 1.
    Customer,
    /// 200,000 rows at scale 1.
    Part,
    /// 800,000 rows at scale 1.
    Partsupp,
    /// 1,500,000 rows at scale 1.
    Orders,
    /// About 6,000,000 rows at scale 1.
    Lineitem,
}

impl TpchTable {
    /// All tables, the small ones first.
    pub const ALL: [Self; 8] = [
        Self::Region,
        Self::Nation,
        Self::Supplier,
        Self::Customer,
        Self::Part,
        Self::Partsupp,
        Self::Orders,
        Self::Lineitem,
    ];

    /// Its name in SQL.
    pub fn name(self) -> &'static str {
        match self {
            Self::Region => "region",
            Self::Nation => "nation",
            Self::Supplier => "supplier",
            Self::Customer => "customer",
            Self::Part => "part",
            Self::Partsupp => "partsupp",
            Self::Orders => "orders",
            Self::Lineitem => "lineitem",
        }
    }

    /// The columns by which it is sharded and sorted; none for the two tables
    /// that are small enough to be on every worker.
    pub fn keys(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Region | Self::Nation => None,
            Self::Supplier => Some(("s_suppkey", "s_suppkey")),
            Self::Customer => Some(("c_custkey", "c_custkey")),
            Self::Part => Some(("p_partkey", "p_partkey")),
            Self::Partsupp => Some(("ps_partkey", "ps_partkey")),
            Self::Orders => Some(("o_orderkey", "o_orderkey")),
            Self::Lineitem => Some(("l_orderkey", "l_shipdate")),
        }
    }

    /// About how many rows it has at a scale; exact except for `lineitem`.
    pub fn rows(self, scale: f64) -> u64 {
        let at_scale_1 = match self {
            Self::Region => return 5,
            Self::Nation => return 25,
            Self::Supplier => 10_000.0,
            Self::Customer => 150_000.0,
            Self::Part => 200_000.0,
            Self::Partsupp => 800_000.0,
            Self::Orders => 1_500_000.0,
            Self::Lineitem => 6_001_215.0,
        };
        (at_scale_1 * scale) as u64
    }

    /// The `CREATE TABLE` statement. Tables that join on a key are sharded
    /// alike on it; `replicas` none leaves the number to the cluster.
    pub fn create_statement(self, shards: u32, replicas: Option<u32>) -> String {
        let columns: Vec<String> = tpch_schema(self)
            .fields()
            .iter()
            .map(|field| format!("    {} {} NOT NULL", field.name(), sql_type(field.data_type())))
            .collect();
        let options = match self.keys() {
            None => "shards = 1, replicas = 'all'".to_owned(),
            Some((shard_key, sort_key)) => {
                let replicas = replicas.map(|count| format!("replicas = {count}, ")).unwrap_or_default();
                format!("shards = {shards}, {replicas}shard_key = '{shard_key}', sort_key = '{sort_key}'")
            }
        };
        format!("CREATE TABLE {} (\n{}\n) WITH ({options})", self.name(), columns.join(",\n"))
    }
}

impl fmt::Display for TpchTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for TpchTable {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|table| table.name() == name)
            .ok_or_else(|| format!("`{name}` is no table of TPC-H"))
    }
}

/// Rows of a table, batch by batch.
pub type TpchBatches = Box<dyn Iterator<Item = Result<RecordBatch, ArrowError>> + Send>;

/// The columns as the generator gives them; text is `Utf8View`, which is also
/// what DataFusion makes of `VARCHAR`.
pub fn tpch_schema(table: TpchTable) -> SchemaRef {
    match table {
        TpchTable::Region => RegionArrow::schema_ref(),
        TpchTable::Nation => NationArrow::schema_ref(),
        TpchTable::Supplier => SupplierArrow::schema_ref(),
        TpchTable::Customer => CustomerArrow::schema_ref(),
        TpchTable::Part => PartArrow::schema_ref(),
        TpchTable::Partsupp => PartSuppArrow::schema_ref(),
        TpchTable::Orders => OrderArrow::schema_ref(),
        TpchTable::Lineitem => LineItemArrow::schema_ref(),
    }
}

/// The rows of one of `parts` equal parts of a table, `part` from 0; all parts
/// together are the table, whatever `parts` is. Generation is the iterator's
/// own work: run it where blocking is allowed.
pub fn tpch_batches(table: TpchTable, scale: f64, part: u32, parts: u32) -> TpchBatches {
    let is_fixed = matches!(table, TpchTable::Region | TpchTable::Nation);
    if part >= parts || (is_fixed && part > 0) {
        return Box::new(std::iter::empty());
    }
    let (part, parts) = (part as i32 + 1, parts as i32);
    match table {
        TpchTable::Region => boxed(RegionArrow::new(RegionGenerator::new(scale, 1, 1))),
        TpchTable::Nation => boxed(NationArrow::new(NationGenerator::new(scale, 1, 1))),
        TpchTable::Supplier => boxed(SupplierArrow::new(SupplierGenerator::new(scale, part, parts))),
        TpchTable::Customer => boxed(CustomerArrow::new(CustomerGenerator::new(scale, part, parts))),
        TpchTable::Part => boxed(PartArrow::new(PartGenerator::new(scale, part, parts))),
        TpchTable::Partsupp => boxed(PartSuppArrow::new(PartSuppGenerator::new(scale, part, parts))),
        TpchTable::Orders => boxed(OrderArrow::new(OrderGenerator::new(scale, part, parts))),
        TpchTable::Lineitem => boxed(LineItemArrow::new(LineItemGenerator::new(scale, part, parts))),
    }
}

fn boxed(reader: impl RecordBatchReader + Send + 'static) -> TpchBatches {
    Box::new(reader)
}

/// The SQL type of a column; the generator has no others.
fn sql_type(data_type: &DataType) -> String {
    match data_type {
        DataType::Int32 => "INT".into(),
        DataType::Int64 => "BIGINT".into(),
        DataType::Date32 => "DATE".into(),
        DataType::Decimal128(precision, scale) => format!("DECIMAL({precision}, {scale})"),
        _ => "VARCHAR".into(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use datafusion::datasource::MemTable;
    use datafusion::prelude::SessionContext;

    use super::*;
    use crate::sample::{QUERIES, query};

    async fn context_with_tables(scale: f64) -> SessionContext {
        let context = SessionContext::new();
        for table in TpchTable::ALL {
            let batches = (0..2).flat_map(|part| tpch_batches(table, scale, part, 2));
            let batches = batches.collect::<Result<Vec<_>, _>>().unwrap();
            let provider = MemTable::try_new(tpch_schema(table), vec![batches]).unwrap();
            context.register_table(table.name(), Arc::new(provider)).unwrap();
        }
        context
    }

    #[tokio::test]
    async fn statements_make_the_columns_that_the_generator_fills() {
        let context = SessionContext::new();
        for table in TpchTable::ALL {
            let statement = table.create_statement(8, Some(3));
            let (without_options, options) = statement.split_once(" WITH (").unwrap();
            context.sql(without_options).await.unwrap();
            let made = context.table(table.name()).await.unwrap();
            assert_eq!(made.schema().as_arrow(), tpch_schema(table).as_ref());
            if let Some((shard_key, sort_key)) = table.keys() {
                assert!(options.contains(&format!("shard_key = '{shard_key}', sort_key = '{sort_key}'")));
                assert!(tpch_schema(table).column_with_name(shard_key).is_some());
                assert!(tpch_schema(table).column_with_name(sort_key).is_some());
            }
        }
    }

    #[tokio::test]
    async fn every_query_runs_and_most_have_answers() {
        let context = context_with_tables(0.01).await;
        let mut empty = Vec::new();
        for (index, sql) in QUERIES.iter().enumerate() {
            let answer = context.sql(sql).await.unwrap().collect().await.unwrap();
            if answer.iter().map(RecordBatch::num_rows).sum::<usize>() == 0 {
                empty.push(index + 1);
            }
        }
        assert!(empty.len() <= 3, "no rows from queries {empty:?}");
        assert_eq!(query(22), Some(QUERIES[21]));
        assert_eq!((query(0), query(23)), (None, None));
    }

    #[test]
    fn parts_make_the_whole_once() {
        for table in TpchTable::ALL {
            let rows = |parts| {
                (0..parts)
                    .flat_map(|part| tpch_batches(table, 0.01, part, parts))
                    .map(|batch| batch.unwrap().num_rows() as u64)
                    .sum::<u64>()
            };
            assert_eq!(rows(1), rows(3), "{table}");
            if table != TpchTable::Lineitem {
                assert_eq!(rows(1), table.rows(0.01), "{table}");
            }
        }
    }
}
