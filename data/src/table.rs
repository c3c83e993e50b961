//! What a table is: its columns, how it is cut into shards, where the shards
//! live and which segments they hold.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::datatypes::{DataType, Schema, SchemaRef};
use serde::{Deserialize, Serialize};
use shoal_proto::{TableId, WorkerId};

use crate::{DataError, KeyHash, Segment, Sketches, sketch};

/// The most shards a table may have; each is a file group in every plan.
pub const SHARDS_MAX: u32 = 1024;
/// Shards of a table that does not say how many, before rounding up to a
/// multiple of twice the workers.
pub const SHARDS_DEFAULT: u32 = 8;
/// Copies of each shard of a table that does not say how many.
pub const REPLICAS_DEFAULT: u32 = 3;

/// How many copies of each shard there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaCount {
    /// So many, on as many workers.
    Count(u32),
    /// One on every worker: a reference table.
    All,
}

/// What `CREATE TABLE ... WITH (...)` says, completed with defaults.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableLayout {
    /// Hash buckets, 1 to [`SHARDS_MAX`].
    pub shards: u32,
    /// Copies of each shard.
    pub replicas: ReplicaCount,
    /// Columns whose hash decides the shard; empty: rows are dealt evenly.
    pub shard_key: Vec<String>,
    /// Columns by which each segment is sorted; empty: as written.
    pub sort_key: Vec<String>,
    /// How a row's shard was computed when it was written.
    pub hash: KeyHash,
    /// Columns of which segments have Bloom filters. Older versions know of none, and
    /// write and read the table without.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bloom_filters: Vec<String>,
}

impl TableLayout {
    /// Checks the keys against the columns.
    ///
    /// # Errors
    /// `Layout`, naming the option, the value and what would be right.
    pub fn check(&self, schema: &Schema) -> Result<(), DataError> {
        if self.shards == 0 || self.shards > SHARDS_MAX {
            return Err(DataError::Layout(format!(
                "shards = {} is out of range: a table has 1 to {SHARDS_MAX} shards",
                self.shards
            )));
        }
        let named = [
            ("shard_key", &self.shard_key),
            ("sort_key", &self.sort_key),
            ("bloom_filters", &self.bloom_filters),
        ];
        for (option, key) in named {
            for column in key {
                let field = schema.field_with_name(column).map_err(|_| {
                    let columns: Vec<_> = schema.fields().iter().map(|field| field.name().as_str()).collect();
                    DataError::Layout(format!(
                        "{option} names column `{column}`, which the table does not have (columns: {})",
                        columns.join(", ")
                    ))
                })?;
                if option == "bloom_filters" && !has_bloom_filters(field.data_type()) {
                    return Err(DataError::Layout(format!(
                        "bloom_filters column `{column}` is of type {}: choose an integer, text or binary column",
                        field.data_type()
                    )));
                }
                if field.data_type().is_nested() {
                    return Err(DataError::Layout(format!(
                        "{option} column `{column}` is of type {}: keys cannot be nested; choose a plain column",
                        field.data_type()
                    )));
                }
                if option == "shard_key"
                    && matches!(field.data_type(), DataType::Float16 | DataType::Float32 | DataType::Float64)
                {
                    return Err(DataError::Layout(format!(
                        "shard_key column `{column}` is of type {}: equal floats can differ in their bits; choose an integer, decimal, date or text column",
                        field.data_type()
                    )));
                }
            }
        }
        Ok(())
    }
}

/// Whether values of a type that are equal have one form in a Bloom filter: floats do not, and
/// of others scans ask none.
fn has_bloom_filters(data_type: &DataType) -> bool {
    data_type.is_integer()
        || matches!(
            data_type,
            DataType::Utf8
                | DataType::LargeUtf8
                | DataType::Utf8View
                | DataType::Binary
                | DataType::LargeBinary
                | DataType::BinaryView
        )
}

/// One table as one snapshot of the catalog has it. Cheap to clone.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Table {
    /// Never reused.
    pub id: TableId,
    /// Name of the schema that holds it.
    pub schema_name: String,
    /// Its own name.
    pub name: String,
    /// Its columns.
    #[serde(with = "schema_serde")]
    pub columns: SchemaRef,
    /// Shards, replicas and keys.
    pub layout: TableLayout,
    /// The workers that should hold each shard: `placement[shard]`.
    pub placement: Vec<Vec<WorkerId>>,
    /// Every committed segment, in order of commit.
    pub segments: Vec<Arc<Segment>>,
    /// How many distinct values its columns have; none where that is not known of all of its
    /// rows. Older versions know of none, and write the table without.
    #[serde(default, deserialize_with = "sketch::readable", skip_serializing_if = "Option::is_none")]
    pub sketches: Option<Arc<Sketches>>,
}

impl Table {
    /// Whether its rows are in the shards in which a new table of the same shards, columns
    /// and keys would have them.
    pub fn is_hashed_as_new_ones(&self) -> bool {
        let hash = self.layout.hash;
        let is_the_same = |name: &String| {
            let stored = self.columns.field_with_name(name).map(|field| field.data_type());
            stored.is_ok_and(|stored| hash.hashed_type(stored) == KeyHash::CURRENT.hashed_type(stored))
        };
        hash.is_of_this_engine() && self.layout.shard_key.iter().all(is_the_same)
    }

