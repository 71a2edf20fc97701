//! The Fetch standard's side of cross-origin requests: what a browser makes of the answers (3.2.4 "CORS check", 4.8
//! "CORS-preflight fetch"), and what the configuration was meant to allow.

/// `HTTPCORSFilter`, as written.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub origins: Vec<String>,
    pub methods: Vec<String>,
    pub headers: Vec<String>,
    pub exposed: Vec<String>,
    pub credentials: bool,
}

/// What a script asks its browser for.
#[derive(Clone, Debug)]
pub struct Script {
    pub origin: String,
    pub method: String,
    /// In lower case, none of those that are safelisted.
    pub headers: Vec<String>,
    /// Credentials mode "include".
    pub includes: bool,
}

impl Filter {
    /// Whether a script was meant to get through.
    pub fn allows(&self, script: &Script) -> bool {
        let method = ["GET", "HEAD", "POST"].contains(&script.method.as_str())
            || self.methods.iter().any(|of| of == "*" || *of == script.method);
        let header = |name: &String| self.headers.iter().any(|of| of == "*" || of.eq_ignore_ascii_case(name));
        self.allows_origin(&script.origin)
            && (!script.includes || self.credentials)
            && method
            && script.headers.iter().all(header)
    }

    /// Whether a response may be read.
    pub fn allows_origin(&self, origin: &str) -> bool {
        self.origins.iter().any(|of| of == "*" || takes(of, origin))
    }
}

fn takes(pattern: &str, origin: &str) -> bool {
    let (Some(pattern), Some(origin)) = (parts(pattern), parts(origin)) else { return false };
    pattern.0 == origin.0 && pattern.2 == origin.2 && glob(&pattern.1, &origin.1)
}

/// Scheme, host and port: "if not included, port 80 is assumed for http [...], and port 443 [...] for https".
fn parts(origin: &str) -> Option<(String, String, String)> {
    let origin = origin.to_ascii_lowercase();
    let (scheme, rest) = origin.split_once("://")?;
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port),
        _ => (rest, if scheme == "http" { "80" } else { "443" }),
    };
    Some((scheme.to_owned(), host.to_owned(), port.to_owned()))
}

/// "`*` is a greedy match to the left, including any number of DNS labels": at least one character.
fn glob(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some(rest) => (1..=host.len()).any(|at| &host[at..] == rest),
        None => pattern == host,
    }
}

type Fields = [(String, String)];

fn field<'a>(fields: &'a Fields, name: &str) -> Option<&'a str> {
    let mut found = fields.iter().filter(|(of, _)| of.eq_ignore_ascii_case(name));
    let (_, value) = found.next()?;
    // "If there are two, they are combined", and then no origin.
    found.next().is_none().then_some(value)
}

fn list(fields: &Fields, name: &str) -> Vec<String> {
    let all = fields.iter().filter(|(of, _)| of.eq_ignore_ascii_case(name));
    all.flat_map(|(_, value)| value.split(',').map(|part| part.trim().to_owned())).collect()
}

/// "CORS check".
pub fn check(script: &Script, response: &Fields) -> bool {
    let Some(allowed) = field(response, "access-control-allow-origin") else { return false };
    if !script.includes && allowed == "*" {
        return true;
    }
    if allowed != script.origin {
        return false;
    }
    !script.includes || field(response, "access-control-allow-credentials") == Some("true")
}

/// "CORS-preflight fetch", steps 7 and on: whether the request proper is sent.
pub fn preflight(script: &Script, status: u16, response: &Fields) -> bool {
    if !check(script, response) || !(200..=299).contains(&status) {
        return false;
    }
    let methods = list(response, "access-control-allow-methods");
    let names = list(response, "access-control-allow-headers");
    let is_safe = ["GET", "HEAD", "POST"].contains(&script.method.as_str());
    if !methods.contains(&script.method)
        && !is_safe
        && (script.includes || !methods.iter().any(|of| of == "*"))
    {
        return false;
    }
    script.headers.iter().all(|name| {
        let is_named = names.iter().any(|of| of.eq_ignore_ascii_case(name));
        // "CORS non-wildcard request-header name": Authorization.
        let any = !script.includes && names.iter().any(|of| of == "*") && name != "authorization";
        is_named || any
    })
}
