//! `HTTPHeaderFilter`, `HTTPPathModifier`, `HTTPRequestRedirectFilter`.

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderEdit {
    pub set: Vec<(String, String)>,
    pub add: Vec<(String, String)>,
    pub remove: Vec<String>,
}

/// The lines of a header block after an edit.
pub fn edit_headers(lines: &[(String, String)], edit: &HeaderEdit) -> Vec<(String, String)> {
    let mut lines = lines.to_vec();
    // "Set overwrites the request with the given header (name, value) before the action."
    for (name, value) in &edit.set {
        lines.retain(|(existing, _)| !existing.eq_ignore_ascii_case(name));
        lines.push((name.clone(), value.clone()));
    }
    // "Add [...] It appends to any existing values associated with the header name."
    for (name, value) in &edit.add {
        lines.push((name.clone(), value.clone()));
    }
    // "Remove the given header(s) [...] header names are case-insensitive."
    for name in &edit.remove {
        lines.retain(|(existing, _)| !existing.eq_ignore_ascii_case(name));
    }
    lines
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathEdit {
    Full(String),
    /// The prefix that the rule matched, and what comes in its place.
    Prefix {
        prefix: String,
        replacement: String,
    },
}

/// The path after a rewrite: element by element, a slash at the end of prefix or replacement being ignored.
pub fn rewrite(path: &str, edit: &PathEdit) -> String {
    match edit {
        PathEdit::Full(full) if full.is_empty() => "/".to_owned(),
        PathEdit::Full(full) => full.clone(),
        PathEdit::Prefix { prefix, replacement } => {
            let elements = |text: &str| -> Vec<String> {
                text.split('/').filter(|element| !element.is_empty()).map(str::to_owned).collect()
            };
            // The one in front of the first slash is none; an empty one at the end is the slash at the end.
            let path: Vec<String> = path.split('/').skip(1).map(str::to_owned).collect();
            let mut result = elements(replacement);
            result.extend_from_slice(&path[elements(prefix).len()..]);
            format!("/{}", result.join("/"))
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    pub scheme: Option<String>,
    pub hostname: Option<String>,
    pub port: Option<u16>,
    pub path: Option<PathEdit>,
}

/// A request, and the listener (or Service port) that it came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    pub scheme: String,
    pub host: String,
    pub listener_port: u16,
    pub path: String,
    pub query: Option<String>,
}

/// The value of `Location`.
pub fn location(redirect: &Redirect, origin: &Origin) -> String {
    // "When empty, the scheme of the request is used." "When empty, the hostname in the `Host` header of the request is used."
    let scheme = redirect.scheme.clone().unwrap_or_else(|| origin.scheme.clone());
    let hostname = redirect.hostname.clone().unwrap_or_else(|| origin.host.clone());
    // "If redirect scheme is not-empty, the redirect port MUST be the well-known port associated with the redirect scheme
    // [...] If redirect scheme is empty, the redirect port MUST be the Gateway Listener port."
    let port = match (redirect.port, redirect.scheme.as_deref()) {
        (Some(port), _) => port,
        (None, Some("http")) => 80,
        (None, Some(_)) => 443,
        (None, None) => origin.listener_port,
    };
    // "Implementations SHOULD NOT add the port number in the 'Location' header" for HTTP and 80, HTTPS and 443.
    let port = match (scheme.as_str(), port) {
        ("http", 80) | ("https", 443) => String::new(),
        (_, port) => format!(":{port}"),
    };
    let path = match &redirect.path {
        Some(edit) => rewrite(&origin.path, edit),
        None => origin.path.clone(),
    };
    let query = match &origin.query {
        Some(query) => format!("?{query}"),
        None => String::new(),
    };
    format!("{scheme}://{hostname}{port}{path}{query}")
}

/// One filter of a list that changes a request or copies it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Headers(HeaderEdit),
    Path(PathEdit),
    /// A mirror, by a number of the test's own.
    Mirror(usize),
}

/// The mirror's number, path and header lines.
pub type Copied = (usize, String, Vec<(String, String)>);

/// What each mirror of a list is sent: path and header lines. "Implementations SHOULD implement filters in the order they are
/// specified", so a copy is the request after the filters before it, worked out from the start for every mirror.
pub fn copies(path: &str, lines: &[(String, String)], steps: &[Step]) -> Vec<Copied> {
    let mirrors = steps.iter().enumerate().filter_map(|(place, step)| match step {
        Step::Mirror(number) => Some((place, *number)),
        _ => None,
    });
    let copy = |(place, number): (usize, usize)| {
        let (mut path, mut lines) = (path.to_owned(), lines.to_vec());
        for step in &steps[..place] {
            match step {
                Step::Headers(edit) => lines = edit_headers(&lines, edit),
                Step::Path(edit) => path = rewrite(&path, edit),
                Step::Mirror(_) => {}
            }
        }
        (number, path, lines)
    };
    mirrors.map(copy).collect()
}

/// How many of the first `requests` a share allows: no whole request more or less than its part.
pub fn copied(requests: u64, numerator: u64, denominator: u64) -> std::ops::RangeInclusive<u64> {
    let product = requests * numerator;
    product / denominator..=product.div_ceil(denominator)
}