    /// `schema.name`, as people write it.
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.schema_name, self.name)
    }

    /// Rows over all segments.
    pub fn rows(&self) -> u64 {
        self.segments.iter().map(|segment| segment.rows).sum()
    }

    /// Bytes of one copy of all segments.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// The segments of one shard, in order of commit.
    pub fn shard_segments(&self, shard: u32) -> impl Iterator<Item = &Arc<Segment>> {
        self.segments.iter().filter(move |segment| segment.shard == shard)
    }

    /// Every worker that should hold some of it.
    pub fn workers(&self) -> BTreeSet<&WorkerId> {
        self.placement.iter().flatten().collect()
    }

    /// Whether a worker should hold the shard.
    pub fn should_hold(&self, shard: u32, worker: &WorkerId) -> bool {
        self.placement.get(shard as usize).is_some_and(|workers| workers.contains(worker))
    }
}

/// Arrow schemas as base64 of their IPC flatbuffer: the one form of a schema
/// whose stability Arrow promises.
pub mod schema_serde {
    use super::{Arc, Schema, SchemaRef};
    use arrow::ipc::convert::{IpcSchemaEncoder, fb_to_schema};
    use arrow::ipc::root_as_schema;
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Writes the schema.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(schema: &SchemaRef, serializer: S) -> Result<S::Ok, S::Error> {
        let flatbuffer = IpcSchemaEncoder::new().schema_to_fb(schema);
        serializer.serialize_str(&STANDARD.encode(flatbuffer.finished_data()))
    }

    /// Reads a schema.
    ///
    /// # Errors
    /// Where the text is not what [`serialize`] wrote.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SchemaRef, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = STANDARD.decode(text).map_err(D::Error::custom)?;
        let flatbuffer = root_as_schema(&bytes).map_err(D::Error::custom)?;
        let schema: Schema = fb_to_schema(flatbuffer);
        Ok(Arc::new(schema))
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, Field, TimeUnit};

    use super::*;

    #[test]
    fn bloom_filters_are_of_columns_that_are_there_and_have_one_form_for_equal_values() {
        let columns = [("k", DataType::Int32), ("s", DataType::Utf8), ("f", DataType::Float64)];
        let columns = columns.map(|(name, data_type)| Field::new(name, data_type, true));
        let schema = Schema::new(columns.to_vec());
        let check = |name: &str| {
            let layout = TableLayout {
                shards: 8,
                replicas: ReplicaCount::Count(1),
                shard_key: vec![],
                sort_key: vec![],
                hash: KeyHash::CURRENT,
                bloom_filters: vec![name.to_owned()],
            };
            layout.check(&schema).map_err(|error| error.to_string())
        };
        assert_eq!([check("k"), check("s")], [Ok(()), Ok(())]);
        let message = check("f").unwrap_err();
        assert!(message.contains("`f`") && message.contains("integer, text or binary"), "{message}");
        assert!(check("x").unwrap_err().contains("bloom_filters names column `x`"));
    }

    #[test]
    fn a_layout_without_bloom_filters_is_as_older_versions_have_it() {
        let layout = TableLayout {
            shards: 8,
            replicas: ReplicaCount::Count(1),
            shard_key: vec![],
            sort_key: vec![],
            hash: KeyHash::CURRENT,
            bloom_filters: vec![],
        };
        let json = serde_json::to_string(&layout).unwrap();
        assert!(!json.contains("bloom"), "{json}");
        assert_eq!(serde_json::from_str::<TableLayout>(&json).unwrap(), layout);
        let with = TableLayout { bloom_filters: vec!["k".to_owned()], ..layout };
        let json = serde_json::to_string(&with).unwrap();
        assert_eq!(serde_json::from_str::<TableLayout>(&json).unwrap(), with);
    }

    #[test]
    fn only_text_keys_from_before_are_not_hashed_as_new_ones() {
        let is_as_new = |key: DataType, hash: KeyHash, shard_key: &[&str]| {
            let shard_key = shard_key.iter().map(|name| (*name).to_owned()).collect();
            let columns = vec![Field::new("k", key, true), Field::new("t", DataType::Utf8, true)];
            let replicas = ReplicaCount::Count(1);
            let table = Table {
                id: TableId(1),
                schema_name: "public".into(),
                name: "t".into(),
                columns: Arc::new(Schema::new(columns)),
                layout: TableLayout {
                    shards: 8,
                    replicas,
                    shard_key,
                    sort_key: vec![],
                    hash,
                    bloom_filters: vec![],
                },
                placement: vec![],
                segments: vec![],
                sketches: None,
            };
            table.is_hashed_as_new_ones()
        };
        let before = KeyHash::DataFusion55;
        for hash in [before, KeyHash::CURRENT] {
            assert!(is_as_new(DataType::Int64, hash, &["k"]));
            assert!(is_as_new(DataType::Utf8, hash, &[]), "no key, nothing hashed");
        }
        assert!(is_as_new(DataType::Utf8, KeyHash::CURRENT, &["k"]));
        assert!(!is_as_new(DataType::Utf8, before, &["k"]));
        assert!(!is_as_new(DataType::Int64, before, &["k", "t"]));
    }

    #[test]
    fn columns_survive_json() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct Columns(#[serde(with = "schema_serde")] SchemaRef);

        let list = DataType::List(Arc::new(Field::new("item", DataType::Utf8View, true)));
        let columns = Columns(Arc::new(Schema::new(vec![
            Field::new("größe", DataType::Int64, false),
            Field::new("price", DataType::Decimal128(15, 2), true),
            Field::new("at", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true),
            Field::new("words", list, true),
        ])));
        let json = serde_json::to_string(&columns).unwrap();
        assert_eq!(serde_json::from_str::<Columns>(&json).unwrap(), columns);
        for wrong in ["\"\"", "\"!\"", "\"AAAA\"", "\"////////////////\""] {
            assert!(serde_json::from_str::<Columns>(wrong).is_err(), "{wrong} was taken");
        }
    }
}
