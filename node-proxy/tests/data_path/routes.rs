//! Routes of a Service: which rule takes a request, where it goes, how it is changed.

use culvert_node_proxy::state::routes::{Parent, Unusable};
use culvert_routing::model::{
    Carries, Filter, HeaderEdit, HeaderMatch, Match, PathEdit, Redirect, RedirectStatus, Rewrite, RouteKind,
    Rule, SessionPersistence, ValueMatch,
};
use culvert_routing::session::{Carrier, CookieName, CookiePath, Lifetime};
use futures::FutureExt;

use crate::mesh::Mesh;
use crate::web::{Server, Wire, attach, exact, filtered, prefix, rule, three_servers};

macro_rules! cases {
    ($($case:ident),* $(,)?) => {
        pub const ALL: &[(&str, crate::Case)] =
            &[$((stringify!($case), |mesh| $case(mesh).boxed_local())),*];
    };
}

cases![
    requests_of_one_connection_are_routed_one_by_one,
    shares_are_kept_to_the_request,
    consumer_routes_replace_producer_routes_for_their_namespace,
    a_route_that_cannot_be_used_answers_500,
    filters_change_what_the_backend_and_the_client_see,
    sessions_are_kept_with_a_key_and_refused_without,
];

async fn requests_of_one_connection_are_routed_one_by_one(mesh: Mesh) {
    let (mut mesh, servers) = three_servers(mesh).await;
    let by_header = Rule {
        matches: vec![Match {
            headers: vec![HeaderMatch {
                name: "x-version".parse().unwrap(),
                value: ValueMatch::Exact("two".into()),
            }],
            ..rule(prefix("/"), &[]).matches[0].clone()
        }],
        ..rule(prefix("/"), &[("v2", 1)])
    };
    let rules = vec![
        by_header,
        rule(exact("/one"), &[("v1", 1)]),
        rule(prefix("/none"), &[]),
        rule(prefix("/zero"), &[("v1", 0)]),
        rule(prefix("/invalid"), &[("", 1)]),
    ];
    attach(&mut mesh, "by-path", RouteKind::Http, None, rules);
    let mut client = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    let reply = client.get("/one").await;
    assert_eq!((reply.status, reply.server()), (200, "v1"), "{reply:?}");
    assert!(reply.body.contains("GET /one HTTP/1.1"), "{}", reply.body);
    for (request, status, reason) in [
        ("/two", 404, "RouteNotFound"),
        ("/none", 500, "NoBackend"),
        ("/zero", 500, "NoBackend"),
        ("/invalid", 500, "InvalidBackend"),
    ] {
        let reply = client.get(request).await;
        assert_eq!((reply.status, reply.reason()), (status, reason), "{request} {reply:?}");
        mesh.log.shows(&["request failed", reason, request]).await;
    }
    client.say(b"GET /any HTTP/1.1\r\nHost: elsewhere\r\nX-Version: two\r\n\r\n").await;
    let reply = client.reply().await;
    assert_eq!((reply.status, reply.server()), (200, "v2"));
    assert!(reply.body.contains("host: elsewhere"), "{}", reply.body);
    assert_eq!(servers.each_ref().map(Server::count), [0, 1, 1]);
    mesh.log.shows(&["request complete", "\"route\":\"HTTPRoute/shop/by-path\"", "mutual_tls"]).await;
    // The pod's own address is not routed.
    let mut direct = Wire::connect(&mesh.world.pod, mesh.world.peer_at(8080)).await;
    assert_eq!(direct.get("/two").await.server(), "db");
}

