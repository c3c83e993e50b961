//! Golden values of the key hash: a change here means that existing tables
//! can no longer be taken as partitioned.

use std::sync::Arc;

use arrow::array::*;
use arrow::compute::{concat, take};
use arrow::datatypes::{Field, Int32Type, Schema};
use datafusion::physical_expr::expressions::col;
use datafusion::physical_plan::metrics::Time;
use datafusion::physical_plan::repartition::BatchPartitioner;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};

use super::*;

const ALL: [KeyHash; 2] = [KeyHash::DataFusion55, KeyHash::DataFusion55Views];

fn hashes(keys: &[ArrayRef]) -> Vec<u64> {
    let mut hashes = vec![0; keys[0].len()];
    create_hashes(keys, REPARTITION_RANDOM_STATE.random_state(), &mut hashes).unwrap();
    hashes
}

fn shards(hash: KeyHash, keys: &[ArrayRef], count: u32) -> Vec<u32> {
    let mut out = vec![99];
    hash.shards_of(keys, count, &mut out).unwrap();
    out
}

/// Where an exchange into so many partitions puts each row of these keys.
fn partitions(keys: &[ArrayRef], count: u32) -> Vec<u32> {
    let rows: ArrayRef = Arc::new((0..keys[0].len() as u64).collect::<UInt64Array>());
    let names: Vec<String> = (0..keys.len()).map(|key| format!("k{key}")).collect();
    let columns = names.iter().cloned().zip(keys.iter().cloned()).chain([("row".to_owned(), rows)]);
    let batch = RecordBatch::try_from_iter_with_nullable(columns.map(|(n, c)| (n, c, true))).unwrap();
    let exprs = names.iter().map(|name| col(name, &batch.schema()).unwrap()).collect();
    let mut exchange =
        BatchPartitioner::new_hash_partitioner(exprs, count as usize, Time::default()).unwrap();
    let mut partitions = vec![u32::MAX; batch.num_rows()];
    exchange
        .partition(batch, |partition, part| {
            let rows = part.column_by_name("row").unwrap();
            for row in rows.as_primitive::<arrow::datatypes::UInt64Type>().values() {
                partitions[*row as usize] = partition as u32;
            }
            Ok(())
        })
        .unwrap();
    partitions
}

fn as_hashed(hash: KeyHash, key: &ArrayRef) -> ArrayRef {
    cast(key, &hash.hashed_type(key.data_type())).unwrap()
}

fn one_of_each_type() -> Vec<(&'static str, ArrayRef)> {
    let text = [Some("a"), None, Some("größe"), Some("longer than twelve bytes")];
    vec![
        ("bool", Arc::new(BooleanArray::from(vec![Some(true), None, Some(false), Some(true)]))),
        ("int8", Arc::new(Int8Array::from(vec![Some(1), None, Some(-1), Some(i8::MAX)]))),
        ("int16", Arc::new(Int16Array::from(vec![Some(1), None, Some(-1), Some(i16::MAX)]))),
        ("int32", Arc::new(Int32Array::from(vec![Some(1), None, Some(-1), Some(i32::MAX)]))),
        ("int64", Arc::new(Int64Array::from(vec![Some(1), None, Some(-1), Some(i64::MAX)]))),
        ("uint8", Arc::new(UInt8Array::from(vec![Some(1), None, Some(2), Some(u8::MAX)]))),
        ("uint16", Arc::new(UInt16Array::from(vec![Some(1), None, Some(2), Some(u16::MAX)]))),
        ("uint32", Arc::new(UInt32Array::from(vec![Some(1), None, Some(2), Some(u32::MAX)]))),
        ("uint64", Arc::new(UInt64Array::from(vec![Some(1), None, Some(2), Some(u64::MAX)]))),
        (
            "decimal128",
            Arc::new(
                Decimal128Array::from(vec![Some(1), None, Some(-1), Some(999_999_999_999_999)])
                    .with_precision_and_scale(15, 2)
                    .unwrap(),
            ),
        ),
        ("date32", Arc::new(Date32Array::from(vec![Some(1), None, Some(-1), Some(20_000)]))),
        (
            "timestamp",
            Arc::new(TimestampMicrosecondArray::from(vec![
                Some(1),
                None,
                Some(-1),
                Some(1_700_000_000_000_000),
            ])),
        ),
        ("utf8", Arc::new(StringArray::from(text.to_vec()))),
        ("large_utf8", Arc::new(LargeStringArray::from(text.to_vec()))),
        ("utf8_view", Arc::new(StringViewArray::from(text.to_vec()))),
        (
            "binary",
            Arc::new(BinaryArray::from(vec![
                Some(b"a".as_slice()),
                None,
                Some(b"\0"),
                Some(b"longer than twelve"),
            ])),
        ),
    ]
}

