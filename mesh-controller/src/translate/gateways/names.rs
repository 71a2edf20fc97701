//! Names of what is made for a Gateway. A Gateway's name may have 253 characters and dots; labels and Services take 63 of
//! a-z, 0-9 and `-`.

use std::fmt::Write as _;

use culvert_objects::schema::dns_label;
use sha2::{Digest as _, Sha256};

const LONGEST: usize = 63;
const SUFFIX: &str = "-culvert";

/// The value of the label that names the Gateway.
pub fn label(gateway: &str) -> String {
    if gateway.len() <= LONGEST { gateway.to_owned() } else { shortened(gateway, LONGEST) }
}

/// The name of the Gateway's Deployment, Service and ServiceAccount.
pub fn object(gateway: &str) -> String {
    let fits = gateway.len() + SUFFIX.len() <= LONGEST && dns_label(gateway).is_ok();
    let name = if fits && gateway.starts_with(|c: char| c.is_ascii_lowercase()) {
        gateway.to_owned()
    } else {
        // A Service's name starts with a letter.
        format!("g-{}", shortened(gateway, LONGEST - SUFFIX.len() - 2))
    };
    format!("{name}{SUFFIX}")
}

/// The start of a name and a hash of all of it.
fn shortened(name: &str, most: usize) -> String {
    let digest = Sha256::digest(name.as_bytes());
    let hash = digest[..5].iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    });
    let start: String = name.chars().take(most - hash.len() - 1).collect();
    format!("{}-{hash}", start.replace('.', "-").trim_end_matches('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_wherever_they_are_used() {
        let long = "a".repeat(253);
        let dotted = "a.b.c";
        for gateway in ["edge", "1edge", dotted, &long, &format!("{long}b")] {
            let name = object(gateway);
            assert!(dns_label(&name).is_ok() && name.starts_with(|c: char| c.is_ascii_lowercase()), "{name}");
            assert!(label(gateway).len() <= 63 && name.ends_with("-culvert"), "{name}");
        }
        assert_eq!((label("edge").as_str(), object("edge").as_str()), ("edge", "edge-culvert"));
        assert_ne!(object(&long), object(&format!("{long}b")));
        assert_ne!(label(&long), label(&format!("{long}b")));
        assert_ne!(object("a.b"), object("a-b"));
    }
}
