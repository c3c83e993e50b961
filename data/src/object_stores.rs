//! S3-compatible object stores: only those that the operator names, with the
//! credentials of the environment (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT`, ...).

use std::sync::Arc;

use datafusion::execution::runtime_env::RuntimeEnv;
use object_store::aws::AmazonS3Builder;
use shoal_proto::{ErrorCode, Failure};
use url::Url;

/// Lets plans on this node read below the given prefixes, such as
/// `s3://bucket/path`.
///
/// # Errors
/// `Invalid`, naming a prefix that is none, or what the store lacks.
pub fn register_object_stores(runtime: &RuntimeEnv, prefixes: &[String]) -> Result<(), Failure> {
    for prefix in prefixes {
        let refuse = |what: String| {
            Failure::new(
                ErrorCode::Invalid,
                format!("object store `{prefix}`: {what}; name one as s3://bucket or s3://bucket/path"),
            )
        };
        let url = Url::parse(prefix).map_err(|error| refuse(error.to_string()))?;
        let bucket = url.host_str().ok_or_else(|| refuse("there is no bucket in it".into()))?;
        if url.scheme() != "s3" {
            return Err(refuse(format!("{}:// is not supported", url.scheme())));
        }
        let store = AmazonS3Builder::from_env()
            .with_bucket_name(bucket)
            .build()
            .map_err(|error| refuse(error.to_string()))?;
        let root = Url::parse(&format!("s3://{bucket}")).map_err(|error| refuse(error.to_string()))?;
        runtime.register_object_store(&root, Arc::new(store));
    }
    Ok(())
}

/// Whether a URL is below one of the prefixes.
pub fn is_allowed(prefixes: &[String], url: &Url) -> bool {
    // The URL parser has resolved `..` already.
    prefixes.iter().any(|prefix| {
        url.as_str()
            .strip_prefix(prefix.trim_end_matches('/'))
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_below_a_prefix_is_allowed() {
        let prefixes = ["s3://lake/public/".to_owned()];
        let allowed = |url: &str| is_allowed(&prefixes, &Url::parse(url).unwrap());
        assert!(allowed("s3://lake/public/a.parquet") && allowed("s3://lake/public"));
        for outside in [
            "s3://lake/publicity/a",
            "s3://lake/public/../private",
            "s3://other/public/a",
            "http://169.254.169.254/",
        ] {
            assert!(!allowed(outside), "{outside}");
        }
    }

    #[test]
    fn a_wrong_prefix_is_named() {
        for wrong in ["lake", "gs://lake", "s3:///path"] {
            let error = register_object_stores(&RuntimeEnv::default(), &[wrong.to_owned()]).unwrap_err();
            assert!(error.message.contains(wrong), "{error}");
        }
    }
}
