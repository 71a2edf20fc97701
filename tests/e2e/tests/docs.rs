//! Every command of README.md and of the pages in docs is run as it stands there.

use culvert_e2e::binary;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Run by .ci/run itself; here they only must exist.
const TOO_LARGE: [&str; 2] = ["deploy/demo", "tests/run"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the repository")
}

/// The lines of all `sh` blocks of a page.
fn commands(page: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(page).expect("the page");
    let mut inside = false;
    let mut found = Vec::new();
    for line in text.lines() {
        match line.trim_end() {
            "```sh" => inside = true,
            "```" => inside = false,
            line if inside => found.push(line.to_owned()),
            _ => {}
        }
    }
    assert!(!inside, "{}: a block does not end", page.display());
    found
}

/// Runs a page's commands in one shell, at the root of the tree, with the programs under test and places of its own.
fn run(page: &str) {
    let programs = binary("culvert").parent().expect("a directory").to_owned();
    // A user's own sandbox of the default name is left alone.
    let name = format!("e2e-docs-{:08x}", rand::random::<u32>());
    let mut script = String::from("set -eux\n");
    for command in commands(&root().join(page)) {
        let program = command.split_whitespace().next().unwrap_or_default();
        if TOO_LARGE.contains(&program) {
            assert!(root().join(program).exists(), "{page} names {program}, which does not exist");
        } else if program == "export" {
            // The page's programs are those of a release build; these are the ones under test.
            script.push_str(&format!("export PATH=\"{}:$PATH\"\n", programs.display()));
        } else {
            script.push_str(&command);
            script.push('\n');
        }
    }
    let output = Command::new("timeout")
        .args(["--kill-after=5", "150", "bash", "-c", &script])
        .current_dir(root())
        .env("CULVERT_SANDBOX", &name)
        .output()
        .expect("bash");
    // Whatever happened, nothing stays behind.
    let _ = Command::new(programs.join("culvert"))
        .args(["sandbox", "down"])
        .env("CULVERT_SANDBOX", &name)
        .output();
    assert!(
        output.status.success(),
        "{page}: {}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn every_command_of_the_sandbox_page_works() {
    assert!(commands(&root().join("docs/sandbox.md")).len() > 20);
    run("docs/sandbox.md");
}

#[test]
fn every_command_of_the_routing_page_works() {
    assert!(commands(&root().join("docs/routing.md")).len() > 8);
    run("docs/routing.md");
}

#[test]
fn every_command_of_the_page_on_checks_works() {
    assert!(commands(&root().join("docs/check.md")).len() > 2);
    run("docs/check.md");
}

#[test]
fn every_command_of_the_readme_exists() {
    assert_eq!(commands(&root().join("README.md")).len(), 2);
    run("README.md");
}
