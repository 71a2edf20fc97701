//! What must hold for requests.

use futures::FutureExt;

use culvert_routing::model::{HeaderMatch, Match, RouteKind, Rule, ValueMatch};

use crate::mesh::Mesh;
use crate::web::{Wire, attach, exact, prefix, rule, three_servers};

macro_rules! cases {
    ($($case:ident),* $(,)?) => {
        pub const ALL: &[(&str, crate::Case)] =
            &[$((stringify!($case), |mesh| $case(mesh).boxed_local())),*];
    };
}

cases![requests_of_one_connection_are_routed_one_by_one,];

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
    assert_eq!(servers.each_ref().map(crate::web::Server::count), [0, 1, 1]);
    mesh.log.shows(&["request complete", "\"route\":\"HTTPRoute/shop/by-path\"", "mutual_tls"]).await;
}
