//! What clients carry of their sessions is sealed: they can neither read it nor make one, for every node proxy of the mesh has
//! the same keys and nobody else has them. AES-256-GCM-SIV (RFC 8452): a nonce that comes twice gives nothing away but that.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use thiserror::Error;

/// Bytes of a secret.
pub const SECRET: usize = 32;
/// Longest text that is taken for sealed.
pub const LONGEST: usize = 1024;

const ID: usize = 4;
/// Part of what is authenticated, so that a key for something else, or for another form of this, opens none of it.
const PURPOSE: &[u8] = b"culvert session 1\0";

/// Why keys are none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadKeys {
    #[error("a session key of {0} bytes, expected {SECRET}")]
    Length(usize),
    #[error("two session keys are called {0:08x}")]
    Repeated(u32),
}

/// The keys in force: the first seals, each opens.
#[derive(Default)]
pub struct SessionKeys(Vec<SessionKey>);

struct SessionKey {
    id: u32,
    secret: [u8; SECRET],
    cipher: LessSafeKey,
}

/// Which key sealed something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SealedBy {
    Current,
    /// One that will be gone: what it sealed is to be sealed again.
    Another,
}

impl SessionKeys {
    /// # Errors
    /// When one is too short or too long, or two have the same name.
    pub fn new<'k>(keys: impl IntoIterator<Item = (u32, &'k [u8])>) -> Result<Self, BadKeys> {
        let mut all: Vec<SessionKey> = Vec::new();
        for (id, secret) in keys {
            if all.iter().any(|known| known.id == id) {
                return Err(BadKeys::Repeated(id));
            }
            let bad = || BadKeys::Length(secret.len());
            let secret = secret.try_into().map_err(|_| bad())?;
            let cipher = UnboundKey::new(&AES_256_GCM_SIV, &secret as &[u8; SECRET]).map_err(|_| bad())?;
            all.push(SessionKey { id, secret, cipher: LessSafeKey::new(cipher) });
        }
        Ok(Self(all))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Seals something for a scope, outside of which it does not open. `None` without a key.
    pub fn seal(&self, scope: &[u8], mut text: Vec<u8>) -> Option<String> {
        let key = self.0.first()?;
        let nonce: [u8; NONCE_LEN] = rand::random();
        let aad = Aad::from([PURPOSE, scope].concat());
        let sealing = Nonce::assume_unique_for_key(nonce);
        key.cipher.seal_in_place_append_tag(sealing, aad, &mut text).ok()?;
        Some(URL_SAFE_NO_PAD.encode([&key.id.to_be_bytes(), &nonce[..], &text].concat()))
    }

    /// What was sealed for the scope with one of the keys.
    pub fn open(&self, scope: &[u8], text: &str) -> Option<(Vec<u8>, SealedBy)> {
        if text.len() > LONGEST {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (id, rest) = bytes.split_first_chunk::<ID>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
        let id = u32::from_be_bytes(*id);
        let index = self.0.iter().position(|key| key.id == id)?;
        let mut sealed = sealed.to_vec();
        let aad = Aad::from([PURPOSE, scope].concat());
        let opened =
            self.0[index].cipher.open_in_place(Nonce::assume_unique_for_key(*nonce), aad, &mut sealed);
        let length = opened.ok()?.len();
        sealed.truncate(length);
        Some((sealed, if index == 0 { SealedBy::Current } else { SealedBy::Another }))
    }
}

impl PartialEq for SessionKeys {
    fn eq(&self, other: &Self) -> bool {
        let same =
            |(one, other): (&SessionKey, &SessionKey)| one.id == other.id && one.secret == other.secret;
        self.0.len() == other.0.len() && self.0.iter().zip(&other.0).all(same)
    }
}

impl Eq for SessionKeys {}

/// Never the secrets.
impl fmt::Debug for SessionKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|key| format_args!("{:08x}", key.id).to_string())).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(ids: &[u32]) -> SessionKeys {
        let secrets: Vec<[u8; SECRET]> = ids.iter().map(|id| [*id as u8; SECRET]).collect();
        SessionKeys::new(ids.iter().zip(&secrets).map(|(id, secret)| (*id, &secret[..]))).unwrap()
    }

    #[test]
    fn what_is_sealed_opens_in_its_scope_with_its_key_and_says_which() {
        let sealed = keys(&[1]).seal(b"a", b"text".to_vec()).unwrap();
        assert_eq!(keys(&[1]).open(b"a", &sealed), Some((b"text".to_vec(), SealedBy::Current)));
        assert_eq!(keys(&[2, 1]).open(b"a", &sealed), Some((b"text".to_vec(), SealedBy::Another)));
        assert_eq!(keys(&[1]).open(b"b", &sealed), None, "another scope");
        assert_eq!(keys(&[2]).open(b"a", &sealed), None, "another key");
        let imitated = SessionKeys::new([(1, &[9; SECRET][..])]).unwrap();
        assert_eq!(imitated.open(b"a", &sealed), None, "a key that is only called the same");
        assert_eq!(SessionKeys::default().seal(b"a", Vec::new()), None);
        assert_ne!(
            keys(&[1]).seal(b"a", b"text".to_vec()),
            Some(sealed),
            "two do not tell that they say the same"
        );
    }

    #[test]
    fn nothing_that_was_changed_opens() {
        let sealed = keys(&[1]).seal(b"a", b"text".to_vec()).unwrap();
        for place in 0..sealed.len() {
            let mut changed = sealed.clone().into_bytes();
            changed[place] = if changed[place] == b'A' { b'B' } else { b'A' };
            assert_eq!(keys(&[1]).open(b"a", std::str::from_utf8(&changed).unwrap()), None, "byte {place}");
            assert_eq!(keys(&[1]).open(b"a", &sealed[..place]), None, "cut at {place}");
        }
        assert_eq!(keys(&[1]).open(b"a", &format!("{sealed}{}", "A".repeat(LONGEST))), None);
    }

    #[test]
    fn keys_are_of_one_length_and_called_differently() {
        assert_eq!(SessionKeys::new([(1, &[0; 31][..])]).unwrap_err(), BadKeys::Length(31));
        let twice = [(1, &[0; SECRET][..]), (1, &[1; SECRET][..])];
        assert_eq!(SessionKeys::new(twice).unwrap_err(), BadKeys::Repeated(1));
        assert_eq!(format!("{:?}", keys(&[7])), "[\"00000007\"]");
    }
}
