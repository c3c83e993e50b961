//! Scans: each segment in one task, and where the layout says.

use std::sync::Arc;

use arrow::datatypes::Schema;
use datafusion::common::JoinType;
use datafusion::config::CsvOptions;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{CsvSource, FileGroup, FileScanConfigBuilder};
use datafusion::datasource::source::DataSourceExec;
use datafusion::execution::object_store::ObjectStoreUrl;

use super::plans::*;
use super::{ONE_FOR_ALL, grouped, joined_with};

/// What a scan is refused with that leaves a segment out, or reads one twice.
const NOT_ONCE: &str = "each must be read once";
/// What a scan is refused with whose shards are elsewhere than it says.
const ELSEWHERE: &str = "would not look for it";

/// The scans of two tasks of two partitions each, by the shards of each partition.
fn tasks_of(table: u64, key: Option<&str>, shards: [[&[u32]; 2]; 2]) -> Vec<Plan> {
    let files = |group: &[u32]| group.iter().map(|shard| file(table, *shard)).collect();
    shards.map(|groups| scan(key, groups.map(files).to_vec())).to_vec()
}

fn dealt_as(key: Option<&str>, shards: [[&[u32]; 2]; 2]) -> Plan {
    leaf(undealt(ONE, key), tasks_of(ONE, key, shards))
}

#[test]
fn each_segment_is_read_in_one_task() {
    passes(dealt_as(None, [[&[0, 7], &[1, 2]], [&[3], &[4, 5, 6]]]));
    // One is left out.
    refused(dealt_as(None, [[&[0, 7], &[1, 2]], [&[3], &[4, 5]]]), NOT_ONCE);
    // One is read in both tasks, or twice in one.
    refused(dealt_as(None, [[&[0, 7], &[1, 2]], [&[3], &[4, 5, 6, 0]]]), NOT_ONCE);
    refused(dealt_as(None, [[&[0, 7], &[1, 2, 7]], [&[3], &[4, 5, 6]]]), NOT_ONCE);
    // One is read in place of another.
    refused(dealt_as(None, [[&[0, 7], &[1, 1]], [&[3], &[4, 5, 6]]]), NOT_ONCE);
    let other = tasks_of(OTHER, None, [[&[0, 7], &[1, 2]], [&[3], &[4, 5, 6]]]);
    refused(leaf(undealt(ONE, None), other), NOT_ONCE);
    // All are read by each task.
    refused(leaf(undealt(ONE, None), vec![undealt(ONE, None), undealt(ONE, None)]), NOT_ONCE);
}

#[test]
fn each_piece_of_a_segment_is_read_in_one_task() {
    let piece = |begin, end| vec![file(ONE, 0).with_range(begin, end)];
    let in_pieces = |first, second| {
        let original = scan(None, vec![piece(0, 50), piece(50, 100)]);
        leaf(original, vec![scan(None, vec![first, vec![]]), scan(None, vec![second, vec![]])])
    };
    passes(in_pieces(piece(50, 100), piece(0, 50)));
    refused(in_pieces(piece(0, 50), piece(0, 50)), NOT_ONCE);
}

#[test]
fn a_task_reads_of_a_scan_and_nothing_else() {
    let task = || scan(None, vec![vec![], vec![]]);
    let original = scan(None, vec![vec![file(ONE, 0)], vec![]]);
    let all = || scan(None, vec![vec![file(ONE, 0)], vec![]]);
    passes(leaf(Arc::clone(&original), vec![all(), task()]));
    refused(leaf(original, vec![all(), sorted(task(), &["k"])]), "reads something else than its scan");
}

#[test]
fn a_scan_is_dealt_to_the_tasks_that_there_are() {
    refused(dealt(ONE, None, 1, 2), "was dealt to 1 tasks of 2");
    refused(dealt(ONE, None, 3, 2), "was dealt to 3 tasks of 2");
    // The sides of a join in other numbers of tasks.
    let sides = |tasks| joined_with(JoinType::Inner, by_key(ONE), dealt(OTHER, Some("k"), tasks, 2));
    passes(sides(2));
    refused(sides(4), "was dealt to 4 tasks of 2");
}

