//! Golden cases: each file in `testdata` holds input objects, then `# Output` with the resources and statuses expected.
//! `UPDATE_GOLDEN=1` writes what comes out; read the difference before it is committed.

// Helpers outside test functions are tests too.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};

use culvert_controller::render;
use culvert_controller::translate::{
    Environment, Memory, Reported, Statuses, default_settings, translate, translate_again, workloads,
    workloads_again,
};
use culvert_objects::mesh_config::LastGood;
use culvert_objects::{Objects, manifest};
use serde_json::{Map, Value, json};

const OUTPUT: &str = "# Output\n";

fn environment() -> Environment {
    Environment {
        cluster: "c".to_owned(),
        network: "n".to_owned(),
        pod_cidrs: vec!["10.1.0.0/16".parse().unwrap()],
        service_cidrs: vec!["10.2.0.0/16".parse().unwrap()],
    }
}

/// Files named `NAME.yaml`; an input `--- # then` starts a second pass over changed objects, to show what is kept.
fn output(input: &str, file: &Path) -> String {
    let environment = environment();
    let (mut mesh_last, mut pods_last) = (LastGood::default(), LastGood::default());
    let mut output = Value::Null;
    for (pass, text) in input.split("--- # then\n").enumerate() {
        let read = manifest::parse(text, file);
        let skipped: Vec<Value> = read.skipped.iter().map(|at| at.reason.to_string().into()).collect();
        assert!(pass == 0 || skipped.is_empty());
        let problems = read.errors.clone();
        let objects: Objects = read.objects.into_iter().map(|at| at.object).collect();
        let objects = objects.with_problems(problems);
        let translation = translate(&objects, &environment, &mesh_last);
        let made = workloads(&objects, &environment, &translation.in_force, &pods_last);
        let again = translate(&objects, &environment, &mesh_last);
        assert_eq!(again.mesh, translation.mesh);
        assert_eq!((&again.listeners, &again.routes), (&translation.listeners, &translation.routes));
        assert_eq!((&again.gateways, &again.wanted), (&translation.gateways, &translation.wanted));
        assert_eq!(again.statuses, translation.statuses);
        assert_eq!(workloads(&objects, &environment, &again.in_force, &pods_last).facts, made.facts);

        let mut all = Map::new();
        if !skipped.is_empty() {
            all.insert("skipped".to_owned(), skipped.into());
        }
        if translation.mesh != translate(&Objects::default(), &environment, &LastGood::default()).mesh {
            all.insert("mesh".to_owned(), render::mesh(&translation.mesh));
        }
        let services: Map<String, Value> = translation
            .services
            .iter()
            .map(|(name, service)| (name.clone(), render::service(service)))
            .collect();
        insert(&mut all, "services", services);
        let listeners = translation.listeners.iter();
        let listeners = listeners.map(|(name, listener)| (name.clone(), render::listener(listener)));
        insert(&mut all, "listeners", listeners.collect());
        let routes = translation.routes.iter().map(|(name, route)| (name.clone(), render::route(route)));
        insert(&mut all, "routes", routes.collect());
        let namespaces = translation.namespaces.iter();
        let namespaces =
            namespaces.map(|(name, namespace)| (name.clone(), json!({"enrols": namespace.enrols})));
        insert(&mut all, "namespaces", namespaces.collect());
        let facts = made.facts.iter().map(|(uid, facts)| (uid.clone(), render::workload(facts)));
        insert(&mut all, "workloads", facts.collect());
        let mut of_mesh = translation.statuses;
        for (key, facts) in &translation.gateways {
            facts.complete(std::sync::Arc::make_mut(of_mesh.get_mut(key).unwrap()), |_| Reported::Nothing);
        }
        insert(&mut all, "statuses", statuses(&of_mesh, &made.statuses));
        for object in &translation.wanted {
            assert_eq!(culvert_objects::schema::check(object), [], "{}", object.key());
        }
        let wanted = translation.wanted.iter();
        insert(&mut all, "wanted", wanted.map(|object| (object.key().to_string(), json!(object))).collect());
        output = all.into();
        mesh_last = translation.in_force.last_good().clone();
        pods_last = made.last_good.clone();
    }
    serde_yaml_ng::to_string(&output).unwrap()
}

fn insert(all: &mut Map<String, Value>, name: &str, entries: Map<String, Value>) {
    if !entries.is_empty() {
        all.insert(name.to_owned(), entries.into());
    }
}

/// Without times, which no pure function knows.
fn statuses(mesh: &Statuses, pods: &Statuses) -> Map<String, Value> {
    let said = mesh.iter().chain(pods).filter(|(_, status)| !status.is_empty());
    said.map(|(key, status)| {
        let mut document = status.json(None, chrono::DateTime::UNIX_EPOCH);
        drop_times(&mut document);
        (key.to_string(), document["status"].take())
    })
    .collect()
}

fn drop_times(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.shift_remove("lastTransitionTime");
            map.values_mut().for_each(drop_times);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_times),
        _ => {}
    }
}

#[test]
fn objects_become_the_resources_and_statuses_written_beside_them() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let files: Vec<PathBuf> = manifest::files_below(&directory).unwrap();
    assert!(files.len() >= 10, "{files:?}");
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut wrong = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let (input, expected) = text.split_once(OUTPUT).unwrap_or((&text, ""));
        let found = output(input, Path::new(file.file_name().unwrap()));
        if update {
            std::fs::write(&file, format!("{input}{OUTPUT}{found}")).unwrap();
        } else if found != expected {
            wrong.push(format!("{}:\n{found}", file.display()));
        }
    }
    assert!(wrong.is_empty(), "UPDATE_GOLDEN=1 writes these:\n{}", wrong.join("\n"));
}

#[test]
fn what_is_remembered_of_earlier_passes_changes_nothing() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let environment = environment();
    let last = LastGood::default();
    let (mut compared, mut workloads_compared) = (0, 0);
    for file in manifest::files_below(&directory).unwrap() {
        let text = std::fs::read_to_string(&file).unwrap();
        let (input, _) = text.split_once(OUTPUT).unwrap();
        let all: Objects = manifest::parse(input, &file).objects.into_iter().map(|at| at.object).collect();
        let mut memory = Memory::default();
        // Each object goes and comes back while the others stay the very same.
        let without = all.iter().map(|object| {
            let mut fewer = all.clone();
            fewer.remove(&object.key());
            fewer
        });
        for objects in without.flat_map(|fewer| [all.clone(), fewer]) {
            let remembered = translate_again(&objects, &environment, &last, &mut memory.routes);
            let fresh = translate(&objects, &environment, &last);
            let in_force = &fresh.in_force;
            let made = workloads_again(&objects, &environment, in_force, &last, &mut memory.workloads);
            let made_fresh = workloads(&objects, &environment, in_force, &last);
            assert_eq!(
                (&made.facts, &made.statuses),
                (&made_fresh.facts, &made_fresh.statuses),
                "{}",
                file.display()
            );
            assert_eq!(made.last_good, made_fresh.last_good, "{}", file.display());
            workloads_compared += made.facts.len();
            assert_eq!(remembered.routes, fresh.routes, "{}", file.display());
            assert_eq!(remembered.statuses, fresh.statuses, "{}", file.display());
            compared += remembered.routes.len();
        }
    }
    assert!(compared > 100 && workloads_compared > 100, "{compared} {workloads_compared}");
}

#[test]
fn a_workload_is_told_every_default() {
    let settings = default_settings();
    assert_eq!(settings.limits.unwrap().connections, 32_768);
    assert_eq!(settings.timeouts.unwrap().drain_ms, 600_000);
}
