//! The official suite's manifests, read from its Go module when the test runs: no error and no warning on any that is valid, but
//! that this version does not do a feature; something on every one that is invalid on purpose.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers outside test functions are tests too")]

#[path = "../../tests/suite/mod.rs"]
mod suite;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use culvert_check::{Absent, Code, File, Finding, Severity, check};
use culvert_objects::manifest;

/// What manifests of the suite may have notices of: certificates that the suite makes itself, a backend with weight 0 that is not
/// there, listeners and ports that the test leaves without routes, ports called `tcp` and `https` of Services that a route is for
/// as a whole, the two rules with `retry` alone.
const NOTICES: &[Code] = &[
    Code::Missing,
    Code::NotInFiles,
    Code::UnroutedPort,
    Code::NotHttp,
    Code::UnusedListener,
    Code::RetryWithoutTimeout,
];

/// A status says what no request meets: the manifest is valid, and works.
const HARMLESS: &str = "mesh/grpcroute-weight.yaml";

/// Manifests that the API server takes and that are made to show what is told of them.
const MADE_SO: &[(&str, &[Code])] = &[
    // Two routes that say the same, one without a hostname in common, one to a Service that does not exist.
    ("gateway-with-attached-routes.yaml", &[Code::Hidden, Code::NoHostname, Code::Missing]),
    ("gateway-secret-missing-reference-grant.yaml", &[Code::NotGranted]),
    // Every request is to be answered 500.
    ("httproute-omitted-backendrefs.yaml", &[Code::NoBackend]),
    // Gateways that allow no ListenerSets, and listeners that only a ListenerSet has.
    ("listenerset-allowed-namespace-none.yaml", &[Code::NoParent]),
    ("listenerset-default-not-allowed.yaml", &[Code::NoParent]),
    ("listenerset-dual-parentref-independence.yaml", &[Code::NoParent]),
    ("listenerset-gateway-parent-section-name-not-found.yaml", &[Code::NoParent]),
];

fn file(path: &Path) -> File {
    File { path: path.to_owned(), text: suite::text(path) }
}

fn shown(findings: &[Finding]) -> String {
    let lines = findings.iter().map(|of| format!("  {} {}: {}: {}", of.code, of.object, of.field, of.what));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn valid_manifests_have_no_errors_and_no_warnings() {
    let directory = suite::directory();
    let class = File { path: "class.yaml".into(), text: suite::CLASS.to_owned() };
    let base = |name: &str| vec![class.clone(), file(&directory.join(name).join("manifests.yaml"))];
    let (gateways, mesh) = (base("base"), base("mesh"));
    let mut wrong = Vec::new();
    let mut notices: BTreeMap<Code, BTreeSet<String>> = BTreeMap::new();
    let expected = suite::expected();
    let (mut valid, mut invalid) = (0, 0);
    for path in manifest::files_below(&directory.join("tests")).unwrap() {
        let name = path.strip_prefix(directory.join("tests")).unwrap().display().to_string();
        let common = if name.starts_with("mesh/") { &mesh } else { &gateways };
        let report = check(&[common.clone(), vec![file(&path)]].concat(), Absent::Judged);
        let own: Vec<Finding> = report.findings.into_iter().filter(|of| of.place.file == path).collect();
        let expected = &expected[&name];
        let made_so = MADE_SO.iter().find(|(of, _)| *of == name).map_or(&[][..], |(_, codes)| *codes);
        let is_bad = |line: &String| line.contains("=False") || line.contains("PartiallyInvalid");
        if expected.later.is_none() && name != HARMLESS && expected.lines.iter().any(is_bad) {
            invalid += 1;
            if own.iter().all(|of| of.severity == Severity::Notice) {
                wrong.push(format!("{name}: is invalid on purpose, and nothing is found"));
            }
            continue;
        }
        if expected.later.is_some() && name.contains("invalid") {
            invalid += 1;
            continue;
        }
        valid += 1;
        let is_fine = |of: &Finding| {
            of.severity == Severity::Notice
                || (expected.later.is_some() && of.code == Code::NotDone)
                || made_so.contains(&of.code)
        };
        if !made_so.iter().all(|code| own.iter().any(|of| of.code == *code)) {
            wrong.push(format!("{name}: expected {made_so:?}, found\n{}", shown(&own)));
        }
        let bad: Vec<Finding> = own.iter().filter(|of| !is_fine(of)).cloned().collect();
        if !bad.is_empty() {
            wrong.push(format!("{name} ({:?}):\n{}", expected.later, shown(&bad)));
        }
        for of in own.iter().filter(|of| of.severity == Severity::Notice) {
            notices.entry(of.code).or_default().insert(name.clone());
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(notices.keys().copied().eq(NOTICES.iter().copied()), "{notices:#?}");
    let retried: Vec<&String> = notices[&Code::RetryWithoutTimeout].iter().collect();
    assert_eq!(retried, ["httproute-retry.yaml"]);
    assert!(notices[&Code::Missing].iter().all(|name| name == HARMLESS), "{notices:#?}");
    assert!(notices[&Code::UnroutedPort].iter().all(|name| name.starts_with("mesh/")), "{notices:#?}");
    println!(
        "{valid} valid, {invalid} invalid, notices on {:?}",
        notices.values().map(BTreeSet::len).collect::<Vec<_>>()
    );
    assert!(valid >= 80 && invalid >= 10, "{valid} valid, {invalid} invalid");
}
