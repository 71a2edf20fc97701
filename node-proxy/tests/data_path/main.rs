//! The data path in real network namespaces: two pods, rules, workers, real tunnels between them. Runs as root, or as
//! an ordinary user where the kernel lets users make namespaces.

// A test, though not for the harness.
#![allow(clippy::unwrap_used)]

mod bounds;
mod cases;
mod connections;
mod endpoints;
mod filters;
mod gateway;
mod mesh;
mod messages;
mod metrics;
mod protocols;
mod retries;
mod routes;
mod smuggling;
mod web;
// What the other test of this crate does not share with this one is not dead.
#[allow(dead_code)]
#[path = "../capture/world.rs"]
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use culvert_node_proxy::intercept::rules::FirewallChoice;
use futures::future::LocalBoxFuture;

use mesh::Mesh;
use world::{Family, Setup, World};

/// A case that takes longer hangs.
const DEADLINE: Duration = Duration::from_secs(40);

type Case = fn(Mesh) -> LocalBoxFuture<'static, ()>;

fn all() -> impl Iterator<Item = &'static (&'static str, Case)> {
    cases::ALL
        .iter()
        .chain(routes::ALL)
        .chain(filters::ALL)
        .chain(retries::ALL)
        .chain(protocols::ALL)
        .chain(connections::ALL)
        .chain(messages::ALL)
        .chain(endpoints::ALL)
        .chain(bounds::ALL)
        .chain(gateway::ALL)
        .chain(metrics::ALL)
}

/// No threads may exist when the namespaces are made, so this is not a `#[test]` harness.
fn main() -> ExitCode {
    let filter: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    if std::env::args().any(|argument| argument == "--list") {
        for (name, _) in all() {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    world::enter_own_namespaces();
    mesh::prepare_node();
    let mut failed = Vec::new();
    for family in [Family::V4, Family::V6] {
        for (case, run) in all() {
            let name = format!("{family:?} {case}");
            if !filter.is_empty() && !filter.iter().any(|part| name.contains(part)) {
                continue;
            }
            let started = Instant::now();
            let outcome = catch_unwind(AssertUnwindSafe(|| run_case(family, *run)));
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

fn run_case(family: Family, run: Case) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let world = World::new(Setup { firewall: FirewallChoice::Nft, family }).await;
        let mesh = Mesh::new(world).await;
        tokio::time::timeout(DEADLINE, run(mesh)).await.expect("the case is done before its deadline");
    });
}
