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

/// What is expected of one file.
#[derive(Debug, Default)]
struct Expected {
    /// The feature that is missing.
    later: Option<String>,
    lines: Vec<String>,
}

fn expected() -> BTreeMap<String, Expected> {
    let mut all: BTreeMap<String, Expected> = BTreeMap::new();
    let mut file = String::new();
    for line in include_str!("official_suite.txt").lines().filter(|line| !line.starts_with('#')) {
        match line.strip_prefix("  ") {
            Some(told) => all.get_mut(&file).unwrap().lines.push(told.to_owned()),
            None => {
                let (name, later) = line.split_once(" later: ").map_or((line, None), |(a, b)| (a, Some(b)));
                file = name.to_owned();
                let expected = Expected { later: later.map(str::to_owned), lines: Vec::new() };
                assert!(all.insert(file.clone(), expected).is_none(), "{name} twice");
            }
        }
    }
    all
}

/// What is wrong with what the objects of a file came to; `base` is told of the objects that every test has.
fn judge(expected: &Expected, translation: &Translation, base: &[String]) -> Option<String> {
    let told: Vec<String> = told(translation).into_iter().filter(|line| !base.contains(line)).collect();
    let refused =
        translation.routes.values().flat_map(|route| &route.rules).any(|rule| !rule.refuse.is_empty());
    let differs = told != expected.lines;
    match &expected.later {
        Some(feature)
            if !told.iter().any(|line| line.contains("=False") || line.contains("PartiallyInvalid")) =>
        {
            Some(format!("{feature} is taken as if it were there"))
        }
        // Where lines are given, they hold.
        Some(_) => (differs && !expected.lines.is_empty()).then(|| format!("{told:#?}")),
        None if refused => Some("a rule is refused".to_owned()),
        None => differs.then(|| format!("{told:#?}")),
    }
}

#[test]
fn every_manifest_comes_to_what_the_suite_expects() {
    let suite = suite();
    let class = manifest::parse(CLASS, Path::new("class.yaml")).objects.into_iter().map(|at| at.object);
    let class: Vec<Object> = class.collect();
    let with = |base: &str| [class.clone(), read(&suite.join(base).join("manifests.yaml"))].concat();
    let (gateways, mesh) = (with("base"), with("mesh"));
    // Only HTTPS listeners are missing from what every test has.
    let base = told(&settled(gateways.clone()));
    let is_https = |line: &String| line.starts_with("Gateway same-namespace-with-https-listener");
    assert!(!base.is_empty() && base.iter().all(is_https), "{base:#?}");
    assert_eq!(told(&settled(mesh.clone())), [""; 0]);

    let mut expected = expected();
    let mut wrong = Vec::new();
    let mut built = 0;
    for file in manifest::files_below(&suite.join("tests")).unwrap() {
        let name = file.strip_prefix(suite.join("tests")).unwrap().display().to_string();
        let Some(expected) = expected.remove(&name) else {
            wrong.push(format!("{name}: nobody says what is expected of it"));
            continue;
        };
        built += usize::from(expected.later.is_none());
        let common = if name.starts_with("mesh/") { &mesh } else { &gateways };
        let translation = settled([common.clone(), read(&file)].concat());
        wrong.extend(judge(&expected, &translation, &base).map(|problem| format!("{name}: {problem}")));
    }
    wrong.extend(expected.keys().map(|name| format!("{name}: not in the suite")));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(built >= 70, "{built}");
}
