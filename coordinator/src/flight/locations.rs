//! Where the rows of a query may be fetched.

use crate::catalog::Coordinator;

/// Flight's name for the connection over which the client asked.
const PRESENT_CONNECTION: &str = "arrow-flight-reuse-connection://?";

/// The places of an endpoint, in the order in which they should be tried; none
/// where there is one coordinator only, as clients then stay on their connection.
///
/// The coordinator that was asked comes first: it has the plan. The present
/// connection comes last, for clients that reach coordinators at other addresses
/// than those have among themselves: some drivers know only the first place, and
/// not this name.
pub(super) fn locations(coordinators: &[Coordinator]) -> Vec<String> {
    let Some(asked) = coordinators.iter().position(|it| it.is_self) else { return Vec::new() };
    if coordinators.len() < 2 {
        return Vec::new();
    }
    // Each coordinator names another one as the next, so that the clients of one that
    // is gone do not all come to the same.
    let (before, from_asked) = coordinators.split_at(asked);
    let in_turn = from_asked.iter().chain(before);
    let places = in_turn.filter(|it| it.is_voter || it.is_self).map(|it| place(&it.address));
    places.chain([PRESENT_CONNECTION.to_owned()]).collect()
}

/// The URL of a coordinator in the form that Flight has for it.
fn place(address: &str) -> String {
    let address = address.trim_end_matches('/');
    match address.split_once("://") {
        Some(("https", rest)) => format!("grpc+tls://{rest}"),
        Some((_, rest)) => format!("grpc+tcp://{rest}"),
        None => format!("grpc+tcp://{address}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(numbers: &[u64], asked: u64, expected: &[&str]) {
        let coordinators: Vec<Coordinator> = numbers
            .iter()
            .map(|id| Coordinator {
                id: *id,
                address: format!("http://10.0.0.{id}:7400"),
                // The last one has only begun to follow.
                is_voter: *id != 9,
                is_leader: *id == 1,
                is_self: *id == asked,
            })
            .collect();
        assert_eq!(locations(&coordinators), expected, "{asked} of {numbers:?}");
    }

    #[test]
    fn the_one_that_was_asked_comes_first_and_the_present_connection_last() {
        let [one, two, three] = [1, 2, 3].map(|id| format!("grpc+tcp://10.0.0.{id}:7400"));
        check(&[1, 2, 3], 1, &[&one, &two, &three, PRESENT_CONNECTION]);
        check(&[1, 2, 3, 9], 2, &[&two, &three, &one, PRESENT_CONNECTION]);
        check(&[1, 2, 3], 3, &[&three, &one, &two, PRESENT_CONNECTION]);
    }

    #[test]
    fn a_coordinator_that_is_alone_names_no_place() {
        check(&[1], 1, &[]);
        // One that was never counted in.
        check(&[1, 2], 7, &[]);
    }

    #[test]
    fn a_place_is_named_as_flight_does() {
        assert_eq!(place("http://host:1"), "grpc+tcp://host:1");
        assert_eq!(place("https://host:1"), "grpc+tls://host:1");
        assert_eq!(place("http://[::1]:1/"), "grpc+tcp://[::1]:1");
    }
}
