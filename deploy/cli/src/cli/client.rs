//! The client's end of the control socket.

use anyhow::{Context, anyhow, bail};
use serde_json::Value;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::timeout;

use culvert_objects::{encoding, manifest};

use crate::sandbox::control::place::Place;
use crate::sandbox::control::protocol::{Request, Response, SourceFile};
use crate::sandbox::control::wire::Connection;

/// The supervisor answers at once; only waiting and stopping take longer.
const ANSWER: Duration = Duration::from_secs(30);

/// Connects to the sandbox of that name.
///
/// # Errors
/// When there is none; the message says how to start it.
pub fn connect(place: &Place) -> anyhow::Result<Connection> {
    from_stream(place.connect()?)
}

/// Makes a connection of a socket.
///
/// # Errors
/// Outside of a runtime.
pub fn from_stream(stream: UnixStream) -> anyhow::Result<Connection> {
    stream.set_nonblocking(true)?;
    Ok(Connection::new(tokio::net::UnixStream::from_std(stream)?))
}

/// Sends a request on a connection of its own and returns the answer.
///
/// # Errors
/// What the supervisor says went wrong, or that it is gone.
pub async fn ask(place: &Place, request: &Request) -> anyhow::Result<Response> {
    ask_within(place, request, ANSWER).await
}

/// As [`ask`], with another deadline.
///
/// # Errors
/// As [`ask`].
pub async fn ask_within(place: &Place, request: &Request, limit: Duration) -> anyhow::Result<Response> {
    let connection = connect(place)?;
    connection.send(request, &[]).await.context("the supervisor")?;
    timeout(limit, answer(&connection))
        .await
        .map_err(|_| anyhow!("the supervisor did not answer within {} s", limit.as_secs()))?
}

/// The next answer on a connection.
///
/// # Errors
/// As [`ask`].
pub async fn answer(connection: &Connection) -> anyhow::Result<Response> {
    let frame = connection.receive().await.context("the supervisor")?;
    let frame = frame.ok_or_else(|| anyhow!("the sandbox has ended"))?;
    match frame.message().context("the supervisor")? {
        Response::Failed { message } => bail!(message),
        response => Ok(response),
    }
}

/// The text and value of a report.
///
/// # Errors
/// When it is none.
pub fn report(response: Response) -> anyhow::Result<(String, Value)> {
    match response {
        Response::Report { text, value } => Ok((text, value)),
        other => bail!("the supervisor gave an unexpected answer: {other:?}"),
    }
}

/// Reads manifests: files, directories, `-` for standard input. Checks them, so that mistakes show before anything is
/// started.
///
/// # Errors
/// Names every mistake with file, document and field.
pub fn read_manifests(paths: &[PathBuf]) -> anyhow::Result<Vec<SourceFile>> {
    let mut files = Vec::new();
    for path in paths {
        if path == Path::new("-") {
            let mut bytes = Vec::new();
            std::io::stdin().read_to_end(&mut bytes).context("standard input")?;
            let text = encoding::text(bytes).context("standard input")?;
            files.push(SourceFile { path: PathBuf::from("standard input"), text });
            continue;
        }
        let found = match path.is_dir() {
            true => manifest::files_below(path).with_context(|| path.display().to_string())?,
            false => vec![path.clone()],
        };
        for path in found {
            let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
            let text = encoding::text(bytes).with_context(|| path.display().to_string())?;
            files.push(SourceFile { path, text });
        }
    }
    SourceFile::parse_all(&files).into_result()?;
    Ok(files)
}