async fn sessions_are_kept_with_a_key_and_refused_without(mesh: Mesh) {
    let (mut mesh, _servers) = three_servers(mesh).await;
    let session = SessionPersistence {
        carrier: Carrier::Cookie {
            name: CookieName::parse("s").unwrap(),
            lifetime: Lifetime::Session,
            path: CookiePath::Matched,
        },
        absolute_timeout: None,
    };
    let of =
        |backends: &[(&str, u32)]| Rule { session: Some(session.clone()), ..rule(prefix("/"), backends) };
    attach(&mut mesh, "kept", RouteKind::Http, None, vec![of(&[("v1", 1), ("v2", 0)])]);
    let mut client = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    let reply = client.get("/a").await;
    assert_eq!((reply.status, reply.reason()), (500, "NoSessionKey"), "{reply:?}");
    mesh.set_session_keys([(1, [7; 32])]);
    let reply = client.get("/a").await;
    assert_eq!((reply.status, reply.server()), (200, "v1"), "{reply:?}");
    let cookie = reply.header("set-cookie").split(';').next().unwrap().to_owned();
    // Weights are for those without a session.
    attach(&mut mesh, "kept", RouteKind::Http, None, vec![of(&[("v2", 1), ("v1", 0)])]);
    assert_eq!(client.get("/a").await.server(), "v2");
    client.say(format!("GET /a HTTP/1.1\r\nHost: db\r\nCookie: {cookie}\r\n\r\n").as_bytes()).await;
    let reply = client.reply().await;
    assert_eq!((reply.server(), reply.header("set-cookie")), ("v1", ""), "{reply:?}");
    assert!(reply.body.contains(&cookie), "the backend sees it: {}", reply.body);
    // Another key seals now: the session goes on, and the client is told of it in its words.
    mesh.set_session_keys([(2, [8; 32]), (1, [7; 32])]);
    client.say(format!("GET /a HTTP/1.1\r\nHost: db\r\nCookie: {cookie}\r\n\r\n").as_bytes()).await;
    let reply = client.reply().await;
    assert_eq!(reply.server(), "v1");
    assert!(reply.header("set-cookie").starts_with("s="), "{reply:?}");
    mesh.set_session_keys([(2, [8; 32])]);
    client.say(format!("GET /a HTTP/1.1\r\nHost: db\r\nCookie: {cookie}\r\n\r\n").as_bytes()).await;
    assert_eq!(client.reply().await.server(), "v2", "nobody can open it any more");
}

async fn shares_are_kept_to_the_request(mesh: Mesh) {
    let (mut mesh, servers) = three_servers(mesh).await;
    for (weights, least, most) in [([99, 1], 4, 6), ([70, 30], 135, 165), ([1, 0], 0, 0)] {
        let backends = [("v1", weights[0]), ("v2", weights[1])];
        attach(&mut mesh, "canary", RouteKind::Http, None, vec![rule(prefix("/"), &backends)]);
        let before = servers[2].count();
        let mut client = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
        for number in 0..500 {
            if number % 50 == 0 {
                // Another route is edited meanwhile.
                let rules = vec![rule(exact(&format!("/other-{number}")), &[("v1", 1)])];
                attach(&mut mesh, "other", RouteKind::Http, None, rules);
            }
            assert_eq!(client.get("/").await.status, 200);
        }
        let share = servers[2].count() - before;
        assert!((least..=most).contains(&share), "{weights:?}: {share}");
    }
}

async fn consumer_routes_replace_producer_routes_for_their_namespace(mesh: Mesh) {
    let (mut mesh, _servers) = three_servers(mesh).await;
    attach(&mut mesh, "producer", RouteKind::Http, None, vec![rule(prefix("/"), &[("v1", 1)])]);
    attach(&mut mesh, "elsewhere", RouteKind::Http, Some("audit"), vec![rule(prefix("/"), &[])]);
    let mut client = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    assert_eq!(client.get("/").await.server(), "v1", "another namespace's consumer route changes nothing");
    // This client's namespace is the Service's own; a second connection of another namespace would need another pod.
    attach(&mut mesh, "mine", RouteKind::Http, Some("shop"), vec![rule(exact("/mine"), &[("v2", 1)])]);
    assert_eq!(client.get("/mine").await.server(), "v2");
    let reply = client.get("/").await;
    assert_eq!((reply.status, reply.reason()), (404, "RouteNotFound"), "the groups do not merge");
}

