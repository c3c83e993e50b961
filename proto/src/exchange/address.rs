//! Workers as the planner names them: a URL whose path is the worker's id, so
//! that an error can name the worker and not only a port, and whose query is its
//! zone, so that whoever gets rows from there knows whether they crossed zones.

use datafusion::common::{DataFusionError, Result, plan_datafusion_err};
use url::Url;

use crate::WorkerId;

/// The key of a worker's zone in its URL.
const ZONE: &str = "zone";

/// The URL that stands for `worker`, which is reached at `address` and stands in
/// `zone`, which may be empty.
///
/// # Errors
/// Where `address` is no URL.
pub fn worker_url(address: &str, worker: &WorkerId, zone: &str) -> Result<Url> {
    let mut url = Url::parse(address)
        .map_err(|error| plan_datafusion_err!("worker {worker} has the address `{address}`: {error}"))?;
    url.set_path(worker.as_str());
    if !zone.is_empty() {
        url.query_pairs_mut().append_pair(ZONE, zone);
    }
    Ok(url)
}

/// The id of the worker that a URL stands for.
pub fn worker_of(url: &Url) -> &str {
    url.path().trim_start_matches('/')
}

/// The zone of the worker that a URL stands for; empty where it has none.
pub fn zone_of(url: &Url) -> String {
    let zone = url.query_pairs().find(|(key, _)| key == ZONE);
    zone.map(|(_, zone)| zone.into_owned()).unwrap_or_default()
}

/// The address that a channel connects to.
///
/// # Errors
/// Where the URL has no host or port.
pub fn address_of(url: &Url) -> Result<String> {
    match (url.host_str(), url.port_or_known_default()) {
        (Some(host), Some(port)) => Ok(format!("{}://{host}:{port}", url.scheme())),
        _ => Err(DataFusionError::Internal(format!("worker URL `{url}` has no host or port"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_its_worker_its_zone_and_its_address() {
        for zone in ["", "north", "rack 1/a&b=ü"] {
            let url = worker_url("http://127.0.0.1:7401", &WorkerId::from("worker-1"), zone).unwrap();
            // As it comes out of a plan.
            let url = Url::parse(url.as_str()).unwrap();
            assert_eq!(worker_of(&url), "worker-1");
            assert_eq!(zone_of(&url), zone);
            assert_eq!(address_of(&url).unwrap(), "http://127.0.0.1:7401");
        }
        assert!(worker_url("nowhere", &WorkerId::from("w"), "").is_err());
    }
}
