//! HTTPRoutes and GRPCRoutes: every match, filter and kind of backend, among them what cannot be honoured.

use super::Generator;
use crate::routes::route;
use serde_json::{Value, json};

/// A Service that routes are attached to, and whose they are.
pub struct Parent<'a> {
    pub namespace: &'a str,
    pub service: &'a str,
    /// Of the routes: the Service's for producers, the clients' for consumers.
    pub routes_in: &'a str,
}

const PREFIXES: [&str; 6] = ["/", "/a", "/a/b", "/b", "/b/", "/c"];
const EXACT: [&str; 5] = ["/a", "/a/b", "/a/b/c", "/c", "/a%2Fb"];
const PATTERNS: [&str; 3] = ["/a/[a-z]", "/[bc](/.*)?", "/x[0-9]+"];
const METHODS: [&str; 4] = ["GET", "POST", "DELETE", "HEAD"];
const CALLS: [(&str, &str); 3] = [("shop.Cart", "Add"), ("shop.Cart", "List"), ("shop.Bill", "Add")];
/// Of pages that ask.
pub const ORIGINS: [&str; 3] =
    ["https://shop.example.org", "https://example.org", "http://elsewhere.example"];
/// The Service port and the backends' that carry HTTP, and gRPC.
const HTTP: u16 = 8080;
const GRPC: u16 = 9003;

impl Generator {
    /// One or two HTTPRoutes and perhaps a GRPCRoute, as YAML.
    pub fn routes(&mut self, parent: &Parent<'_>) -> String {
        let mut all = String::new();
        for index in 0..=self.below(2) {
            let mut rules: Vec<Value> = (0..=self.below(4)).map(|_| self.http_rule(parent)).collect();
            if index == 0 {
                rules.push(self.met_by_every_seed(parent));
            }
            all += &self.attached("HTTPRoute", parent, &format!("http-{index}"), HTTP, &rules);
        }
        if self.chance(60) {
            let rules: Vec<Value> = (0..=self.below(3)).map(|_| self.grpc_rule(parent)).collect();
            all += &self.attached("GRPCRoute", parent, "grpc", GRPC, &rules);
        }
        all
    }

    /// What chance may leave out.
    fn met_by_every_seed(&mut self, parent: &Parent<'_>) -> Value {
        let cors = json!({"allowOrigins": ["https://*.example.org"], "allowMethods": ["*"]});
        json!({
            "matches": [{"path": {"type": "Exact", "value": "/c/c"}}],
            "filters": [{"type": "CORS", "cors": cors}, self.mirror(parent, HTTP)],
            "retry": self.retry(),
            "sessionPersistence": {"sessionName": "generated"},
            "backendRefs": self.backends(parent, HTTP),
        })
    }

    /// To one port of the Service, to a named one, or to all.
    fn attached(
        &mut self,
        kind: &str,
        parent: &Parent<'_>,
        name: &str,
        port: u16,
        rules: &[Value],
    ) -> String {
        let mut to =
            json!({"group": "", "kind": "Service", "namespace": parent.namespace, "name": parent.service});
        match self.below(10) {
            0..=6 => to["port"] = json!(port),
            7..=8 => to["sectionName"] = json!(if port == GRPC { "grpc" } else { "http" }),
            _ => {}
        }
        route(kind, parent.routes_in, &format!("{}-{name}", parent.service), &to, &json!(rules))
    }

    fn http_rule(&mut self, parent: &Parent<'_>) -> Value {
        let mut rule = json!({});
        if self.chance(90) {
            let matches: Vec<Value> = (0..=self.below(2)).map(|_| self.http_match()).collect();
            rule["matches"] = json!(matches);
        }
        if self.chance(20) {
            rule["filters"] = json!([self.redirect()]);
            return rule;
        }
        if self.chance(50) {
            rule["filters"] = self.filters(parent);
        }
        if self.chance(25) {
            rule["retry"] = self.retry();
        }
        if self.chance(25) {
            rule["sessionPersistence"] = self.session();
        }
        if self.chance(6) {
            match self.below(3) {
                0 => {
                    rule["filters"] = json!([{"type": "ExtensionRef",
                    "extensionRef": {"group": "example.org", "kind": "Magic", "name": "m"}}])
                }
                1 => rule["notYetThere"] = json!(true),
                _ => rule["matches"] = json!([{"path": {"type": "RegularExpression", "value": "/b(?=c)"}}]),
            }
        }
        rule["backendRefs"] = self.backends(parent, HTTP);
        rule
    }