async fn a_route_that_cannot_be_used_answers_500(mesh: Mesh) {
    let (mut mesh, servers) = three_servers(mesh).await;
    attach(&mut mesh, "good", RouteKind::Http, None, vec![rule(prefix("/"), &[("v1", 1)])]);
    let mut client = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    assert_eq!(client.get("/").await.status, 200);
    let parent = Parent::Service {
        service: culvert_node_proxy::state::model::ServiceKey("shop/db".into()),
        ports: vec![80],
        consumers: None,
    };
    mesh.builder.refuse_route(
        &"bad".into(),
        Unusable { parent, carries: Carries::Requests, why: "unreadable".into() },
    );
    mesh.publish();
    let reply = client.get("/").await;
    assert_eq!((reply.status, reply.reason()), (500, "RouteUnsupported"));
    mesh.builder.remove_route("bad");
    mesh.publish();
    assert_eq!(client.get("/").await.status, 200);
    let refuses =
        Rule { action: culvert_routing::model::Action::Refuse("retries".into()), ..rule(prefix("/"), &[]) };
    attach(&mut mesh, "good", RouteKind::Http, None, vec![refuses]);
    let reply = client.get("/").await;
    assert_eq!((reply.status, reply.reason()), (500, "RouteUnsupported"));
    assert_eq!(servers[1].count(), 2);
}

fn edit(set: &[(&str, &str)], remove: &[&str]) -> HeaderEdit {
    HeaderEdit {
        set: set.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect(),
        add: Vec::new(),
        remove: remove.iter().map(|name| name.parse().unwrap()).collect(),
    }
}

async fn filters_change_what_the_backend_and_the_client_see(mesh: Mesh) {
    let (mut mesh, _servers) = three_servers(mesh).await;
    let rewrite = Rewrite {
        hostname: Some("other.example".into()),
        path: Some(PathEdit::ReplacePrefix("/new".into())),
    };
    let redirect = Redirect {
        scheme: None,
        hostname: Some("moved.example".into()),
        path: None,
        port: None,
        status: RedirectStatus::PermanentRedirect,
    };
    let mut at_backend = rule(prefix("/backend"), &[("v1", 1)]);
    if let culvert_routing::model::Action::Forward(backends) = &mut at_backend.action {
        backends[0].filters = vec![
            Filter::RequestHeaders(edit(&[("x-backend", "v1")], &[])),
            Filter::ResponseHeaders(edit(&[("x-answered", "v1")], &[])),
        ];
    }
    let rules = vec![
        filtered(
            rule(prefix("/old"), &[("v1", 1)]),
            vec![
                Filter::RequestHeaders(edit(&[("x-set", "yes")], &["x-remove"])),
                Filter::Rewrite(rewrite),
                Filter::ResponseHeaders(edit(&[("x-seen", "by culvert")], &["x-server"])),
            ],
        ),
        filtered(rule(prefix("/gone"), &[]), vec![Filter::Redirect(redirect)]),
        at_backend,
    ];
    attach(&mut mesh, "filters", RouteKind::Http, None, rules);
    let mut client = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    client.say(b"GET /old/a//b/../c%7e?q=1 HTTP/1.1\r\nHost: web:80\r\nX-Remove: 1\r\n\r\n").await;
    let reply = client.reply().await;
    for line in ["GET /new/a/c~?q=1 HTTP/1.1", "\nhost: other.example\n", "\nx-set: yes\n"] {
        assert!(reply.body.contains(line), "{line} in {}", reply.body);
    }
    assert!(!reply.body.contains("x-remove"), "{}", reply.body);
    assert_eq!((reply.header("x-seen"), reply.header("x-server")), ("by culvert", ""));
    let reply = client.get("/gone/a?b").await;
    assert_eq!((reply.status, reply.header("location")), (308, "http://moved.example/gone/a?b"));
    assert_eq!(reply.reason(), "");
    let reply = client.get("/backend").await;
    assert!(reply.body.contains("x-backend: v1"), "{}", reply.body);
    assert_eq!(reply.header("x-answered"), "v1");
    // Matched as normalized: no way around a rule by spelling its path otherwise.
    for path in ["//old", "/x/../old/", "/%6fld", "/./old"] {
        assert_eq!(client.get(path).await.header("x-seen"), "by culvert", "{path}");
    }
    assert_eq!(client.get("/x%2f..%2fold").await.status, 404);
    let reply = client.get("/a/../../b").await;
    assert_eq!((reply.status, reply.reason()), (400, "BadRequest"));
}
