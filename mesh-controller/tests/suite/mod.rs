//! The official Gateway API suite, as its Go module has it; the `go` tool fetches it when a test runs.

// Helpers outside test functions are tests too.
#![allow(dead_code, clippy::unwrap_used, clippy::panic, reason = "each test uses a part of this")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

const MODULE: &str = "sigs.k8s.io/gateway-api/conformance@v1.6.1";
/// What is expected of each file.
const EXPECTED: &str = include_str!("../official_suite.txt");
/// The class that the suite's Gateways name.
pub const CLASS: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {name: culvert}\n\
    spec: {controllerName: culvert.dev/gateway-controller}\n---\n";

/// The module's directory.
pub fn directory() -> PathBuf {
    let elsewhere = tempfile::tempdir().unwrap();
    let output = Command::new("go")
        .args(["mod", "download", "-json", MODULE])
        .current_dir(elsewhere.path())
        .output()
        .unwrap_or_else(|error| panic!("the go tool fetches {MODULE}, and does not run: {error}"));
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let problem = || format!("{}{}", answer["Error"], String::from_utf8_lossy(&output.stderr));
    let found = answer["Dir"].as_str().unwrap_or_else(|| panic!("{MODULE} cannot be fetched: {}", problem()));
    PathBuf::from(found)
}

/// A manifest with the names filled in that the suite fills in.
pub fn text(file: &Path) -> String {
    std::fs::read_to_string(file)
        .unwrap()
        .replace("{GATEWAY_CLASS_NAME}", "culvert")
        .replace("{GATEWAY_CONTROLLER_NAME}", "culvert.dev/gateway-controller")
}

/// What is expected of one file.
#[derive(Debug, Default)]
pub struct Expected {
    /// The feature that is missing.
    pub later: Option<String>,
    pub lines: Vec<String>,
}

/// By the path below the suite's `tests`.
pub fn expected() -> BTreeMap<String, Expected> {
    let mut all: BTreeMap<String, Expected> = BTreeMap::new();
    let mut file = String::new();
    for line in EXPECTED.lines().filter(|line| !line.starts_with('#')) {
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
