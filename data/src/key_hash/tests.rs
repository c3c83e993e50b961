//! Golden values of the key hash: a change here means that existing tables
//! can no longer be taken as partitioned.

use std::sync::Arc;

use arrow::array::*;
use arrow::datatypes::{Field, Schema};
use datafusion::physical_expr::expressions::col;
use datafusion::physical_plan::metrics::Time;
use datafusion::physical_plan::repartition::BatchPartitioner;

use super::*;

fn hashes(keys: &[ArrayRef]) -> Vec<u64> {
    let mut hashes = vec![0; keys[0].len()];
    create_hashes(keys, REPARTITION_RANDOM_STATE.random_state(), &mut hashes).unwrap();
    hashes
}

fn shards(keys: &[ArrayRef], count: u32) -> Vec<u32> {
    let mut out = vec![99];
    KeyHash::CURRENT.shards_of(keys, count, &mut out).unwrap();
    out
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
    assert!(KeyHash::CURRENT.is_of_this_engine());
}

#[test]
fn shards_are_the_partitions_of_an_exchange() {
    let keys = one_of_each_type();
    let schema = Arc::new(Schema::new(
        keys.iter().map(|(name, key)| Field::new(*name, key.data_type().clone(), true)).collect::<Vec<_>>(),
    ));
    let batch =
        RecordBatch::try_new(schema.clone(), keys.iter().map(|(_, key)| key.clone()).collect()).unwrap();
    for count in [1, 2, 3, 8, 12, 1024] {
        for (name, key) in &keys {
            let mut exchange = BatchPartitioner::new_hash_partitioner(
                vec![col(name, &schema).unwrap()],
                count as usize,
                Time::default(),
            )
            .unwrap();
            let mut rows_by_partition = vec![0; count as usize];
            exchange
                .partition(batch.clone(), |partition, part| {
                    rows_by_partition[partition] += part.num_rows();
                    Ok(())
                })
                .unwrap();
            let mut rows_by_shard = vec![0; count as usize];
            for shard in shards(std::slice::from_ref(key), count) {
                rows_by_shard[shard as usize] += 1;
            }
            assert_eq!(rows_by_shard, rows_by_partition, "{name} over {count} shards");
        }
    }
}

#[test]
fn nulls_share_a_shard() {
    for (name, key) in one_of_each_type() {
        assert_eq!(shards(&[key], 8)[1], 0, "{name}");
    }
}

#[test]
fn a_literal_finds_the_shard_of_its_row() {
    for (name, key) in one_of_each_type() {
        let of_rows = shards(std::slice::from_ref(&key), 8);
        for (row, of_row) in of_rows.iter().enumerate().filter(|(row, _)| key.is_valid(*row)) {
            let value = ScalarValue::try_from_array(&key, row).unwrap();
            let found = KeyHash::CURRENT
                .shard_of_scalars(std::slice::from_ref(&value), std::slice::from_ref(key.data_type()), 8)
                .unwrap();
            assert_eq!(found, Some(*of_row), "{name} {value}");
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
fn the_recorded_name_does_not_change() {
    assert_eq!(serde_json::to_string(&KeyHash::CURRENT).unwrap(), "\"datafusion-55\"");
}

#[test]
fn no_key_and_no_shards_are_errors() {
    let key: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    assert!(KeyHash::CURRENT.shards_of(&[], 8, &mut vec![]).is_err());
    assert!(KeyHash::CURRENT.shards_of(&[key], 0, &mut vec![]).is_err());
}
