//! The filter CORS (GEP-1767).

use culvert_objects::types::CorsFilter;
use culvert_routing::cors::{Allowed, Cors, Credentials, OriginPattern};

use super::filters::header_name;
use super::http::method;
use super::reader::{At, Reader};

/// Seconds, unless set (the schema's default).
const MAX_AGE: u32 = 5;

pub fn read(of: &CorsFilter, at: At<'_>, reader: &mut Reader) -> Cors {
    reader.unknown(at, &of.rest);
    let max_age = of.max_age.unwrap_or(MAX_AGE);
    if max_age == 0 {
        reader.unsupported(at.field("maxAge"), "invalid value: 0, expected at least 1 second");
    }
    Cors {
        origins: list(&of.allow_origins, at.field("allowOrigins"), reader, origin),
        methods: list(&of.allow_methods, at.field("allowMethods"), reader, method),
        headers: list(&of.allow_headers, at.field("allowHeaders"), reader, header_name),
        exposed: list(&of.expose_headers, at.field("exposeHeaders"), reader, header_name),
        credentials: match of.allow_credentials {
            Some(true) => Credentials::Allowed,
            Some(false) | None => Credentials::Omitted,
        },
        max_age,
    }
}

fn list<T>(
    written: &[String],
    at: At<'_>,
    reader: &mut Reader,
    one: fn(&str, At<'_>, &mut Reader) -> Option<T>,
) -> Allowed<T> {
    let is_any = |text: &String| text == "*";
    match written {
        [text] if is_any(text) => Allowed::Any,
        many => {
            if many.iter().any(is_any) {
                reader.unsupported(at, "has \"*\" beside others, expected it alone");
            }
            let named = many.iter().enumerate().filter(|(_, text)| !is_any(text));
            Allowed::These(named.filter_map(|(index, text)| one(text, at.item(index), reader)).collect())
        }
    }
}

fn origin(text: &str, at: At<'_>, reader: &mut Reader) -> Option<OriginPattern> {
    let pattern = OriginPattern::parse(text);
    if pattern.is_none() {
        let expected = "expected http:// or https://, a host or *.HOST or *, and perhaps a port";
        reader.unsupported(at, format!("invalid value: {text:?}, {expected}"));
    }
    pattern
}
