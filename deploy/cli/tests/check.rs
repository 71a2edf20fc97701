//! `culvert check` as users run it: files, directories, standard input, and what cannot be read.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers outside test functions are tests too")]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

const GOOD: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: cart, namespace: shop}\n\
                    spec: {selector: {app: cart}, ports: [{name: http, port: 80}]}\n";
const ROUTE: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: cart, namespace: shop}\nspec:\n  \
                     parentRefs: [{group: \"\", kind: Service, name: cart}]\n  rules:\n    - backendRefs:\n        - {name: cart, \
                     port: 81}\n";

struct Done {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Done {
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}{}", self.stdout, self.stderr))
    }

    fn codes(&self) -> Vec<String> {
        let report = self.json();
        let findings = report["findings"].as_array().unwrap().iter();
        findings.map(|of| of["code"].as_str().unwrap().to_owned()).collect()
    }
}

fn check(arguments: &[&str], input: &str) -> Done {
    let mut command = Command::new(env!("CARGO_BIN_EXE_culvert"));
    command.arg("check").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    // Not everybody reads it.
    let writer = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    Done {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

struct Directory(tempfile::TempDir);

impl Directory {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> String {
        let path: PathBuf = self.0.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    fn path(&self) -> String {
        self.0.path().display().to_string()
    }
}

#[test]
fn findings_are_told_with_file_line_and_remedy_and_errors_make_it_fail() {
    let directory = Directory::new();
    let (service, route) = (directory.write("a.yaml", GOOD), directory.write("b/route.yaml", ROUTE));
    let done = check(&["-f", &service, "-f", &route], "");
    assert_eq!(done.code, 1, "{}{}", done.stdout, done.stderr);
    let expected = format!("{route}:8: error CV205: HTTPRoute shop/cart: spec.rules[0].backendRefs[0]\n");
    assert!(done.stdout.starts_with(&expected), "{}", done.stdout);
    assert!(done.stdout.contains("-> write port: one of 80\n"), "{}", done.stdout);
    assert!(done.stdout.ends_with("2 objects: 1 error, 0 warnings, 0 notices\n"), "{}", done.stdout);
    // The same of the directory, and as values.
    let done = check(&["-f", &directory.path(), "-o", "json"], "");
    let report = done.json();
    assert_eq!((done.code, report["errors"].as_u64()), (1, Some(1)));
    let finding = &report["findings"][0];
    let expected = serde_json::json!({
        "code": "CV205", "severity": "error", "file": route, "document": 1, "line": 8,
        "object": "HTTPRoute shop/cart", "field": "spec.rules[0].backendRefs[0]",
        "what": finding["what"], "remedy": "write port: one of 80",
    });
    assert_eq!(*finding, expected);
    assert!(finding["what"].as_str().unwrap().contains("every request of the rule is answered 500"));
    // Several after one -f, and warnings alone are no failure.
    let good = ROUTE.replace("81", "80").replace("spec:\n", "spec:\n  hostnames: [a.example]\n");
    let warned = directory.write("warned.yaml", good);
    let done = check(&["-f", &service, &warned, "-o", "json"], "");
    assert_eq!((done.code, done.codes()), (0, vec!["CV305".to_owned()]));
}

#[test]
fn standard_input_is_read_and_objects_that_are_not_in_the_files_are_judged_as_asked() {
    let done = check(&["-f", "-", "-o", "json"], &format!("{GOOD}---\n{ROUTE}"));
    assert_eq!((done.code, done.codes()), (1, vec!["CV205".to_owned()]));
    assert_eq!(done.json()["findings"][0]["file"], "standard input");
    let alone = |absent: &str| {
        let done = check(&["-f", "-", "-o", "json", "--absent", absent], ROUTE);
        (done.code, done.codes())
    };
    assert_eq!(alone("judged"), (0, vec!["CV203".to_owned()]));
    assert_eq!(alone("missing"), (1, vec!["CV201".to_owned()]));
    assert_eq!(alone("there"), (0, Vec::new()));
}

#[test]
fn what_cannot_be_read_is_another_failure_and_the_rest_is_checked() {
    let directory = Directory::new();
    let route = directory.write("route.yaml", format!("{GOOD}---\n{ROUTE}"));
    let missing = format!("{}/none.yaml", directory.path());
    let done = check(&["-f", &missing, "-f", &route, "-o", "json"], "");
    assert_eq!((done.code, done.codes()), (2, vec!["CV205".to_owned()]));
    assert!(done.stderr.contains(&missing) && done.stderr.contains("No such file"), "{}", done.stderr);

    let latin = directory.write("latin.yaml", b"apiVersion: v1\nkind: Service # gr\xfc\xdfe\n");
    let done = check(&["-f", &latin], "");
    assert!(
        done.code == 2 && done.stderr.contains("is not UTF-8 (byte 33)"),
        "{} {}",
        done.code,
        done.stderr
    );

    let utf16 = |text: &str| -> Vec<u8> { text.encode_utf16().flat_map(u16::to_le_bytes).collect() };
    let marked = |text: String| format!("\u{feff}{text}");
    let wide = directory.write("wide.yaml", utf16(&marked(format!("{GOOD}---\n{ROUTE}"))));
    let marked = directory.write("marked.yaml", marked(format!("{GOOD}---\n{ROUTE}")));
    for file in [&wide, &marked] {
        let done = check(&["-f", file, "-o", "json"], "");
        assert_eq!((done.code, done.codes()), (1, vec!["CV205".to_owned()]), "{file}: {}", done.stderr);
    }

    let huge = directory.write("huge.yaml", "");
    std::fs::File::options().write(true).open(&huge).unwrap().set_len(17 << 20).unwrap();
    let done = check(&["-f", &huge], "");
    assert!(done.code == 2 && done.stderr.contains("is larger than"), "{} {}", done.code, done.stderr);

    let empty = Directory::new();
    empty.write("note.txt", "no manifest");
    let done = check(&["-f", &empty.path()], "");
    assert!(done.code == 2 && done.stderr.contains("has no *.yaml"), "{} {}", done.code, done.stderr);

    for arguments in [&[][..], &["-f", &route, "-o", "xml"], &["-f", &route, "--absent", "maybe"]] {
        assert_eq!(check(arguments, "").code, 2, "{arguments:?}");
    }
}

#[test]
fn broken_text_is_a_finding_at_its_line() {
    let done = check(&["-f", "-", "-o", "json"], &format!("{GOOD}---\nkind: [\n"));
    assert_eq!((done.code, done.codes()), (1, vec!["CV101".to_owned()]));
    let finding = &done.json()["findings"][0];
    assert!(finding["line"].as_u64().is_some_and(|line| line >= 6), "{finding}");
    let done = check(&["-f", "-", "-o", "json"], "a: 1\n---\n- 2\n");
    assert_eq!((done.code, done.codes().iter().all(|code| code == "CV101")), (1, true));
}

#[test]
fn the_examples_of_the_documentation_have_the_findings_that_it_names() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/examples");
    let done = check(&["-f", &examples.display().to_string(), "-o", "json"], "");
    assert_eq!((done.code, done.codes()), (0, vec!["CV307".to_owned(), "CV108".to_owned()]));
}

#[test]
fn a_thousand_routes_are_judged_together() {
    let mut text = GOOD.to_owned();
    for index in 0..1000 {
        let rule = format!("- matches: [{{path: {{value: /p{}}}}}]\n      backendRefs:", index % 999);
        let route = ROUTE.replace("81", "80").replace("- backendRefs:", &rule);
        text.push_str(&format!("---\n{}", route.replacen("name: cart", &format!("name: r{index:04}"), 1)));
    }
    let done = check(&["-f", "-", "-o", "json"], &text);
    assert_eq!((done.code, done.codes()), (0, vec!["CV401".to_owned()]), "{}", done.stderr);
    assert_eq!(done.json()["findings"][0]["object"], "HTTPRoute shop/r0999");
}