#[test]
fn hash_of_every_key_type_is_what_it_was() {
    let golden: [(&str, [u64; 4]); 16] = [
        ("bool", [11_485_087_932_207_604_273, 0, 6_908_261_415_171_690_783, 11_485_087_932_207_604_273]),
        ("int8", [11_485_087_932_207_604_273, 0, 799_436_778_835_710_610, 7_308_726_022_450_111_474]),
        ("int16", [11_485_087_932_207_604_273, 0, 4_729_672_231_107_435_640, 3_785_010_053_774_474_382]),
        ("int32", [11_485_087_932_207_604_273, 0, 11_095_916_489_844_453_123, 9_420_112_995_938_858_087]),
        ("int64", [11_485_087_932_207_604_273, 0, 6_908_322_369_078_759_775, 4_571_573_961_624_992_205]),
        ("uint8", [11_485_087_932_207_604_273, 0, 15_958_716_073_391_501_476, 799_436_778_835_710_610]),
        ("uint16", [11_485_087_932_207_604_273, 0, 15_958_716_073_391_501_476, 4_729_672_231_107_435_640]),
        ("uint32", [11_485_087_932_207_604_273, 0, 15_958_716_073_391_501_476, 11_095_916_489_844_453_123]),
        ("uint64", [11_485_087_932_207_604_273, 0, 15_958_716_073_391_501_476, 6_908_322_369_078_759_775]),
        ("decimal128", [11_485_087_932_207_604_273, 0, 2_278_624_425_367_726_687, 6_396_757_217_960_698_334]),
        ("date32", [11_485_087_932_207_604_273, 0, 11_095_916_489_844_453_123, 12_485_520_105_746_554_917]),
        ("timestamp", [11_485_087_932_207_604_273, 0, 6_908_322_369_078_759_775, 17_315_708_725_911_355_041]),
        ("utf8", [17_013_553_549_990_595_388, 0, 17_787_520_756_213_761_811, 13_110_602_841_279_427_724]),
        (
            "large_utf8",
            [17_013_553_549_990_595_388, 0, 17_787_520_756_213_761_811, 13_110_602_841_279_427_724],
        ),
        ("utf8_view", [17_820_346_963_609_243_796, 0, 2_471_474_549_648_181_381, 7_224_874_377_089_922_097]),
        ("binary", [16_444_146_117_739_723_962, 0, 13_814_401_046_330_066_249, 7_896_634_567_771_332_243]),
    ];
    let now: Vec<(&str, [u64; 4])> = one_of_each_type()
        .into_iter()
        .map(|(name, keys)| (name, hashes(&[keys]).try_into().unwrap()))
        .collect();
    assert_eq!(now, golden);
}

#[test]
fn hash_of_two_columns_is_what_it_was() {
    let keys: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(vec![1, -1])),
        Arc::new(StringViewArray::from(vec!["shoal", "longer than twelve bytes"])),
    ];
    assert_eq!(hashes(&keys), FINGERPRINT);
    assert!(ALL.into_iter().all(KeyHash::is_of_this_engine));
}

#[test]
fn shards_are_the_partitions_of_an_exchange() {
    for hash in ALL {
        for (name, key) in one_of_each_type() {
            let exchanged = as_hashed(hash, &key);
            for count in [1, 2, 3, 8, 12, 1024] {
                let of_rows = shards(hash, std::slice::from_ref(&key), count);
                let expected = partitions(std::slice::from_ref(&exchanged), count);
                assert_eq!(of_rows, expected, "{hash:?} of {name} over {count} shards");
            }
        }
    }
}

/// Empty, short, of 12 bytes and of 13, long, and none: what fits in a view, and what does not.
const TEXTS: [Option<&str>; 10] = [
    Some(""),
    Some("a"),
    None,
    Some("größe"),
    Some("\0"),
    Some("exactly12byt"),
    Some("thirteenbytes"),
    Some("longer than twelve bytes"),
    Some("longer than twelve bytes, and differs"),
    Some("a"),
];

