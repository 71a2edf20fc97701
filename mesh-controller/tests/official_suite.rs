//! Every manifest of the official Gateway API suite, translated to what the suite expects of the features built so far. The
//! manifests are read from the suite's Go module when the test runs; the `go` tool fetches it.

// Helpers outside test functions are tests too.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use culvert_controller::status::DesiredCondition;
use culvert_controller::translate::{Environment, Reported, Translation, translate};
use culvert_objects::mesh_config::LastGood;
use culvert_objects::{Kind, Object, Objects, manifest};
use serde_json::{Value, json};

const MODULE: &str = "sigs.k8s.io/gateway-api/conformance@v1.6.1";
const CLASS: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {name: culvert}\n\
    spec: {controllerName: culvert.dev/gateway-controller}\n---\n";

/// The module's directory.
fn suite() -> PathBuf {
    let directory = tempfile::tempdir().unwrap();
    let output = Command::new("go")
        .args(["mod", "download", "-json", MODULE])
        .current_dir(directory.path())
        .output()
        .unwrap_or_else(|error| panic!("the go tool fetches {MODULE}, and does not run: {error}"));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let problem = || format!("{}{}", answer["Error"], String::from_utf8_lossy(&output.stderr));
    let found = answer["Dir"].as_str().unwrap_or_else(|| panic!("{MODULE} cannot be fetched: {}", problem()));
    PathBuf::from(found)
}

fn read(file: &Path) -> Vec<Object> {
    let text = std::fs::read_to_string(file).unwrap();
    let text = text
        .replace("{GATEWAY_CLASS_NAME}", "culvert")
        .replace("{GATEWAY_CONTROLLER_NAME}", "culvert.dev/gateway-controller");
    let read = manifest::parse(&text, file);
    assert_eq!(read.errors, [], "{}", file.display());
    read.objects.into_iter().map(|at| at.object).collect()
}

/// Translates, gives every Gateway's Service an address, and translates again.
fn settled(objects: Vec<Object>) -> Translation {
    let environment = Environment::default();
    let objects: Objects = objects.into_iter().collect();
    let mut settled = objects.clone();
    for mut object in translate(&objects, &environment, &LastGood::default()).wanted {
        if object.kind == Kind::Service {
            object.set("status", &json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}})).unwrap();
            settled.insert(object.into());
        }
    }
    let mut translation = translate(&settled, &environment, &LastGood::default());
    for (key, facts) in &translation.gateways {
        facts.complete(translation.statuses.get_mut(key).unwrap(), |_| Reported::Open);
    }
    translation
}

fn condition(condition: &DesiredCondition) -> String {
    format!("{}={:?}/{}", condition.kind, condition.status, condition.reason)
}

/// What the objects are told that is not simply good, and how many routes are attached to each listener.
fn told(translation: &Translation) -> Vec<String> {
    let good = [
        "Accepted=True/Accepted",
        "Programmed=True/Programmed",
        "ResolvedRefs=True/ResolvedRefs",
        "Conflicted=False/NoConflicts",
    ];
    let bad = |conditions: &[DesiredCondition]| -> String {
        let words = conditions.iter().map(condition).filter(|word| !good.contains(&word.as_str()));
        words.map(|word| format!(" {word}")).collect()
    };
    let mut lines = Vec::new();
    for (key, status) in &translation.statuses {
        let name = format!("{} {}", key.kind, key.name);
        let of_object = bad(&status.conditions);
        if !of_object.is_empty() {
            lines.push(format!("{name}:{of_object}"));
        }
        for listener in &status.listeners {
            let kinds = if listener.supported_kinds.is_empty() { " no kinds" } else { "" };
            let words = format!("{}{kinds}", bad(&listener.conditions));
            let attached = listener.attached_routes;
            if attached > 0 || !words.is_empty() {
                lines.push(format!("{name} {}: {attached}{words}", listener.name));
            }
        }
        for (index, parent) in status.parents.iter().enumerate() {
            let words = bad(&parent.conditions);
            if !words.is_empty() {
                lines.push(format!("{name}[{index}]:{words}"));
            }
        }
    }
    lines
}

#[test]
fn dump() {
    let suite = suite();
    let mut files: Vec<PathBuf> = manifest::files_below(&suite.join("tests")).unwrap();
    files.sort();
    let class = manifest::parse(CLASS, Path::new("class.yaml")).objects.into_iter().map(|at| at.object);
    let class: Vec<Object> = class.collect();
    for file in files {
        let mesh = file.starts_with(suite.join("tests/mesh"));
        let base = suite.join(if mesh { "mesh" } else { "base" }).join("manifests.yaml");
        let objects = [class.clone(), read(&base), read(&file)].concat();
        let translation = settled(objects);
        println!("{}", file.strip_prefix(suite.join("tests")).unwrap().display());
        for line in told(&translation) {
            println!("  {line}");
        }
        let refused: BTreeMap<&String, usize> = translation
            .routes
            .iter()
            .map(|(name, route)| (name, route.rules.iter().filter(|rule| !rule.refuse.is_empty()).count()))
            .filter(|(_, n)| *n > 0)
            .collect();
        if !refused.is_empty() {
            println!("  REFUSED {refused:?}");
        }
    }
}
