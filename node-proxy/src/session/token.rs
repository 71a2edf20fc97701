//! A session as its client carries it: when it began, with which backend and endpoint.

use super::keys::{LONGEST, SealedBy, SessionKeys};

/// Sealed texts are as long as the next multiple of this, so that they do not tell how long names are.
const BLOCK: usize = 64;

/// A session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Seconds since the epoch.
    pub began: u64,
    /// As [`super::backend_name`] calls it.
    pub backend: String,
    /// The uid of its workload.
    pub endpoint: String,
}

impl Session {
    /// `None` without a key, or when names are longer than any.
    pub fn seal(&self, keys: &SessionKeys, scope: &[u8]) -> Option<String> {
        let mut text = self.began.to_be_bytes().to_vec();
        for part in [&self.backend, &self.endpoint] {
            text.extend(u16::try_from(part.len()).ok()?.to_be_bytes());
            text.extend(part.as_bytes());
        }
        text.resize(text.len().next_multiple_of(BLOCK), 0);
        keys.seal(scope, text).filter(|sealed| sealed.len() <= LONGEST)
    }

    /// `None` for what was not sealed for this scope with one of these keys.
    pub fn open(keys: &SessionKeys, scope: &[u8], token: &str) -> Option<(Self, SealedBy)> {
        let (text, by) = keys.open(scope, token)?;
        let (began, rest) = text.split_first_chunk::<8>()?;
        let (backend, rest) = part(rest)?;
        let (endpoint, _) = part(rest)?;
        Some((Self { began: u64::from_be_bytes(*began), backend, endpoint }, by))
    }
}

fn part(text: &[u8]) -> Option<(String, &[u8])> {
    let (length, rest) = text.split_first_chunk::<2>()?;
    let (part, rest) = rest.split_at_checked(u16::from_be_bytes(*length).into())?;
    Some((String::from_utf8(part.to_vec()).ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_comes_back_as_it_went_and_its_length_tells_little() {
        let keys = SessionKeys::new([(1, &[7; 32][..])]).unwrap();
        let session = |name: &str| Session {
            began: 1_800_000_000,
            backend: "shop/cart:80".to_owned(),
            endpoint: format!("Kubernetes//Pod/shop/{name}/0a1b"),
        };
        let (short, long) = (session("cart-5d9c7-x2v9k"), session("cart-canary-5d9c7-x2v9k"));
        let sealed = short.seal(&keys, b"r").unwrap();
        assert_eq!(Session::open(&keys, b"r", &sealed), Some((short, SealedBy::Current)));
        assert_eq!(sealed.len(), long.seal(&keys, b"r").unwrap().len());
        assert!(!sealed.contains("cart"));
        let endless = Session { endpoint: "n".repeat(2000), ..long };
        assert_eq!(endless.seal(&keys, b"r"), None);
    }
}
