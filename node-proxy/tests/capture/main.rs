//! Capture in real network namespaces, with each program that loads rules and each address family. Runs as root, or as
//! an ordinary user where the kernel lets users make namespaces. Nothing is skipped: what is missing fails, named.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod ca;
mod cases;
mod enrolment;
mod gateway;
mod node;
mod search;
mod traffic;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use world::{Setup, World};

/// A case that takes longer hangs.
const DEADLINE: Duration = Duration::from_secs(120);

type Case = fn(World) -> BoxFuture<'static, ()>;

/// No threads may exist when the namespaces are made, so this is not a `#[test]` harness.
fn main() -> ExitCode {
    let filter: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    if std::env::args().any(|argument| argument == "--list") {
        for (name, _) in cases::ALL.iter().chain(enrolment::ALL).chain(gateway::ALL).chain(search::ALL) {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    raise_descriptor_limit();
    world::enter_own_namespaces();
    let mut failed = Vec::new();
    for setup in Setup::ALL {
        let is_for_lives = |_: &&(&str, Case)| Setup::FOR_LIVES.contains(setup);
        let lives = enrolment::ALL.iter().chain(gateway::ALL).chain(search::ALL).filter(is_for_lives);
        for (case, run) in cases::ALL.iter().chain(lives) {
            let name = format!("{setup} {case}");
            if !filter.is_empty() && !filter.iter().any(|part| name.contains(part)) {
                continue;
            }
            let started = Instant::now();
            let outcome = catch_unwind(AssertUnwindSafe(|| run_case(*setup, *run)));
            let verdict = if outcome.is_ok() { "ok" } else { "FAILED" };
            println!("test {name} ... {verdict} ({:.1} s)", started.elapsed().as_secs_f32());
            if outcome.is_err() {
                failed.push(name);
            }
        }
    }
    println!("{} failed {failed:?}", failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Clients, proxy and servers share this process; ordinary users begin with 1,024.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("up to the hard limit");
}

fn run_case(setup: Setup, run: Case) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let world = World::new(setup).await;
        tokio::time::timeout(DEADLINE, run(world)).await.expect("the case is done before its deadline");
    });
}
