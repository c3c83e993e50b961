//! What the engine is told otherwise than by its own defaults, alike wherever a plan runs.

use datafusion::config::ConfigOptions;

/// A hash join by a whole number finds partners in an array where the keys of its built side are less
/// than this apart: 1 MiB of four bytes each. By itself the engine does so where a seventh of such a range is
/// taken, which of one partition of one task of several it seldom is.
const ARRAY_JOIN_RANGE: usize = 1 << 18;

/// Sets what sessions start from: one may say otherwise.
pub fn set_defaults(options: &mut ConfigOptions) {
    options.execution.perfect_hash_join_small_build_threshold = ARRAY_JOIN_RANGE;
}
