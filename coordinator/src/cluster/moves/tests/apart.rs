//! Copies in one zone, and another zone that has none.

use super::evenness::even;
use super::*;

#[test]
fn copies_leave_a_crowded_zone_once_there_is_one_without_any() {
    let mut state = State::new("c");
    let placement = shards("w1 w2 w3, w2 w3 w4, w1 w3 w4, w1 w2 w4");
    let full = add(&mut state, Count(3), placement.clone(), &[100; 4]);
    let empty = add(&mut state, Count(3), shards("w1 w2 w4, w1 w3 w4"), &[]);
    let two_zones = "w1:a w2:a w3:b w4:b";
    assert_eq!(even(&mut state, &workers(two_zones)), 0, "two zones are not enough for three copies");

    let here = workers(&format!("{two_zones} w5:c"));
    let first = even_out(&state, &here);
    let expected = ["public.t1, shard 0: from w2 to w5", "public.t1, shard 1: from w4 to w5"];
    assert_eq!(told(&state, &first)[..2], expected, "whoever has most of a crowded zone gives");
    even(&mut state, &here);
    for table in [full, empty] {
        for shard in placed(&state, table) {
            assert_eq!(zones(&shard, &here), 3, "{shard:?}");
        }
    }
}

#[test]
fn copies_stay_in_a_crowded_zone_where_there_is_no_room_elsewhere() {
    let mut state = State::new("c");
    add(&mut state, Count(2), shards("w1 w2"), &[100]);
    let mut here = workers("w1:a w2:a w3:b");
    here[2].disk = Disk { total_bytes: 1 << 30, free_bytes: 0 };
    assert_eq!(even(&mut state, &here), 0);
    here[2].disk.free_bytes = 1 << 30;
    assert_eq!(even(&mut state, &here), 1);
}
