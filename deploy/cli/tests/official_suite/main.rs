//! The requests of the official Gateway API suite and the answers that it expects, for the features built so far, put to
//! `culvert explain`: with the suite's manifests as files, what is decided for each must be what the suite would see. Requests
//! and answers are read from the suite's own source when the test runs.

// Helpers outside test functions are tests too.
#![allow(clippy::unwrap_used, clippy::panic)]

mod judge;
mod literals;
#[path = "../../../../mesh-controller/tests/suite/mod.rs"]
mod suite;
mod table;

use std::path::Path;

use culvert_cli::explain::facts::{self, Facts, Source};
use culvert_cli::sandbox::cluster::Cluster;
use culvert_objects::{Kind, Object, Objects, manifest};
use serde_json::json;

use table::{Names, Test};

/// The cluster of a test: what every test has, and the manifests of its own.
fn cluster(suite: &Path, base: &str, test: &Test) -> Facts {
    let cluster = Cluster::new("files", NODES);
    let mut all = manifest::parse(suite::CLASS, Path::new("class.yaml"));
    for file in std::iter::once(base).chain(test.manifests.iter().map(String::as_str)) {
        let file = suite.join(file);
        all.append(manifest::parse(&suite::text(&file), &file));
    }
    for at in all.objects.iter_mut().filter(|at| at.object.kind == Kind::Namespace) {
        at.object.metadata.labels.insert("culvert.dev/mesh".to_owned(), "enabled".to_owned());
    }
    // The sandbox runs no images.
    for at in all.objects.iter_mut().filter(|at| at.object.kind == Kind::Deployment) {
        let mut spec = at.object.body["spec"].clone();
        let pod = &mut spec["template"]["spec"];
        for container in pod["containers"].as_array_mut().unwrap() {
            let ports = container.get("ports").cloned();
            *container = json!({"name": container["name"], "image": "culvert/echo"});
            if let Some(ports) = ports {
                container["ports"] = ports;
            }
        }
        pod.as_object_mut().unwrap().remove("volumes");
        at.object.set("spec", &spec).unwrap();
    }
    let mut objects = facts::files::objects(&cluster, all)
        .unwrap_or_else(|errors| panic!("{:?}: {errors}", test.manifests));
    fill(&mut objects);
    Facts::new(objects, &cluster, Source::Files)
}

/// The suite's tests put the pods of `infra-backend-v1` into slices without endpoints, by address family.
fn fill(objects: &mut Objects) {
    let all: Vec<Object> = objects.iter().map(|object| Object::clone(object)).collect();
    let is_empty = |slice: &&Object| !slice.body.contains_key("endpoints");
    for slice in all.iter().filter(|object| object.kind == Kind::EndpointSlice).filter(is_empty) {
        let is_v4 = slice.body["addressType"] == "IPv4";
        let pods = all.iter().filter(|object| object.kind == Kind::Pod);
        let pods = pods.filter(|pod| pod.name().starts_with("infra-backend-v1"));
        let endpoints = pods.map(|pod| {
            let addresses = pod.body["status"]["podIPs"].as_array().unwrap().iter();
            let address = addresses.map(|at| &at["ip"]).find(|ip| ip.as_str().unwrap().contains('.') == is_v4);
            json!({"addresses": [address], "conditions": {"ready": true},
                "targetRef": {"kind": "Pod", "namespace": pod.namespace(), "name": pod.name(), "uid": pod.uid()}})
        });
        let mut slice = slice.clone();
        slice.set("endpoints", &endpoints.collect::<Vec<_>>()).unwrap();
        objects.insert(slice.into());
    }
}

/// The same without ReferenceGrants.
fn ungranted(facts: &Facts) -> Facts {
    let mut objects = facts.objects.clone();
    for grant in facts.objects.of_kind(Kind::ReferenceGrant) {
        objects.remove(&grant.key());
    }
    Facts::new(objects, &Cluster::new("files", NODES), Source::Files)
}

const NODES: u8 = 2;
/// What the suite expects and does not look at: in the mesh it compares no paths.
const WRONG: [(&str, &str); 1] = [("httproute-named-rule.go", "http://echo/unnamed")];

#[test]
fn every_request_of_the_suite_is_decided_as_the_suite_expects() {
    let suite = suite::directory();
    let (expected, names) = (suite::expected(), Names::of(&suite));
    let later = |manifest: &String| {
        let file = manifest.strip_prefix("tests/").unwrap();
        expected.get(file).is_none_or(|expected| expected.later.is_some())
    };
    let (mut asked, mut wrong) = (0, Vec::new());
    for (directory, base) in [("tests", "base/manifests.yaml"), ("tests/mesh", "mesh/manifests.yaml")] {
        for file in table::sources(&suite.join(directory)) {
            let source = std::fs::read_to_string(&file).unwrap();
            for test in table::tests(&source, &names) {
                if test.cases.is_empty() || test.manifests.iter().any(later) {
                    continue;
                }
                let granted = cluster(&suite, base, &test);
                for case in &test.cases {
                    let without = case.ungranted.then(|| ungranted(&granted));
                    let facts = without.as_ref().unwrap_or(&granted);
                    let gateways = match &case.gateway {
                        Some(gateway) => vec![Some(gateway)],
                        None if test.gateways.is_empty() => vec![None],
                        None => test.gateways.iter().map(Some).collect(),
                    };
                    for gateway in gateways {
                        asked += 1;
                        let Err(problem) = judge::judge(facts, &names, case, gateway) else { continue };
                        let problem = format!("{}: {problem}", file.display());
                        let is_known =
                            |(file, url): &(&str, &str)| problem.contains(file) && problem.contains(url);
                        wrong.extend((!WRONG.iter().any(is_known)).then_some(problem));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {asked}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(asked >= 300, "{asked}");
}
