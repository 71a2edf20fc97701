//! Every request as it ends, for those who watch: whatever the access log is told to write, and never at the cost of the
//! data path. Who watches too slowly misses some, and is told how many.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;

/// Lines that a follower may lag behind.
const BEHIND: usize = 4096;

/// Who watches.
#[derive(Debug)]
pub(super) struct Live {
    lines: broadcast::Sender<Bytes>,
    /// Asked for every request, without a lock.
    followers: Arc<AtomicUsize>,
}

impl Live {
    pub fn new() -> Self {
        Self { lines: broadcast::Sender::new(BEHIND), followers: Arc::default() }
    }

    pub fn is_followed(&self) -> bool {
        self.followers.load(Ordering::Relaxed) > 0
    }

    /// One JSON text with its line end.
    pub fn tell(&self, line: String) {
        // Fails when the last follower has just left.
        let _ = self.lines.send(line.into());
    }

    /// Lines from now on. `{"missed":N}` stands where N lines were lost to a follower that was too slow.
    pub fn follow(&self) -> impl Stream<Item = Bytes> + Send + 'static {
        let following = Following::begin(&self.followers);
        BroadcastStream::new(self.lines.subscribe()).map(move |line| {
            let _held = &following;
            match line {
                Ok(line) => line,
                Err(BroadcastStreamRecvError::Lagged(missed)) => format!("{{\"missed\":{missed}}}\n").into(),
            }
        })
    }
}

/// Counts a follower until it is dropped.
struct Following(Arc<AtomicUsize>);

impl Following {
    fn begin(followers: &Arc<AtomicUsize>) -> Self {
        followers.fetch_add(1, Ordering::Relaxed);
        Self(followers.clone())
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn followers_see_what_comes_after_them_or_how_much_they_missed() {
        let live = Live::new();
        assert!(!live.is_followed());
        let mut quick = Box::pin(live.follow());
        let slow = Box::pin(live.follow());
        assert!(live.is_followed());
        for number in 0..2 * BEHIND {
            live.tell(format!("{number}\n"));
            assert_eq!(quick.next().await.unwrap(), format!("{number}\n"));
        }
        let lines: Vec<Bytes> = slow.take(2).collect().await;
        assert_eq!(lines[0], format!("{{\"missed\":{BEHIND}}}\n"));
        assert_eq!(lines[1], format!("{BEHIND}\n"));
        drop(quick);
        assert!(!live.is_followed());
    }
}