    fn http_match(&mut self) -> Value {
        let mut matched = json!({});
        match self.below(10) {
            0..=4 => matched["path"] = json!({"type": "PathPrefix", "value": self.one(&PREFIXES)}),
            5..=6 => matched["path"] = json!({"type": "Exact", "value": self.one(&EXACT)}),
            7..=8 => matched["path"] = json!({"type": "RegularExpression", "value": self.one(&PATTERNS)}),
            _ => {}
        }
        if self.chance(25) {
            matched["method"] = json!(self.one(&METHODS));
        }
        if self.chance(25) {
            matched["headers"] = self.values("x-v");
        }
        if self.chance(20) {
            matched["queryParams"] = self.values("q");
        }
        matched
    }

    fn values(&mut self, name: &str) -> Value {
        match self.below(3) {
            0 => json!([{"name": name, "value": "1"}]),
            1 => json!([{"name": name, "value": "2"}]),
            _ => json!([{"name": name, "type": "RegularExpression", "value": "[2-9]+"}]),
        }
    }

    fn grpc_rule(&mut self, parent: &Parent<'_>) -> Value {
        let mut rule = json!({"backendRefs": self.backends(parent, GRPC)});
        if self.chance(20) {
            rule["sessionPersistence"] = self.session();
        }
        if self.chance(90) {
            let (service, method) = CALLS[self.below(CALLS.len())];
            let called = match self.below(4) {
                0 => json!({"service": service}),
                1 => json!({"method": method}),
                2 => json!({"type": "RegularExpression", "service": "shop\\..*"}),
                _ => json!({"service": service, "method": method}),
            };
            rule["matches"] = json!([{"method": called}]);
            if self.chance(30) {
                rule["matches"][0]["headers"] = self.values("x-v");
            }
        }
        let mut filters = Vec::new();
        if self.chance(30) {
            filters.push(self.headers("rule"));
        }
        if self.chance(20) {
            filters.push(self.mirror(parent, GRPC));
        }
        rule["filters"] = json!(filters);
        rule
    }

    fn filters(&mut self, parent: &Parent<'_>) -> Value {
        let mut filters = Vec::new();
        if self.chance(30) {
            filters.push(self.mirror(parent, HTTP));
        }
        if self.chance(60) {
            filters.push(self.headers("rule"));
        }
        if self.chance(60) {
            filters.push(self.rewrite());
        }
        if self.chance(30) {
            filters.push(self.mirror(parent, HTTP));
        }
        if self.chance(40) {
            filters.push(self.cors());
        }
        json!(filters)
    }

    /// To somebody, to nobody, or nowhere; of all, some or no requests.
    fn mirror(&mut self, parent: &Parent<'_>, port: u16) -> Value {
        let name = self.one(&["server", "v1", "v2", "nobody", "no-such-service"]);
        let to = json!({"name": name, "namespace": parent.namespace, "port": port});
        let mut mirror = json!({"backendRef": to});
        match self.below(4) {
            0 => mirror["percent"] = json!([0, 50, 100][self.below(3)]),
            1 => mirror["fraction"] = json!({"numerator": 1, "denominator": 3}),
            _ => {}
        }
        json!({"type": "RequestMirror", "requestMirror": mirror})
    }

