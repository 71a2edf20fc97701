//! What the query of a request asks of its answer.

use http::{HeaderName, HeaderValue, StatusCode};
use std::time::Duration;

/// Longest `?delay=` and `?every=`, largest `?size=` and `?chunks=`, so that a typing error does not hold a test for ever.
const MAX_DELAY: Duration = Duration::from_secs(600);
const MAX_SIZE: u64 = 16 << 30;
const MAX_CHUNKS: u64 = 1_000_000;

#[derive(Debug, PartialEq)]
pub(super) struct Wishes {
    /// `status=418`
    pub(super) status: StatusCode,
    /// `delay=100ms`: before the answer.
    pub(super) delay: Duration,
    /// `size=1000`: so many bytes instead of JSON.
    pub(super) size: Option<u64>,
    /// `chunks=10`: so many lines instead of JSON, each a chunk.
    pub(super) chunks: Option<u64>,
    /// `every=100ms`: between two chunks.
    pub(super) every: Duration,
    /// `trailer=VALUE`: the trailer `x-echo-trailer` after the body.
    pub(super) trailer: Option<HeaderValue>,
    /// `header=NAME:VALUE`: more headers of the answer.
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) ending: Ending,
    pub(super) reading: Reading,
}

/// How the body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Whole,
    /// `abort=1`: the connection, or the stream, breaks before the end.
    Broken,
}

/// Whether the request's body is read first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    Whole,
    /// `unread=1`: a client that waits for `100 Continue` gets the final answer instead.
    Nothing,
}

impl Wishes {
    /// # Errors
    /// Which part of the query makes no sense, and what is expected.
    pub(super) fn parse(query: &str) -> Result<Self, String> {
        let mut wishes = Self {
            status: StatusCode::OK,
            delay: Duration::ZERO,
            size: None,
            chunks: None,
            every: Duration::ZERO,
            trailer: None,
            headers: Vec::new(),
            ending: Ending::Whole,
            reading: Reading::Whole,
        };
        query.split('&').filter_map(|pair| pair.split_once('=')).try_for_each(|(key, value)| {
            wishes.take(key, value).map_err(|expected| format!("{key} {value:?}: expected {expected}"))
        })?;
        Ok(wishes)
    }

    fn take(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "status" => {
                let status = value.parse().ok().and_then(|code: u16| StatusCode::from_u16(code).ok());
                self.status = status.filter(|status| !status.is_informational()).ok_or("200 to 999")?;
            }
            "delay" => self.delay = duration(value)?,
            "every" => self.every = duration(value)?,
            "size" => self.size = Some(number(value, MAX_SIZE)?),
            "chunks" => self.chunks = Some(number(value, MAX_CHUNKS)?),
            "trailer" => {
                self.trailer = Some(HeaderValue::from_str(value).map_err(|error| error.to_string())?);
            }
            "header" => {
                let (name, value) = value.split_once(':').ok_or("NAME:VALUE")?;
                let name = HeaderName::from_bytes(name.as_bytes()).map_err(|error| error.to_string())?;
                let value = HeaderValue::from_str(value).map_err(|error| error.to_string())?;
                self.headers.push((name, value));
            }
            "abort" if value == "1" => self.ending = Ending::Broken,
            "unread" if value == "1" => self.reading = Reading::Nothing,
            _ => {}
        }
        Ok(())
    }
}

fn number(value: &str, most: u64) -> Result<u64, String> {
    value.parse().ok().filter(|number| *number <= most).ok_or_else(|| format!("a number, at most {most}"))
}

/// `100ms`, `2s`; a bare number is milliseconds.
fn duration(text: &str) -> Result<Duration, String> {
    let parsed = if let Some(millis) = text.strip_suffix("ms") {
        millis.parse().ok().map(Duration::from_millis)
    } else if let Some(seconds) = text.strip_suffix('s') {
        seconds.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
    } else {
        text.parse().ok().map(Duration::from_millis)
    };
    let expected = || format!("a number with ms or s, at most {} s", MAX_DELAY.as_secs());
    parsed.filter(|duration| *duration <= MAX_DELAY).ok_or_else(expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_says_how_to_answer() {
        let wishes = Wishes::parse("a=b&status=418&delay=100ms&size=7&header=x-a:1&header=x-a:2").unwrap();
        assert_eq!((wishes.status.as_u16(), wishes.delay.as_millis(), wishes.size), (418, 100, Some(7)));
        assert_eq!(
            wishes.headers.iter().map(|(_, value)| value.to_str().unwrap()).collect::<Vec<_>>(),
            ["1", "2"]
        );
        let streamed = Wishes::parse("chunks=3&every=1.5s&trailer=done&abort=1&unread=1").unwrap();
        assert_eq!((streamed.chunks, streamed.every.as_millis()), (Some(3), 1500));
        assert_eq!((streamed.ending, streamed.reading), (Ending::Broken, Reading::Nothing));
        assert_eq!(streamed.trailer.unwrap(), "done");
    }

    #[test]
    fn a_query_that_cannot_be_honoured_is_an_error() {
        for bad in [
            "status=abc",
            "status=100",
            "delay=soon",
            "delay=9999s",
            "size=-1",
            "delay=-1s",
            "every=x",
            "chunks=many",
            "header=x",
            "header=a b:c",
        ] {
            assert!(Wishes::parse(bad).is_err(), "{bad}");
        }
    }
}
