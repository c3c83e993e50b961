//! Handles that one coordinator knows: whose they are, and what is said of
//! those of another one.

use crate::Engine;
use crate::catalog::CoordinatorId;

/// A new handle of this coordinator, which nobody can guess.
pub(super) fn new_handle(coordinator: CoordinatorId) -> String {
    format!("{coordinator}-{}", uuid::Uuid::new_v4().simple())
}

/// The coordinator that made a handle, or a session's id; none where it is of
/// another form.
pub(super) fn maker(handle: &str) -> Option<CoordinatorId> {
    handle.split_once('-')?.0.parse().ok()
}

/// The other coordinator that made a handle, as a message names it.
pub(super) fn other_maker(engine: &Engine, handle: &str) -> Option<String> {
    let maker = maker(handle).filter(|maker| *maker != engine.coordinator())?;
    let known = engine.coordinators().into_iter().find(|it| it.id == maker);
    Some(match known {
        Some(known) => format!("coordinator {maker} ({})", known.address),
        None => format!("coordinator {maker}, which the cluster does not have (any more)"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_tells_who_made_it() {
        let handle = new_handle(12);
        assert_eq!(maker(&handle), Some(12));
        assert_ne!(handle, new_handle(12));
        for foreign in ["", "12", "x-1", "-1", "0123456789abcdef", "99999999999999999999-1"] {
            assert_eq!(maker(foreign), None, "{foreign}");
        }
    }
}
