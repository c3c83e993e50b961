//! Our defaults for settings of DataFusion, the same on coordinators and on workers. What a session sets
//! comes after them.

use datafusion::config::ConfigOptions;

/// A hash join by one whole number looks partners up in an array, not by hash, where the least and the greatest key of
/// the built side are less than this apart: an array of 1 MiB at most, of each partition. DataFusion's own default is 1,024, and
/// for greater ranges that more than 0.15 of their numbers are keys: of one partition of one task of
/// several they seldom are.
const ARRAY_JOIN_RANGE: usize = 1 << 18;

/// Sets them.
pub fn set(options: &mut ConfigOptions) {
    options.execution.perfect_hash_join_small_build_threshold = ARRAY_JOIN_RANGE;
}