    fn cors(&mut self) -> Value {
        let origins = match self.below(4) {
            0 => json!(["*"]),
            1 => json!(["https://*.example.org"]),
            2 => json!([ORIGINS[0], "http://other.example.org:8080"]),
            _ => json!([]),
        };
        let mut cors = json!({"allowOrigins": origins, "allowCredentials": self.chance(50)});
        if self.chance(70) {
            cors["allowMethods"] = [json!(["*"]), json!(["GET", "PUT"])][self.below(2)].clone();
        }
        if self.chance(50) {
            cors["allowHeaders"] = [json!(["*"]), json!(["x-v"])][self.below(2)].clone();
        }
        json!({"type": "CORS", "cors": cors})
    }

    fn retry(&mut self) -> Value {
        let mut retry = json!({"attempts": 1 + self.below(2), "backoff": "1ms"});
        if self.chance(50) {
            retry["codes"] = json!([500, 503]);
        }
        retry
    }

    /// Whole ones, and some that cannot be.
    fn session(&mut self) -> Value {
        match self.below(8) {
            0 => json!({}),
            1 | 2 => json!({"sessionName": "generated", "absoluteTimeout": "1h"}),
            3 => json!({"sessionName": "generated", "type": "Cookie", "absoluteTimeout": "1h",
                "cookieConfig": {"lifetimeType": "Permanent"}}),
            4..=6 => json!({"sessionName": "x-session", "type": "Header"}),
            _ => json!({"cookieConfig": {"lifetimeType": "Permanent"}}),
        }
    }

    fn headers(&mut self, tag: &str) -> Value {
        let mut edit = json!({});
        if self.chance(60) {
            edit["set"] = json!([{"name": "X-W", "value": tag}]);
        }
        if self.chance(60) {
            edit["add"] = json!([{"name": "X-Added", "value": tag}]);
        }
        if self.chance(60) {
            edit["remove"] = json!(["x-gone"]);
        }
        json!({"type": "RequestHeaderModifier", "requestHeaderModifier": edit})
    }

    fn path(&mut self) -> Value {
        match self.below(3) {
            0 => json!({"type": "ReplaceFullPath", "replaceFullPath": "/full"}),
            1 => json!({"type": "ReplacePrefixMatch", "replacePrefixMatch": "/new"}),
            _ => json!({"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}),
        }
    }

    fn rewrite(&mut self) -> Value {
        let mut to = json!({});
        if self.chance(50) {
            to["hostname"] = json!("inner.example.org");
        }
        if self.chance(70) {
            to["path"] = self.path();
        }
        json!({"type": "URLRewrite", "urlRewrite": to})
    }

    fn redirect(&mut self) -> Value {
        let mut to = json!({});
        if self.chance(60) {
            to["hostname"] = json!("elsewhere.example.org");
        }
        if self.chance(40) {
            to["path"] = self.path();
        }
        if self.chance(40) {
            to["scheme"] = json!(["http", "https"][self.below(2)]);
        }
        if self.chance(30) {
            to["port"] = json!([80, 443, 8443][self.below(3)]);
        }
        if self.chance(60) {
            to["statusCode"] = json!([301, 302, 303, 307, 308][self.below(5)]);
        }
        json!({"type": "RequestRedirect", "requestRedirect": to})
    }

    /// One backend or several, whole and broken ones, or none at all.
    fn backends(&mut self, parent: &Parent<'_>, port: u16) -> Value {
        let count = [1, 1, 1, 2, 2, 3][self.below(6)];
        if self.chance(5) {
            return json!([]);
        }
        let is_off = self.chance(4);
        let all: Vec<Value> = (0..count)
            .map(|_| {
                let name = match self.below(20) {
                    0 => "no-such-service",
                    1 => "nobody",
                    2 => "external",
                    3..=8 => "server",
                    9..=14 => "v1",
                    _ => "v2",
                };
                let mut backend = json!({"name": name, "namespace": parent.namespace, "port": port});
                if is_off || count > 1 {
                    backend["weight"] = json!(if is_off { 0 } else { self.below(5) });
                }
                if self.chance(15) {
                    backend["filters"] = json!([self.headers("backend")]);
                }
                backend
            })
            .collect();
        json!(all)
    }
}
