//! Keeps `COVERAGE.md` honest.

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Rows of every table: the promise and the tests named for it.
fn rows(text: &str) -> Vec<(String, Vec<String>)> {
    let cells = text.lines().filter(|line| line.starts_with('|') && !line.starts_with("|---"));
    let rows = cells.filter_map(|line| {
        let (promise, tests) = line.trim_matches('|').rsplit_once('|')?;
        let named = tests.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        (promise.trim() != "promise").then(|| (promise.trim().to_owned(), named))
    });
    rows.collect()
}

/// Why a named test does not count, if so.
fn fault(name: &str) -> Option<String> {
    let Some((file, test)) = name.split_once("::") else {
        return Some(format!("{name}: not FILE::TEST"));
    };
    let path = if file.contains('/') {
        root().join(file)
    } else {
        root().join(format!("tests/e2e/tests/{file}.rs"))
    };
    let Ok(source) = std::fs::read_to_string(&path) else {
        return Some(format!("{name}: there is no {}", path.display()));
    };
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let declared = lines.iter().position(|line| {
        let line = line.trim_start_matches("async ");
        line.strip_prefix("fn ")
            .is_some_and(|rest| rest.strip_prefix(test).is_some_and(|rest| rest.starts_with('(')))
    });
    let Some(declared) = declared else {
        return Some(format!("{name}: there is no such function"));
    };
    let attributes: Vec<&str> =
        lines[..declared].iter().rev().take_while(|line| line.starts_with('#')).copied().collect();
    if !attributes.iter().any(|line| line.starts_with("#[test]") || line.starts_with("#[tokio::test")) {
        return Some(format!("{name}: not a test"));
    }
    if attributes.iter().any(|line| line.contains("ignore")) {
        return Some(format!("{name}: ignored"));
    }
    None
}

#[test]
fn every_promise_is_tested() {
    let text = std::fs::read_to_string(root().join("tests/e2e/COVERAGE.md")).expect("COVERAGE.md");
    let rows = rows(&text);
    assert!(rows.len() > 60, "the tables were read");
    let mut faults = Vec::new();
    for (promise, tests) in &rows {
        if tests.is_empty() {
            faults.push(format!("{promise}: no test"));
        }
        faults.extend(tests.iter().filter_map(|name| fault(name)));
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn every_end_to_end_test_is_named() {
    let text = std::fs::read_to_string(root().join("tests/e2e/COVERAGE.md")).expect("COVERAGE.md");
    let mut missing = Vec::new();
    for entry in std::fs::read_dir(root().join("tests/e2e/tests")).expect("the tests").flatten() {
        let path = entry.path();
        let Some(stem) = path.file_stem().and_then(|stem| stem.to_str()) else { continue };
        let source = std::fs::read_to_string(&path).unwrap_or_default();
        let lines: Vec<&str> = source.lines().map(str::trim).collect();
        for pair in lines.windows(2).filter(|pair| pair[0] == "#[test]" && stem != "coverage") {
            let name = pair[1].trim_start_matches("fn ").split('(').next().unwrap_or_default();
            if !text.contains(&format!("`{stem}::{name}`")) {
                missing.push(format!("{stem}::{name}"));
            }
        }
    }
    assert!(missing.is_empty(), "not in COVERAGE.md: {missing:?}");
}

#[test]
fn the_check_finds_what_it_should() {
    assert_eq!(fault("coverage::the_check_finds_what_it_should"), None);
    assert!(fault("coverage::no_such_test").is_some());
    assert!(fault("coverage::fault").is_some(), "a function that is no test");
    assert!(fault("nofile::x").is_some());
    let rows = rows("| promise | tests |\n|---|---|\n| a | `b | c` | `x::y` `z::w` |\n| bare | |\n");
    assert_eq!(rows[0].1, ["x::y", "z::w"]);
    assert!(rows[1].1.is_empty());
}
