//! What the articles promise that our users have read: an equivalent of each of their manifests (our names and words; the fifth
//! article has none), with what `check` finds and what the controller makes of it. The verdict in the first line of the
//! output is one of
//!
//! * works as written: nothing is found but notices, and every route comes to something at its parents;
//! * works with a warning;
//! * not yet: all that is wrong is that this version of Culvert does not do it;
//! * the supported way: it cannot work as written; what can is beside it.
//!
//! Where the API has a way of its own that this version of Culvert does not do, that is beside it, too, and the verdict says so.
//!
//! `UPDATE_GOLDEN=1` writes what comes out; read the difference before it is committed.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers outside test functions are tests too")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use culvert_check::{Absent, Code, File, Finding, Report, Severity, check};
use culvert_controller::render;
use culvert_controller::translate::{Environment, translate};
use culvert_objects::mesh_config::LastGood;
use culvert_objects::types::ConditionStatus;
use culvert_objects::{Objects, manifest};
use serde_json::{Map, Value};

const OUTPUT: &str = "# Output\n";
const SUPPORTED: &str = "--- # the supported way\n";
const BY_API: &str = "--- # in the words of the API\n";

/// The manifests of an article, what works instead, and what the API says that this version does not do.
struct Parts<'t> {
    written: &'t str,
    supported: Option<&'t str>,
    by_api: Option<&'t str>,
}

fn parts(input: &str) -> Parts<'_> {
    let (rest, by_api) = input.split_once(BY_API).map_or((input, None), |(a, b)| (a, Some(b)));
    let (written, supported) = rest.split_once(SUPPORTED).map_or((rest, None), |(a, b)| (a, Some(b)));
    Parts { written, supported, by_api }
}

/// What is found, and what comes of it.
struct Checked {
    report: Report,
    /// Routes whose parents are not what is written beside them, and that proxies get nothing of.
    idle: Vec<String>,
}

impl std::ops::Deref for Checked {
    type Target = Report;

    fn deref(&self) -> &Report {
        &self.report
    }
}

fn checked(text: &str) -> Checked {
    let report = check(&[File { path: "manifest.yaml".into(), text: text.to_owned() }], Absent::Judged);
    let translated = translated(text);
    let gets = |object: &str| {
        let prefix = format!("{}@", object.replacen(' ', "/", 1));
        translated["routes"].as_object().unwrap().keys().any(|name| name.starts_with(&prefix))
    };
    let doubted = report.findings.iter().filter(|of| {
        of.field.starts_with("spec.parentRefs") && matches!(of.code, Code::Missing | Code::ProbablyMissing)
    });
    let idle = doubted.filter(|of| !gets(&of.object)).map(|of| of.object.clone()).collect();
    Checked { report, idle }
}

fn verdict(checked: &Checked) -> &'static str {
    let Checked { report, idle } = checked;
    let errors = || report.findings.iter().filter(|finding| finding.severity == Severity::Error);
    match (report.errors, report.warnings) {
        _ if !idle.is_empty() => "the supported way",
        (0, 0) => "works as written",
        (0, _) => "works with a warning",
        _ if errors().all(|finding| finding.code == Code::NotDone) => "not yet",
        _ => "the supported way",
    }
}

fn line(finding: &Finding) -> String {
    let Finding { code, severity, object, field, what, remedy, place } = finding;
    let line = place.line.unwrap_or_default();
    format!("line {line}: {severity} {code}: {object}: {field}: {what} -> {remedy}")
}

/// What the controller says of objects, and what proxies get of routes.
fn translated(text: &str) -> Value {
    let read = manifest::parse(text, Path::new("manifest.yaml"));
    let mut objects: Objects = read.objects.into_iter().map(|at| at.object).collect();
    let class = "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {name: culvert}\n\
                 spec: {controllerName: culvert.dev/gateway-controller}\n";
    for at in manifest::parse(class, Path::new("class.yaml")).objects {
        objects.insert(at.object.into());
    }
    let translation = translate(&objects, &Environment::default(), &LastGood::default());
    let mut said = Map::new();
    for (key, status) in &translation.statuses {
        let of_listeners =
            status.listeners.iter().flat_map(|at| at.conditions.iter().map(move |of| (&at.name, of)));
        let empty = String::new();
        let conditions =
            (status.conditions.iter().chain(status.parents.iter().flat_map(|at| &at.conditions)))
                .map(|of| (&empty, of))
                .chain(of_listeners);
        let lines: Vec<Value> = conditions
            .filter(|(_, of)| of.kind != "Conflicted" || of.status == ConditionStatus::True)
            .map(|(name, of)| format!("{name} {}={:?} {}: {}", of.kind, of.status, of.reason, of.message))
            .map(|text| text.trim().into())
            .collect();
        said.insert(key.to_string(), lines.into());
    }
    let mut all = Map::new();
    let routes: Map<String, Value> =
        translation.routes.iter().map(|(name, route)| (name.clone(), render::route(route))).collect();
    all.insert("statuses".to_owned(), said.into());
    all.insert("routes".to_owned(), routes.into());
    all.into()
}

fn part(text: &str) -> Value {
    let mut all = Map::new();
    let findings: Vec<Value> = checked(text).findings.iter().map(|finding| line(finding).into()).collect();
    all.insert("check".to_owned(), findings.into());
    all.insert("translate".to_owned(), translated(text));
    all.into()
}

fn output(input: &str) -> String {
    let Parts { written, supported, by_api } = parts(input);
    let mut output = String::new();
    let said = by_api.map(|by_api| format!("; in the words of the API: {}", verdict(&checked(by_api))));
    writeln!(output, "verdict: {}{}", verdict(&checked(written)), said.unwrap_or_default()).unwrap();
    let mut all = Map::new();
    all.insert("as written".to_owned(), part(written));
    if let Some(supported) = supported {
        all.insert("the supported way".to_owned(), part(supported));
    }
    if let Some(by_api) = by_api {
        all.insert("in the words of the API".to_owned(), part(by_api));
    }
    output + &serde_yaml_ng::to_string(&Value::Object(all)).unwrap()
}

#[test]
fn the_manifests_of_the_articles_come_to_what_is_written_beside_them() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/articles");
    let files: Vec<PathBuf> = manifest::files_below(&directory).unwrap();
    assert!(files.len() >= 20, "{files:?}");
    let mut wrong = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let (input, expected) = text.split_once(OUTPUT).unwrap_or((&text, ""));
        let found = output(input);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&file, format!("{input}{OUTPUT}{found}")).unwrap();
        } else if found != expected {
            wrong.push(format!("{}:\n{found}", file.display()));
        }
    }
    assert!(wrong.is_empty(), "UPDATE_GOLDEN=1 writes these:\n{}", wrong.join("\n"));
}

#[test]
fn what_cannot_work_has_a_way_beside_it_that_can() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/articles");
    for file in manifest::files_below(&directory).unwrap() {
        let text = std::fs::read_to_string(&file).unwrap();
        let input = text.split_once(OUTPUT).map_or(&*text, |(input, _)| input);
        let Parts { written, supported, by_api } = parts(input);
        let is_hopeless = verdict(&checked(written)) == "the supported way";
        assert!(!is_hopeless || supported.is_some(), "{}: says no supported way", file.display());
        if let Some(supported) = supported {
            let said = verdict(&checked(supported));
            assert_eq!(said, "works as written", "{}", file.display());
        }
        if let Some(by_api) = by_api {
            // When this version does it, it is the supported way.
            assert_eq!(verdict(&checked(by_api)), "not yet", "{}", file.display());
        }
    }
}