/// The same texts in every kind of array that a table, a scan or an exchange has them in.
fn same_texts() -> Vec<(&'static str, ArrayRef)> {
    let texts = || TEXTS.to_vec();
    let views: ArrayRef = Arc::new(StringViewArray::from(texts()));
    let dictionary: ArrayRef = Arc::new(texts().into_iter().collect::<DictionaryArray<Int32Type>>());
    let before: ArrayRef = Arc::new(StringViewArray::from(vec![Some("another text before these"), None]));
    let joined = concat(&[before.as_ref(), views.as_ref()]).unwrap();
    let backwards = UInt32Array::from_iter_values((0..TEXTS.len() as u32).rev());
    let twice = take(&take(&views, &backwards, None).unwrap(), &backwards, None).unwrap();
    vec![
        ("utf8", Arc::new(StringArray::from(texts()))),
        ("large_utf8", Arc::new(LargeStringArray::from(texts()))),
        ("a slice of views", joined.slice(2, TEXTS.len())),
        ("views that were taken", twice),
        ("compacted views", Arc::new(views.as_string_view().gc())),
        ("of a dictionary", cast(&dictionary, &DataType::Utf8View).unwrap()),
        ("of a dictionary as text", cast(&dictionary, &DataType::Utf8).unwrap()),
        ("as a scan gives them", scanned(DataType::Utf8View)),
        ("as a scan gives plain text", scanned(DataType::Utf8)),
        ("views", views),
    ]
}

/// The texts out of a file where they are stored as segments store text.
fn scanned(data_type: DataType) -> ArrayRef {
    let stored: ArrayRef = Arc::new(StringArray::from(TEXTS.to_vec()));
    let batch = RecordBatch::try_from_iter_with_nullable([("k", stored, true)]).unwrap();
    let mut file = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut file, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    let schema = Arc::new(Schema::new(vec![Field::new("k", data_type, true)]));
    let options = ArrowReaderOptions::new().with_schema(schema);
    let reader = ParquetRecordBatchReaderBuilder::try_new_with_options(bytes::Bytes::from(file), options);
    let batches: Vec<_> = reader.unwrap().build().unwrap().collect::<Result<_, _>>().unwrap();
    assert_eq!(batches.len(), 1);
    batches[0].column(0).clone()
}

#[test]
fn a_text_has_one_shard_however_it_is_stored_and_an_exchange_of_views_finds_it() {
    let hash = KeyHash::DataFusion55Views;
    let views: ArrayRef = Arc::new(StringViewArray::from(TEXTS.to_vec()));
    for count in [1, 2, 8, 12, 1024] {
        let expected = partitions(std::slice::from_ref(&views), count);
        for (name, texts) in same_texts() {
            assert_eq!(shards(hash, std::slice::from_ref(&texts), count), expected, "{name}");
            if *texts.data_type() == DataType::Utf8View {
                assert_eq!(partitions(std::slice::from_ref(&texts), count), expected, "{name}");
            }
        }
    }
}

#[test]
fn short_texts_alone_have_the_shards_that_they_have_among_long_ones() {
    // Views of which none points into a buffer are hashed by other code.
    let hash = KeyHash::DataFusion55Views;
    let all: ArrayRef = Arc::new(StringArray::from(TEXTS.to_vec()));
    let of_all = shards(hash, &[all], 1024);
    for (text, shard) in TEXTS.iter().zip(of_all) {
        let alone: ArrayRef = Arc::new(StringArray::from(vec![*text]));
        let view: ArrayRef = Arc::new(StringViewArray::from(vec![*text]));
        assert_eq!(partitions(&[view], 1024), [shard], "{text:?}");
        assert_eq!(shards(hash, &[alone], 1024), [shard], "{text:?}");
    }
}

#[test]
fn keys_with_text_at_any_place_meet_an_exchange() {
    let hash = KeyHash::DataFusion55Views;
    let text: ArrayRef = Arc::new(StringArray::from(TEXTS.to_vec()));
    let numbers: ArrayRef =
        Arc::new(Int64Array::from_iter((0..TEXTS.len() as i64).map(|n| (n != 4).then_some(n))));
    let bytes: ArrayRef = Arc::new(TEXTS.iter().map(|text| text.map(str::as_bytes)).collect::<BinaryArray>());
    for keys in [[&text, &numbers], [&numbers, &text], [&text, &bytes], [&text, &text]] {
        let keys: Vec<ArrayRef> = keys.into_iter().cloned().collect();
        let exchanged: Vec<ArrayRef> = keys.iter().map(|key| as_hashed(hash, key)).collect();
        for count in [2, 8, 1024] {
            assert_eq!(shards(hash, &keys, count), partitions(&exchanged, count));
        }
    }
}

