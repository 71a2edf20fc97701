//! Log files of bounded size: when one is full it becomes `NAME.1`, and the one before that is dropped.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::fs::{File, OpenOptions};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::Mutex;
use tracing::warn;

/// Bytes in one file; twice as much is kept.
const FULL: u64 = 4 << 20;

/// Appends to a log. Clones share it.
#[derive(Clone)]
pub struct LogFile(Arc<Mutex<Inner>>);

struct Inner {
    path: PathBuf,
    file: File,
    size: u64,
}

impl LogFile {
    /// Opens the log, making it and its directory as needed.
    ///
    /// # Errors
    /// As opening a file.
    pub async fn open(path: &Path) -> io::Result<Self> {
        if let Some(parent) = path.parent() {
            tokio::fs::create_dir_all(parent).await?;
        }
        let file = append_to(path).await?;
        let size = file.metadata().await?.len();
        Ok(Self(Arc::new(Mutex::new(Inner { path: path.to_owned(), file, size }))))
    }

    /// Appends.
    ///
    /// # Errors
    /// As writing a file.
    pub async fn write(&self, bytes: &[u8]) -> io::Result<()> {
        let mut inner = self.0.lock().await;
        if inner.size >= FULL {
            let path = inner.path.clone();
            tokio::fs::rename(&path, rotated(&path)).await?;
            inner.file = append_to(&path).await?;
            inner.size = 0;
        }
        inner.file.write_all(bytes).await?;
        inner.file.flush().await?;
        inner.size += bytes.len() as u64;
        Ok(())
    }

    /// Copies a stream into the log until it ends, on a task of its own.
    pub fn follow(&self, mut stream: impl AsyncRead + Unpin + Send + 'static) {
        let log = self.clone();
        tokio::spawn(async move {
            let mut buffer = vec![0; 16 << 10];
            while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                if let Err(error) = log.write(&buffer[..count]).await {
                    warn!(%error, "a log could not be written; what is read from here on is dropped");
                }
            }
        });
    }
}

/// The file that holds what came before.
#[must_use]
pub fn rotated(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    PathBuf::from(name)
}

async fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_log_moves_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("logs/a.log");
        let log = LogFile::open(&path).await.unwrap();
        log.write(&vec![b'x'; usize::try_from(FULL).unwrap()]).await.unwrap();
        log.write(b"new\n").await.unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new\n");
        assert_eq!(std::fs::metadata(rotated(&path)).unwrap().len(), FULL);
    }
}
