//! Every manifest of the official Gateway API suite, translated to what the suite expects of the features built so far. The
//! manifests are read from the suite's Go module when the test runs; the `go` tool fetches it.

// Helpers outside test functions are tests too.
#![allow(clippy::unwrap_used, clippy::panic)]

mod suite;

use std::path::Path;
use std::sync::Arc;

use culvert_controller::status::DesiredCondition;
use culvert_controller::translate::{Environment, Reported, Translation, translate};
use culvert_objects::mesh_config::LastGood;
use culvert_objects::{Kind, Object, Objects, manifest};
use serde_json::{Value, json};

use suite::{CLASS, Expected, expected};

fn read(file: &Path) -> Vec<Object> {
    let read = manifest::parse(&suite::text(file), file);
    assert_eq!(read.errors, [], "{}", file.display());
    let mut objects: Vec<Object> = read.objects.into_iter().map(|at| at.object).collect();
    objects.iter_mut().for_each(|object| object.metadata.generation = Some(GENERATION));
    objects
}

/// Of every object: the suite has every condition tell which generation it is about.
const GENERATION: i64 = 7;
/// Of a listener of HTTP that asks for none.
const KINDS: [&str; 2] = ["HTTPRoute", "GRPCRoute"];

/// What the suite expects of every status, whatever it says: the generation, and an entry for each parentRef, as given.
fn shaped(objects: &[Object], translation: &Translation) -> Option<String> {
    for object in objects {
        let key = object.key();
        let refs = object.body.get("spec").and_then(|spec| spec.get("parentRefs")?.as_array());
        let status = match (translation.statuses.get(&key), refs) {
            (Some(status), _) => status,
            (None, None) => continue,
            (None, Some(_)) => return Some(format!("{key} is told nothing")),
        };
        if status.generation != Some(GENERATION) {
            return Some(format!("{key}: generation {:?}", status.generation));
        }
        let echoed: Vec<&Value> = status.parents.iter().map(|parent| &parent.parent_ref).collect();
        if refs.is_some_and(|refs| echoed != refs.iter().collect::<Vec<_>>()) {
            return Some(format!("{key}: parents {echoed:?}"));
        }
    }
    None
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
        facts.complete(Arc::make_mut(translation.statuses.get_mut(key).unwrap()), |_| Reported::Open);
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
            let kinds = match listener.supported_kinds.as_slice() {
                [] => " no kinds".to_owned(),
                kinds if kinds == KINDS => String::new(),
                kinds => format!(" {}", kinds.join(", ")),
            };
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
    let suite = suite::directory();
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
        let own = read(&file);
        let translation = settled([common.clone(), own.clone()].concat());
        let misshaped = shaped(&own, &translation).filter(|_| expected.later.is_none());
        let problem = misshaped.or_else(|| judge(&expected, &translation, &base));
        wrong.extend(problem.map(|problem| format!("{name}: {problem}")));
    }
    wrong.extend(expected.keys().map(|name| format!("{name}: not in the suite")));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(built >= 70, "{built}");
}
