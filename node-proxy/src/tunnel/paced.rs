//! Bounds what a tunnel does in one turn: its driver reads until the socket is empty, which under load is never.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::copy::{QUANTUM, give_way};

/// A socket whose reader gives way after [`QUANTUM`] bytes.
#[derive(Debug)]
pub(super) struct Paced<T> {
    inner: T,
    read: usize,
}

impl<T> Paced<T> {
    pub fn new(inner: T) -> Self {
        Self { inner, read: 0 }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Paced<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read >= QUANTUM {
            self.read = 0;
            give_way();
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let poll = Pin::new(&mut self.inner).poll_read(cx, buf);
        if poll.is_pending() {
            self.read = 0;
        }
        ready!(poll)?;
        self.read += buf.filled().len() - before;
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Paced<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test]
    async fn an_endless_source_gives_way_after_a_quantum() {
        let mut paced = Paced::new(tokio::io::repeat(7));
        let mut buffer = vec![0; 64 << 10];
        let mut in_a_row = 0;
        poll_fn(|cx| {
            let mut buf = ReadBuf::new(&mut buffer);
            match Pin::new(&mut paced).poll_read(cx, &mut buf) {
                Poll::Ready(result) => {
                    result.unwrap();
                    in_a_row += buf.filled().len();
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
                Poll::Pending => Poll::Ready(()),
            }
        })
        .await;
        assert_eq!(in_a_row, QUANTUM);
    }
}
