//! Copies of a request's body on their way to mirrors. Whoever reads the body for the backend writes the copies and never waits
//! for them: one that is not taken in time is cut, and so is one for which the workload's memory would be needed.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use tokio::sync::Notify;

use crate::limits::{MemoryCharge, WorkloadLimits};
use crate::reason::Reason;
use crate::telemetry::Failure;

/// Bytes of one copy that may wait for their mirror: more than a tunnel's largest window, or a mirror as fast as the backend would
/// lose its copy to a pause of either.
const MOST_WAITING: usize = 16 << 20;

struct Queue {
    frames: VecDeque<Frame<Bytes>>,
    bytes: usize,
    /// Of the bytes.
    charge: MemoryCharge,
    limits: Arc<WorkloadLimits>,
    /// Nothing more is written: it was all, or why it was not.
    end: Option<Result<(), Failure>>,
    reader: Option<Waker>,
    /// Told when the end is a failure: a reader that is stuck itself does not ask for more.
    failed: Rc<Notify>,
}

impl Queue {
    fn close(&mut self, end: Result<(), Failure>) {
        if self.end.is_some() {
            return;
        }
        if end.is_err() {
            self.clear();
            self.failed.notify_one();
        }
        self.end = Some(end);
        self.wake();
    }

    fn push(&mut self, frame: Frame<Bytes>, bytes: usize) {
        self.frames.push_back(frame);
        self.bytes += bytes;
        self.charge.set(self.bytes as u64);
        self.wake();
    }

    fn clear(&mut self) {
        self.frames.clear();
        self.bytes = 0;
        self.charge.set(0);
    }