#[test]
fn a_scan_that_was_not_dealt_would_be_read_by_each_task() {
    let why = "each would read all";
    refused(undealt(ONE, None), why);
    passes_in(1, undealt(ONE, None));
    // Also where it is hashed as a join or a grouping asks for.
    let key = Some("k");
    refused(joined_with(JoinType::Inner, by_key(ONE), undealt(OTHER, key)), why);
    refused(joined_with(JoinType::Inner, undealt(ONE, key), by_key(OTHER)), why);
    refused(grouped(undealt(ONE, key), &["k"]), why);
}

#[test]
fn shards_are_where_an_exchange_would_put_their_rows() {
    let key = Some("k");
    passes(dealt_as(key, [[&[0, 4], &[1, 5]], [&[2, 6], &[3, 7]]]));
    // In each partition as many, but those of another: of another task, or of the same one.
    refused(dealt_as(key, [[&[2, 6], &[3, 7]], [&[0, 4], &[1, 5]]]), ELSEWHERE);
    refused(dealt_as(key, [[&[1, 5], &[0, 4]], [&[2, 6], &[3, 7]]]), ELSEWHERE);
    // One after the other, as files are dealt where nobody asks for more.
    refused(dealt_as(key, [[&[0, 1], &[2, 3]], [&[4, 5], &[6, 7]]]), ELSEWHERE);
    // Who does not say that rows are hashed may have them anywhere, and joins nothing there.
    let anywhere = || dealt_as(None, [[&[0, 1], &[2, 3]], [&[4, 5], &[6, 7]]]);
    passes(anywhere());
    refused(joined_with(JoinType::Inner, anywhere(), by_key(OTHER)), ONE_FOR_ALL);
}

#[test]
fn shards_that_were_pruned_leave_their_places_empty() {
    let left = |tasks| {
        let all = [0, 2, 7].map(|shard| file(ONE, shard)).to_vec();
        leaf(scan(Some("k"), vec![all, vec![]]), tasks_of(ONE, Some("k"), tasks))
    };
    passes(left([[&[0], &[]], [&[2], &[7]]]));
    refused(left([[&[0], &[2]], [&[7], &[]]]), ELSEWHERE);
}

#[test]
fn shards_that_do_not_divide_into_the_partitions_of_all_tasks_meet_nothing() {
    let by_number: [[&[u32]; 2]; 2] = [[&[0, 4], &[1, 5]], [&[2], &[3]]];
    let of_six = |key| {
        let all = (0..6).map(|shard| file(OF_SIX, shard)).collect();
        leaf(scan(key, vec![all, vec![]]), tasks_of(OF_SIX, key, by_number))
    };
    refused(of_six(Some("k")), ELSEWHERE);
    passes(of_six(None));
}

#[test]
fn files_whose_rows_go_over_lines_are_read_whole() {
    let scan = |over_lines, file: PartitionedFile| -> Plan {
        let options = CsvOptions { newlines_in_values: Some(over_lines), ..CsvOptions::default() };
        let source = CsvSource::new(Arc::new(Schema::empty())).with_csv_options(options);
        let scan = FileScanConfigBuilder::new(ObjectStoreUrl::local_filesystem(), Arc::new(source))
            .with_file_groups(vec![FileGroup::new(vec![file])]);
        DataSourceExec::from_data_source(scan.build())
    };
    let file = |name| PartitionedFile::new(name, 100);
    let piece = |begin, end| file("one").with_range(begin, end);
    let read = |over_lines, one, other| {
        leaf(scan(over_lines, file("one")), vec![scan(over_lines, one), scan(over_lines, other)])
    };
    passes(read(true, file("one"), file("other")));
    passes(read(false, piece(0, 50), piece(50, 100)));
    refused(read(true, piece(0, 50), piece(50, 100)), "no row is known to begin");
}
