//! Settings and resources that make no sense: refused by name, and the last good one stays.

use culvert_e2e::{Labelled, Mesh, SOON, Session, Shared, Shop, binary, eventually};
use std::time::Duration;

static MESH: Shared = Shared::new("bad-news");

const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn an_annotation_that_does_not_parse_is_a_condition_and_the_last_good_one_stays() {
    let mesh = MESH.beside();
    let name = "annotation";
    let shop = Shop::new(name, Labelled::Yes);
    let (_, server) = mesh.open(&shop.clone().setting("inbound-mode", "strict"), name);
    let (stranger, _) = mesh.open(&Shop::new("annotation-out", Labelled::No), "annotation-out");
    assert_eq!(mesh.send(&stranger, &server.at(9000))["ok"], false);
    mesh.apply(&shop.clone().setting("inbound-mode", "strickt").namespace());
    let condition = eventually("a condition names it", SOON, || {
        let namespace = mesh.get("namespace", None, Some(name));
        let conditions = namespace["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions
            .into_iter()
            .find(|one| one["type"] == "culvert.dev/Settings" && one["status"] == "False")
            .ok_or_else(|| namespace["status"].to_string())
    });
    let message = condition["message"].as_str().unwrap_or_default();
    for word in ["culvert.dev/inbound-mode", "strickt", "permissive", "strict"] {
        assert!(message.contains(word), "{message}");
    }
    assert_eq!(mesh.send(&stranger, &server.at(9000))["ok"], false, "the last good value holds");
    mesh.apply(&shop.setting("inbound-mode", "permissive").namespace());
    mesh.reaches(&stranger, &server.at(9000));
}

/// A controller that sends one workload in a form that no node proxy accepts, in the place of the real one.
fn odd_controller(mesh: &Mesh, spoil: &str) -> Session {
    let ask = binary("ask").display().to_string();
    let place = ["exec", "--node", "control-plane", "--", &ask, "controller", "--listen", "10.89.0.2:15010"];
    let ca = ["--url", "https://10.89.0.2:15012", "--token", "/run/sandbox/tokens/controller"];
    let more = ["--bundle", "/run/sandbox/trust/bundle.pem", "--spoil", spoil];
    let session = Session::start(mesh.command(&[&place[..], &ca, &more].concat()));
    assert_eq!(session.next(PATIENCE)["event"], "listening");
    session
}

#[test]
fn a_resource_that_cannot_be_accepted_is_refused_by_name_and_the_last_good_one_stays() {
    let mesh = MESH.alone();
    let name = "spoiled";
    let (client, server) = mesh.open(&Shop::new(name, Labelled::Yes), name);
    let known = mesh.config("node1")["workloads"].as_array().cloned().unwrap_or_default();
    let of_server = known.iter().find(|one| one["name"] == server.name.as_str() && one["namespace"] == name);
    let uid = of_server.and_then(|one| one["uid"].as_str()).expect("node1 knows the server").to_owned();
    mesh.component("stop", "controller");
    let odd = odd_controller(&mesh, &uid);
    let (mut refused, mut applied) = (Vec::new(), Vec::new());
    while refused.len() < 2 || applied.len() < 2 {
        let line = odd.next(PATIENCE);
        if line["event"] == "refused" {
            assert_eq!(
                (&line["name"], &line["version"]),
                (&uid.as_str().into(), &"spoiled".into()),
                "{line}"
            );
            assert!(
                line["reason"].as_str().is_some_and(|why| why.contains("tunnel") && why.contains("99")),
                "{line}"
            );
            refused.push(line["node"].to_string());
        } else {
            assert_eq!(line["version"], "spoiled-state", "the rest of the batch is in force: {line}");
            applied.push(line["node"].to_string());
        }
    }
    for node in ["node1", "node2"] {
        let config = mesh.config(node);
        let listed = config["refused"].as_array().cloned().unwrap_or_default();
        assert!(
            listed.len() == 1 && listed[0]["name"] == uid.as_str() && listed[0]["last_good_in_force"] == true,
            "{node}: {listed:?}"
        );
        assert_eq!(mesh.metrics(node).sum("culvert_refused_resources", &[]), 1.0, "{node}");
    }
    for target in [server.at(9000), "server:9000".to_owned()] {
        let (arrived, readable) = mesh.on_the_link(&client, &target);
        assert!(arrived && !readable, "{target}: arrived {arrived}, readable {readable}");
    }
    odd.end(PATIENCE);
    mesh.component("start", "controller");
    eventually("nothing is refused any more", SOON, || {
        let refused = mesh.metrics("node1").sum("culvert_refused_resources", &[]);
        if refused == 0.0 { Ok(()) } else { Err(format!("{refused}")) }
    });
    mesh.reaches(&client, &server.at(9000));
}