    fn wake(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

/// Where the body is written to, piece by piece.
pub struct CopyWriter(Rc<RefCell<Queue>>);

/// The copy as a mirror's request has it.
pub struct CopyReader {
    queue: Rc<RefCell<Queue>>,
    hint: SizeHint,
}

/// Says whether a copy is still being written, and when it will never be whole.
#[derive(Clone)]
pub struct CopyWatch(Rc<RefCell<Queue>>);

/// A copy of a body of that size.
pub fn copy(limits: &Arc<WorkloadLimits>, hint: SizeHint) -> (CopyWriter, CopyReader) {
    let queue = Queue {
        frames: VecDeque::new(),
        bytes: 0,
        charge: limits.charge(0),
        limits: limits.clone(),
        end: None,
        reader: None,
        failed: Rc::default(),
    };
    let queue = Rc::new(RefCell::new(queue));
    (CopyWriter(queue.clone()), CopyReader { queue, hint })
}

impl CopyWriter {
    pub fn data(&self, bytes: &Bytes) {
        let mut queue = self.0.borrow_mut();
        if queue.end.is_some() {
            return;
        }
        let waiting = queue.bytes + bytes.len();
        if waiting > MOST_WAITING || !queue.limits.has_to_spare() {
            let message = format!(
                "{waiting} bytes of the request's body wait for the mirror, which does not take them"
            );
            return queue.close(Err(Failure::new(Reason::MirrorSlow, message)));
        }
        queue.push(Frame::data(bytes.clone()), bytes.len());
    }

    pub fn trailers(&self, trailers: &HeaderMap) {
        let mut queue = self.0.borrow_mut();
        if queue.end.is_none() {
            queue.push(Frame::trailers(trailers.clone()), 0);
        }
    }

    /// That was all.
    pub fn finish(&self) {
        self.0.borrow_mut().close(Ok(()));
    }
}

impl Drop for CopyWriter {
    fn drop(&mut self) {
        let message = "the request's body was not read to its end";
        self.0.borrow_mut().close(Err(Failure::new(Reason::ClientCancelled, message)));
    }
}

impl CopyReader {
    pub fn watch(&self) -> CopyWatch {
        CopyWatch(self.queue.clone())
    }

    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let mut queue = self.queue.borrow_mut();
        if let Some(frame) = queue.frames.pop_front() {
            queue.bytes -= frame.data_ref().map_or(0, Bytes::len);
            let left = queue.bytes as u64;
            queue.charge.set(left);
            return Poll::Ready(Some(Ok(frame)));
        }
        match &queue.end {
            Some(Ok(())) => Poll::Ready(None),
            Some(Err(failure)) => Poll::Ready(Some(Err(failure.clone()))),
            None => {
                queue.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    pub fn is_end_stream(&self) -> bool {
        let queue = self.queue.borrow();
        queue.frames.is_empty() && matches!(queue.end, Some(Ok(())))
    }

    /// Of the whole.
    pub fn size_hint(&self) -> SizeHint {
        self.hint
    }
}

impl Drop for CopyReader {
    fn drop(&mut self) {
        // Nobody waits for more: the writer need not keep it.
        let mut queue = self.queue.borrow_mut();
        queue.clear();
        queue.end.get_or_insert(Ok(()));
    }
}

impl CopyWatch {
    pub fn is_open(&self) -> bool {
        self.0.borrow().end.is_none()
    }

    /// Waits until it is known that the copy will not be whole.
    pub async fn failed(&self) -> Failure {
        let failed = self.0.borrow().failed.clone();
        loop {
            if let Some(Err(failure)) = &self.0.borrow().end {
                return failure.clone();
            }
            failed.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures::FutureExt;

    use super::*;
    use crate::tunnel::testing::at_most;

    const PIECE: usize = 64 << 10;

    fn limits(memory: u64) -> Arc<WorkloadLimits> {
        WorkloadLimits::new(at_most(1, memory))
    }

    fn next(reader: &mut CopyReader) -> Option<Option<Result<Bytes, Reason>>> {
        let frame = poll_fn(|cx| reader.poll_frame(cx)).now_or_never()?;
        Some(frame.map(|frame| match frame {
            Ok(frame) => Ok(frame.into_data().unwrap_or_default()),
            Err(failure) => Err(failure.reason),
        }))
    }

    #[test]
    fn a_copy_is_read_as_it_was_written() {
        let limits = limits(1 << 30);
        let (writer, mut reader) = copy(&limits, SizeHint::with_exact(8));
        assert_eq!((next(&mut reader), reader.size_hint().exact()), (None, Some(8)));
        writer.data(&Bytes::from_static(b"one "));
        writer.data(&Bytes::from_static(b"more"));
        assert_eq!(limits.memory(), 8);
        assert_eq!(next(&mut reader), Some(Some(Ok(Bytes::from_static(b"one ")))));
        assert!(reader.watch().is_open());
        writer.finish();
        drop(writer);
        assert!(!reader.watch().is_open() && !reader.is_end_stream());
        assert_eq!(next(&mut reader), Some(Some(Ok(Bytes::from_static(b"more")))));
        assert!(reader.is_end_stream());
        assert_eq!((next(&mut reader), limits.memory()), (Some(None), 0));
    }

    #[test]
    fn a_mirror_that_takes_nothing_is_cut_and_its_bytes_are_given_back() {
        for (memory, pieces) in [(1 << 30, MOST_WAITING / PIECE), (8 * PIECE as u64, 4)] {
            let limits = limits(memory);
            let (writer, mut reader) = copy(&limits, SizeHint::new());
            for _ in 0..pieces {
                writer.data(&Bytes::from(vec![0; PIECE]));
            }
            assert_eq!(limits.memory(), (pieces * PIECE) as u64);
            writer.data(&Bytes::from(vec![0; PIECE]));
            assert_eq!(limits.memory(), 0, "with {memory}");
            writer.data(&Bytes::from_static(b"more"));
            writer.finish();
            assert_eq!(next(&mut reader), Some(Some(Err(Reason::MirrorSlow))));
        }
    }

    #[test]
    fn a_body_that_is_given_up_is_no_whole_copy() {
        let limits = limits(1 << 30);
        let (writer, mut reader) = copy(&limits, SizeHint::new());
        writer.data(&Bytes::from_static(b"half"));
        drop(writer);
        assert_eq!(next(&mut reader), Some(Some(Err(Reason::ClientCancelled))));
        let (writer, reader) = copy(&limits, SizeHint::new());
        drop(reader);
        writer.data(&Bytes::from_static(b"for nobody"));
        assert_eq!(limits.memory(), 0);
    }
}
