//! Kinds as people write them: `po`, `pod`, `pods`, `Pod`.

use culvert_objects::Kind;

/// Short names beside the kind's own, its lower case and its plural.
const SHORT: &[(&str, Kind)] = &[
    ("cm", Kind::ConfigMap),
    ("deploy", Kind::Deployment),
    ("eps", Kind::EndpointSlice),
    ("gc", Kind::GatewayClass),
    ("gtw", Kind::Gateway),
    ("no", Kind::Node),
    ("ns", Kind::Namespace),
    ("po", Kind::Pod),
    ("refgrant", Kind::ReferenceGrant),
    ("sa", Kind::ServiceAccount),
    ("svc", Kind::Service),
    ("lset", Kind::ListenerSet),
    ("btlspolicy", Kind::BackendTlsPolicy),
];

/// What `all` stands for.
const ALL: [Kind; 3] = [Kind::Pod, Kind::Service, Kind::Deployment];

/// The kinds that a word, or several joined by commas, stands for.
///
/// # Errors
/// Names the word that means nothing and what would.
pub fn parse(words: &str) -> Result<Vec<Kind>, String> {
    let mut kinds = Vec::new();
    for word in words.split(',') {
        if word == "all" {
            kinds.extend(ALL);
        } else {
            kinds.push(parse_one(word)?);
        }
    }
    Ok(kinds)
}

/// The kind that one word stands for. A group after a dot is passed over (`deployments.apps`).
///
/// # Errors
/// As [`parse`].
pub fn parse_one(word: &str) -> Result<Kind, String> {
    let lower = word.split('.').next().unwrap_or_default().to_lowercase();
    let short = SHORT.iter().find(|(short, _)| *short == lower).map(|(_, kind)| *kind);
    let full = || Kind::ALL.iter().copied().find(|kind| singular(*kind) == lower || plural(*kind) == lower);
    short.or_else(full).ok_or_else(|| {
        let known: Vec<String> = Kind::ALL.iter().map(|kind| plural(*kind)).collect();
        format!("there is no kind {word:?}; there are: {}", known.join(", "))
    })
}

fn singular(kind: Kind) -> String {
    kind.as_str().to_lowercase()
}

fn plural(kind: Kind) -> String {
    let name = singular(kind);
    if let Some(stem) = name.strip_suffix('y').filter(|stem| !stem.ends_with(['a', 'e', 'i', 'o', 'u'])) {
        format!("{stem}ies")
    } else if name.ends_with(['s', 'h']) {
        format!("{name}es")
    } else {
        format!("{name}s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_write_a_kind() {
        for word in ["po", "pod", "pods", "Pod", "PODS"] {
            assert_eq!(parse_one(word), Ok(Kind::Pod), "{word}");
        }
        assert_eq!(parse_one("deployments.apps"), Ok(Kind::Deployment));
        assert_eq!(parse_one("backendtlspolicies"), Ok(Kind::BackendTlsPolicy));
        assert_eq!(parse_one("gatewayclasses"), Ok(Kind::GatewayClass));
        assert_eq!(parse_one("xmeshes"), Ok(Kind::XMesh));
        assert_eq!(parse("svc,pods").unwrap(), [Kind::Service, Kind::Pod]);
        assert_eq!(parse("all").unwrap().len(), 3);
        assert!(parse_one("job").unwrap_err().contains("pods"));
    }

    #[test]
    fn no_two_kinds_share_a_name() {
        let mut names: Vec<String> =
            Kind::ALL.iter().flat_map(|kind| [singular(*kind), plural(*kind)]).collect();
        names.extend(SHORT.iter().map(|(short, _)| (*short).to_owned()));
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
