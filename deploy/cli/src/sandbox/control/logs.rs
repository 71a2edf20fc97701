//! Sending a log, and what is added to it.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::fs::File;
use tokio::io::AsyncReadExt;

use super::protocol::{Place, Response};
use super::server::Served;
use super::wire::Connection;
use crate::sandbox::components::ComponentName;
use crate::sandbox::files::Files;
use crate::sandbox::supervisor::log_file::rotated;

/// Between two looks at a log that is followed.
const LOOK: Duration = Duration::from_millis(100);
const CHUNK: usize = 64 << 10;

/// Whether to go on after the end of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follow {
    No,
    Yes,
}

/// Sends the log of that place.
pub async fn run(
    served: &Served,
    connection: &Connection,
    place: Place,
    tail: Option<usize>,
    follow: Follow,
) -> Response {
    let path = match path(served, place) {
        Ok(path) => path,
        Err(message) => return Response::failed(message),
    };
    match send(connection, &path, tail, follow).await {
        Ok(()) => Response::Done,
        Err(error) => Response::failed(format!("the log cannot be read: {error}")),
    }
}

fn path(served: &Served, place: Place) -> Result<PathBuf, String> {
    match place {
        Place::Component(name) => {
            let component: ComponentName = name.parse()?;
            match served.components.states().iter().any(|state| state.name == name) {
                true => Ok(Files.component_log(&component.file_name())),
                false => Err(format!("there is no component {name}")),
            }
        }
        Place::Pod { namespace, name, container } => {
            let pod = served.pod(&namespace, &name)?;
            let container = pod.container(container.as_deref())?;
            Ok(Files.container_log(&pod.uid, &container.name))
        }
        Place::Node(name) => Err(format!("a node has no log of its own; its proxy has: node-proxy/{name}")),
    }
}

async fn send(connection: &Connection, path: &Path, tail: Option<usize>, follow: Follow) -> io::Result<()> {
    let mut current = Position::default();
    let all = current.read_from_start(path).await?;
    for chunk in last_lines(&all, tail).chunks(CHUNK) {
        connection.send_bytes(chunk).await?;
    }
    if follow == Follow::No {
        return Ok(());
    }
    loop {
        tokio::select! {
            // Nothing is expected from the client but its end.
            _ = connection.receive() => return Ok(()),
            () = tokio::time::sleep(LOOK) => {}
        }
        for chunk in current.read_on(path).await?.chunks(CHUNK) {
            connection.send_bytes(chunk).await?;
        }
    }
}

/// Everything that a log holds.
pub(super) async fn read_whole(path: &Path) -> io::Result<Vec<u8>> {
    Position::default().read_from_start(path).await
}

/// How far a log has been read.
#[derive(Default)]
struct Position {
    file: Option<(File, u64)>,
}

impl Position {
    /// With what is in the file before this one.
    async fn read_from_start(&mut self, path: &Path) -> io::Result<Vec<u8>> {
        let before = read_or_nothing(&rotated(path)).await?;
        let now = self.read_on(path).await?;
        Ok([before, now].concat())
    }

    /// What came since the last call, over a change of files.
    async fn read_on(&mut self, path: &Path) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        if let Some((file, _)) = &mut self.file {
            file.read_to_end(&mut bytes).await?;
        }
        let inode = match tokio::fs::metadata(path).await {
            Ok(metadata) => metadata.ino(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(bytes),
            Err(error) => return Err(error),
        };
        if self.file.as_ref().is_none_or(|(_, known)| *known != inode) {
            let mut file = File::open(path).await?;
            file.read_to_end(&mut bytes).await?;
            self.file = Some((file, inode));
        }
        Ok(bytes)
    }
}

async fn read_or_nothing(path: &Path) -> io::Result<Vec<u8>> {
    match tokio::fs::read(path).await {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other,
    }
}

fn last_lines(text: &[u8], count: Option<usize>) -> &[u8] {
    let Some(count) = count else { return text };
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    let mut ends = body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at);
    match (count, count.checked_sub(1).and_then(|skip| ends.nth(skip))) {
        (0, _) => &[],
        (_, Some(at)) => &text[at + 1..],
        (_, None) => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines() {
        let text = b"a\nb\nc\n";
        assert_eq!(last_lines(text, None), text);
        assert_eq!(last_lines(text, Some(0)), b"");
        assert_eq!(last_lines(text, Some(1)), b"c\n");
        assert_eq!(last_lines(text, Some(2)), b"b\nc\n");
        assert_eq!(last_lines(text, Some(9)), text);
    }

    #[tokio::test]
    async fn reading_goes_on_over_a_change_of_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        let mut position = Position::default();
        assert_eq!(position.read_on(&path).await.unwrap(), b"");
        std::fs::write(&path, "one").unwrap();
        assert_eq!(position.read_on(&path).await.unwrap(), b"one");
        std::fs::rename(&path, rotated(&path)).unwrap();
        std::fs::write(&path, "two").unwrap();
        assert_eq!(position.read_on(&path).await.unwrap(), b"two");
        assert_eq!(position.read_on(&path).await.unwrap(), b"");
    }
}
