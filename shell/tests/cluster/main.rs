//! Tests on clusters of real processes: the `shoal` binary, started on free
//! loopback ports. One binary, so that tests share clusters where they can.

#[cfg(test)]
mod answers;
#[cfg(test)]
mod bad_files;
#[cfg(test)]
mod bad_input;
#[cfg(test)]
mod bloom_filters;
#[cfg(test)]
mod certificates;
#[cfg(test)]
mod co_located;
#[cfg(test)]
mod compaction;
#[cfg(test)]
mod coordinators;
#[cfg(test)]
mod cuts;
#[cfg(test)]
mod demo;
#[cfg(test)]
mod distinct_counts;
#[cfg(test)]
mod each_task;
#[cfg(test)]
mod endpoints;
#[cfg(test)]
mod failover;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod flight;
#[cfg(test)]
mod goes_on;
#[cfg(test)]
mod group_once;
#[cfg(test)]
mod in_place;
#[cfg(test)]
mod join_order;
#[cfg(test)]
mod late_materialization;
#[cfg(test)]
mod limits;
#[cfg(test)]
mod little_memory;
#[cfg(test)]
mod loading;
#[cfg(test)]
mod lookups;
#[cfg(test)]
mod merged_joins;
#[cfg(test)]
mod moves;
#[cfg(test)]
mod object_store;
#[cfg(test)]
mod oracle;
#[cfg(test)]
mod panics;
#[cfg(test)]
mod poison;
#[cfg(test)]
mod python;
#[cfg(test)]
mod query_loading;
#[cfg(test)]
mod restart;
#[cfg(test)]
mod result_cache;
#[cfg(test)]
mod rolling;
#[cfg(test)]
mod rot;
#[cfg(test)]
mod runtime_filters;
#[cfg(test)]
mod settled;
#[cfg(test)]
mod slt;
#[cfg(test)]
mod spool;
#[cfg(test)]
mod standstill;
#[cfg(test)]
mod stragglers;
#[cfg(test)]
mod takes_place;
#[cfg(test)]
mod talk;
#[cfg(test)]
mod text_loading;
#[cfg(test)]
mod time_split;
#[cfg(test)]
mod turns;
#[cfg(test)]
mod write_faults;
#[cfg(test)]
mod zones;
