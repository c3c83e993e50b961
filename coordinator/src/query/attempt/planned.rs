//! The plan of an attempt.

use std::sync::Arc;

use super::Pinned;
use crate::query::join_room::Joins;
use crate::query::rows_stay::{may_read, staying};
use crate::query::session_state::{Failover, PhysicalPlan};
use crate::query::view::View;

/// Plans an attempt. Where rows are to stay on the workers, and the plan leaves them there, it is
/// one without rows; otherwise the best for rows that come to the coordinator.
///
/// # Errors
/// Those of planning.
pub(super) async fn planned(
    pinned: &Pinned,
    view: &Arc<View>,
    failover: Option<Failover>,
    joins: Joins,
) -> datafusion::common::Result<PhysicalPlan> {
    let Pinned { planning, plan, options, timeline, .. } = pinned;
    // Told of each attempt, also where the rows of this one cannot stay.
    let stay = pinned.stay.as_ref().filter(|stay| stay.taker.begin(options.attempt));
    if let Some(stay) = stay
        && may_read(plan, stay.bytes_min)?
    {
        // As for all other plans: that a scan can be resumed is of use only to who gets its rows.
        match planning.physical(plan, view, options, false, None, joins).await {
            Ok(physical) => {
                if let Some(plan) = staying(&physical.plan, stay, options)? {
                    return Ok(PhysicalPlan { plan, ..physical });
                }
            }
            Err(error) => {
                tracing::debug!(query_id = %options.query, %error, "rows do not stay: no such plan");
            }
        }
    }
    let kept = pinned.kept.as_ref();
    // Where the time goes is asked of planning, too.
    match kept.filter(|_| timeline.is_none() && options.attempt == 1 && joins == Joins::ByRoom) {
        Some(kept) => planning.physical_or_kept(kept, plan, view, options, failover).await,
        None => planning.physical(plan, view, options, timeline.is_some(), failover, joins).await,
    }
}