#[test]
fn text_of_tables_from_before_stays_where_it_was() {
    // As it was stored, and not where an exchange of views would put it.
    let text: ArrayRef = Arc::new(StringArray::from(TEXTS.to_vec()));
    let view = as_hashed(KeyHash::DataFusion55Views, &text);
    let before = shards(KeyHash::DataFusion55, std::slice::from_ref(&text), 1024);
    assert_eq!(before, partitions(std::slice::from_ref(&text), 1024));
    assert_ne!(before, partitions(&[view], 1024));
    assert_eq!(KeyHash::DataFusion55.hashed_type(&DataType::Utf8), DataType::Utf8);
}

#[test]
fn other_keys_have_the_shards_that_they_had() {
    for (name, key) in one_of_each_type() {
        if KeyHash::DataFusion55Views.hashed_type(key.data_type()) == *key.data_type() {
            let keys = std::slice::from_ref(&key);
            assert_eq!(shards(ALL[0], keys, 1024), shards(ALL[1], keys, 1024), "{name}");
        }
    }
}

#[test]
fn nulls_share_a_shard() {
    for (name, key) in one_of_each_type() {
        for hash in ALL {
            assert_eq!(shards(hash, std::slice::from_ref(&key), 8)[1], 0, "{name}");
        }
    }
}

#[test]
fn a_literal_finds_the_shard_of_its_row() {
    for (name, key) in one_of_each_type() {
        for hash in ALL {
            let of_rows = shards(hash, std::slice::from_ref(&key), 8);
            for (row, of_row) in of_rows.iter().enumerate().filter(|(row, _)| key.is_valid(*row)) {
                let value = ScalarValue::try_from_array(&key, row).unwrap();
                let found = hash
                    .shard_of_scalars(std::slice::from_ref(&value), std::slice::from_ref(key.data_type()), 8)
                    .unwrap();
                assert_eq!(found, Some(*of_row), "{hash:?} {name} {value}");
            }
        }
    }
}

#[test]
fn a_literal_of_another_type_is_cast_or_refused() {
    let shard = |value: ScalarValue, data_type: DataType| {
        KeyHash::CURRENT.shard_of_scalars(&[value], &[data_type], 1024).unwrap()
    };
    assert_eq!(
        shard(ScalarValue::Int32(Some(7)), DataType::Int64),
        shard(ScalarValue::Int64(Some(7)), DataType::Int64)
    );
    assert_eq!(
        shard(ScalarValue::from("x"), DataType::Utf8View),
        shard(ScalarValue::Utf8View(Some("x".into())), DataType::Utf8View)
    );
    assert_eq!(shard(ScalarValue::Float64(Some(7.5)), DataType::Int64), None);
    assert_eq!(shard(ScalarValue::Int64(Some(1 << 40)), DataType::Int32), None);
    assert_eq!(shard(ScalarValue::Int64(None), DataType::Int64), None);
}

#[test]
fn the_recorded_names_do_not_change() {
    assert_eq!(serde_json::to_string(&ALL).unwrap(), "[\"datafusion-55\",\"datafusion-55-views\"]");
    assert_eq!(KeyHash::CURRENT, KeyHash::DataFusion55Views);
}

#[test]
fn a_text_finds_its_shard_whichever_type_its_literal_has() {
    let texts: ArrayRef = Arc::new(StringArray::from(TEXTS.to_vec()));
    for hash in ALL {
        let of_rows = shards(hash, std::slice::from_ref(&texts), 1024);
        for (text, shard) in TEXTS.iter().zip(of_rows) {
            let Some(text) = text.map(str::to_owned) else { continue };
            for literal in [ScalarValue::Utf8(Some(text.clone())), ScalarValue::Utf8View(Some(text.clone()))]
            {
                let found = hash.shard_of_scalars(&[literal], &[DataType::Utf8], 1024).unwrap();
                assert_eq!(found, Some(shard), "{hash:?} {text:?}");
            }
        }
    }
}

#[test]
fn no_key_and_no_shards_are_errors() {
    let key: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    assert!(KeyHash::CURRENT.shards_of(&[], 8, &mut vec![]).is_err());
    assert!(KeyHash::CURRENT.shards_of(&[key], 0, &mut vec![]).is_err());
}
