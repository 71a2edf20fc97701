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
        (!["promise", "reason"].contains(&promise.trim())).then(|| (promise.trim().to_owned(), named))
    });
    rows.collect()
}

/// The text of a named test, or why it does not count.
fn body(name: &str) -> Result<String, String> {
    let Some((file, test)) = name.split_once("::") else {
        return Err(format!("{name}: not FILE::TEST"));
    };
    if file == "data_path" {
        return case(test).ok_or_else(|| format!("{name}: there is no such case"));
    }
    let path = if file.contains('/') {
        root().join(file)
    } else {
        root().join(format!("tests/e2e/tests/{file}.rs"))
    };
    let Ok(source) = std::fs::read_to_string(&path) else {
        return Err(format!("{name}: there is no {}", path.display()));
    };
    let Some((attributes, body)) = function(&source, test) else {
        return Err(format!("{name}: there is no such function"));
    };
    if !attributes.iter().any(|line| line.starts_with("#[test]") || line.starts_with("#[tokio::test")) {
        return Err(format!("{name}: not a test"));
    }
    if attributes.iter().any(|line| line.contains("ignore")) {
        return Err(format!("{name}: ignored"));
    }
    Ok(body)
}

/// A case of the node proxy's own test with namespaces, if it is listed to be run.
fn case(name: &str) -> Option<String> {
    let files = std::fs::read_dir(root().join("node-proxy/tests/data_path")).ok()?;
    files.flatten().find_map(|entry| {
        let source = std::fs::read_to_string(entry.path()).ok()?;
        let is_listed = source.lines().any(|line| line.trim().trim_end_matches(',') == name);
        is_listed.then(|| function(&source, name)).flatten().map(|(_, body)| body)
    })
}

/// The attributes and the text of a function, up to the brace that closes it where it was opened; no comments.
fn function<'a>(source: &'a str, name: &str) -> Option<(Vec<&'a str>, String)> {
    let lines: Vec<&str> = source.lines().collect();
    let declared = lines.iter().position(|line| {
        let line = line.trim().trim_start_matches("async ");
        line.strip_prefix("fn ")
            .is_some_and(|rest| rest.strip_prefix(name).is_some_and(|rest| rest.starts_with('(')))
    })?;
    let attributes = lines[..declared].iter().rev().map(|line| line.trim());
    let attributes = attributes.take_while(|line| line.starts_with('#')).collect();
    let indent = lines[declared].len() - lines[declared].trim_start().len();
    let end = format!("{}}}", " ".repeat(indent));
    let body = lines[declared..].iter().take_while(|line| **line != end);
    let body: Vec<&str> = body.filter(|line| !line.trim().starts_with("//")).copied().collect();
    Some((attributes, body.join("\n")))
}

/// Why a named test does not count, if so.
fn fault(name: &str) -> Option<String> {
    body(name).err()
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
fn every_reason_happens_in_a_test() {
    let manual = std::fs::read_to_string(root().join("docs/reasons.md")).expect("reasons.md");
    let words: Vec<&str> = manual.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    assert!(words.len() > 30, "the manual was read");
    let text = std::fs::read_to_string(root().join("tests/e2e/COVERAGE.md")).expect("COVERAGE.md");
    let (_, table) = text.split_once("\n## Reasons\n").expect("the table of reasons");
    let rows = rows(table.split("\n## ").next().unwrap_or_default());
    let named: Vec<&str> = rows.iter().map(|(reason, _)| reason.as_str()).collect();
    assert_eq!(named, words, "the table has the manual's words, in its order");
    let mut faults = Vec::new();
    for (reason, tests) in &rows {
        if tests.is_empty() {
            faults.push(format!("{reason}: no test"));
        }
        faults.extend(tests.iter().filter_map(|name| match body(name) {
            Ok(body) if says(&body, reason) => None,
            Ok(_) => Some(format!("{name} does not assert {reason}")),
            Err(fault) => Some(fault),
        }));
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// Whether a text has the word as a string of its own.
fn says(body: &str, word: &str) -> bool {
    body.contains(&format!("\"{word}\""))
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
    assert!(fault("data_path::cases").is_some(), "no case");
    assert_eq!(fault("data_path::what_cannot_be_reached_is_503"), None);
    let asserting = body("http_routes::own_answers_say_why").expect("a test");
    assert!(says(&asserting, "NoBackend") && !says(&asserting, "Backend") && !says(&asserting, "Drained"));
    let rows = rows("| promise | tests |\n|---|---|\n| a | `b | c` | `x::y` `z::w` |\n| bare | |\n");
    assert_eq!(rows[0].1, ["x::y", "z::w"]);
    assert!(rows[1].1.is_empty());
}
