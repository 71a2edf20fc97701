//! `docs/check.md` has a section for each code, with its title and severity; the first example of a section has the finding, the
//! second, which differs as little as the remedy does, has not. Examples of clusters are what the API server has.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers outside test functions are tests too")]

use std::collections::BTreeMap;

use culvert_check::cluster::{ClusterFacts, Stage, findings};
use culvert_check::{Absent, Code, File, Report, Severity, check};
use serde::Deserialize as _;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/check.md");

struct Section {
    title: String,
    severity: String,
    examples: Vec<String>,
}

/// By code.
fn sections() -> BTreeMap<String, Section> {
    let page = std::fs::read_to_string(PAGE).unwrap();
    let mut sections = BTreeMap::new();
    for text in page.split("\n### ").skip(1) {
        let text = text.split("\n## ").next().unwrap();
        let (head, body) = text.split_once('\n').unwrap();
        let (code, title) = head.split_once(": ").unwrap_or_else(|| panic!("{head}: expected CODE: TITLE"));
        let severity = body.trim_start().trim_start_matches('*').split('*').next().unwrap();
        let blocks = body.split("```yaml\n").skip(1);
        let examples = blocks.map(|block| block.split_once("\n```").unwrap().0.to_owned()).collect();
        let section = Section { title: title.to_owned(), severity: severity.to_owned(), examples };
        assert!(sections.insert(code.to_owned(), section).is_none(), "{code} twice");
    }
    sections
}

fn checked(text: &str) -> Report {
    check(&[File { path: "example.yaml".into(), text: text.to_owned() }], Absent::Judged)
}

/// Codes that are found in an example: manifests, or objects of a cluster in June 2026.
fn found(code: Code, text: &str) -> Vec<(Code, String)> {
    if !code.is_of_cluster() {
        return checked(text).findings.into_iter().map(|of| (of.code, of.what)).collect();
    }
    let mut facts = ClusterFacts::empty(Stage::Installed, "2026-06-01T00:00:00Z".parse().unwrap());
    for document in serde_yaml_ng::Deserializer::from_str(text) {
        facts
            .add(serde_json::Value::deserialize(document).unwrap())
            .unwrap_or_else(|error| panic!("{code}: {error}"));
    }
    findings(&facts).into_iter().map(|of| (of.code, of.what)).collect()
}

#[test]
fn every_code_is_documented_and_its_examples_do_what_they_say() {
    let mut sections = sections();
    let mut wrong = Vec::new();
    for code in Code::ALL {
        let Some(section) = sections.remove(code.as_str()) else {
            wrong.push(format!("{code} is not documented"));
            continue;
        };
        if section.title != code.title() || section.severity != code.severity().to_string() {
            wrong.push(format!("{code}: expected {:?}, {}", code.title(), code.severity()));
        }
        let [with, without] = &section.examples[..] else {
            wrong.push(format!("{code}: expected two examples, found {}", section.examples.len()));
            continue;
        };
        let (first, second) = (found(*code, with), found(*code, without));
        if !first.iter().any(|(of, _)| of == code) {
            wrong.push(format!("{code}: the first example has {first:#?}"));
        }
        let errors = |text: &str| -> Vec<String> {
            let all = checked(text).findings.into_iter();
            all.filter(|of| of.severity == Severity::Error)
                .map(|of| format!("{}: {}", of.code, of.field))
                .collect()
        };
        let mut first = if code.is_of_cluster() { Vec::new() } else { errors(with) };
        let told = first.len();
        first.sort();
        first.dedup();
        if first.len() < told {
            wrong.push(format!("{code}: the first example says something twice: {first:#?}"));
        }
        if !code.is_of_cluster() && !errors(without).is_empty() {
            wrong.push(format!("{code}: the second example has errors: {:#?}", errors(without)));
        }
        let left: Vec<_> = second.into_iter().filter(|(of, _)| of == code).collect();
        if !left.is_empty() {
            wrong.push(format!("{code}: the second example still has {left:#?}"));
        }
    }
    wrong.extend(sections.keys().map(|code| format!("{code} is documented and does not exist")));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_examples_of_the_documentation_have_no_findings_but_those_that_it_names() {
    let examples = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/examples");
    let file = |name: &str| {
        let path = examples.join(name);
        File { text: std::fs::read_to_string(&path).unwrap(), path: name.into() }
    };
    let codes = |names: &[&str]| -> Vec<String> {
        let files: Vec<File> = names.iter().map(|name| file(name)).collect();
        let found = check(&files, Absent::Judged).findings;
        found.iter().map(|of| format!("{} {}", of.place.file.display(), of.code)).collect()
    };
    assert_eq!(codes(&["shop.yaml", "canary.yaml", "mesh-config.yaml"]), [""; 0]);
    assert_eq!(codes(&["shop.yaml", "shop-enrolled.yaml"]), ["shop.yaml CV108"]);
    assert_eq!(codes(&["shop-enrolled.yaml", "consumer.yaml"]), ["consumer.yaml CV201"]);
    let all = ["shop.yaml", "canary.yaml", "consumer.yaml", "mesh-config.yaml", "shop-enrolled.yaml"];
    assert_eq!(codes(&all), ["consumer.yaml CV307", "shop.yaml CV108"]);
}
