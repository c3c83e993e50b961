//! Nothing after an error is polled: what still runs for a stream that failed is let go of at once.

use futures::{Stream, StreamExt};

/// The items of `stream` up to the first error, with which the stream is dropped.
pub(super) fn until_error<T, E>(
    stream: impl Stream<Item = Result<T, E>> + Unpin,
) -> impl Stream<Item = Result<T, E>> {
    futures::stream::unfold(Some(stream), |stream| async move {
        let mut stream = stream?;
        let item = stream.next().await?;
        let rest = item.is_ok().then_some(stream);
        Some((item, rest))
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn what_failed_is_dropped_with_its_error_and_never_polled_again() {
        let held = Arc::new(());
        let holder = Arc::clone(&held);
        let items = [Ok(1), Ok(2), Err("lost"), Ok(3), Err("lost again")];
        let stream = futures::stream::iter(items).inspect(move |_| {
            let _runs = &holder;
        });
        let mut rows = Box::pin(until_error(stream));
        assert_eq!(rows.next().await, Some(Ok(1)));
        assert_eq!(rows.next().await, Some(Ok(2)));
        assert_eq!(Arc::strong_count(&held), 2, "it is dropped too early");
        assert_eq!(rows.next().await, Some(Err("lost")));
        assert_eq!(Arc::strong_count(&held), 1, "it still runs");
        assert_eq!(rows.next().await, None);
    }
}
