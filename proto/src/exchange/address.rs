//! Workers as the planner names them: a URL whose path is the worker's id, so
//! that an error can name the worker and not only a port.

use datafusion::common::{DataFusionError, Result, plan_datafusion_err};
use url::Url;

use crate::WorkerId;

/// The URL that stands for `worker`, which is reached at `address`.
///
/// # Errors
/// Where `address` is no URL.
pub fn worker_url(address: &str, worker: &WorkerId) -> Result<Url> {
    let mut url = Url::parse(address)
        .map_err(|error| plan_datafusion_err!("worker {worker} has the address `{address}`: {error}"))?;
    url.set_path(worker.as_str());
    Ok(url)
}

/// The id of the worker that a URL stands for.
pub fn worker_of(url: &Url) -> &str {
    url.path().trim_start_matches('/')
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
    fn a_url_names_its_worker_and_its_address() {
        let url = worker_url("http://127.0.0.1:7401", &WorkerId::from("worker-1")).unwrap();
        assert_eq!(worker_of(&url), "worker-1");
        assert_eq!(address_of(&url).unwrap(), "http://127.0.0.1:7401");
        assert!(worker_url("nowhere", &WorkerId::from("w")).is_err());
    }
}
