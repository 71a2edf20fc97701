//! `data/gateway-api.json` says what the definitions of the Gateway API's own module say. The `go` tool fetches the module when
//! the test runs; `UPDATE_GOLDEN=1` writes the file anew.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers outside test functions are tests too")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize as _;
use serde_json::{Map, Value, json};

const MODULE: &str = "sigs.k8s.io/gateway-api@v1.6.1";

fn module() -> PathBuf {
    let elsewhere = tempfile::tempdir().unwrap();
    let output = Command::new("go")
        .args(["mod", "download", "-json", MODULE])
        .current_dir(elsewhere.path())
        .output()
        .unwrap_or_else(|error| panic!("the go tool fetches {MODULE}, and does not run: {error}"));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let found = answer["Dir"].as_str().unwrap_or_else(|| panic!("{MODULE} cannot be fetched: {answer}"));
    PathBuf::from(found)
}

fn definitions(directory: &Path) -> Vec<Value> {
    let mut found = Vec::new();
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        for document in serde_yaml_ng::Deserializer::from_str(&text) {
            let value = Value::deserialize(document).unwrap();
            if value["kind"] == "CustomResourceDefinition" {
                found.push(value);
            }
        }
    }
    found
}

/// Without words and without what only the API server needs.
fn slim(schema: &Value) -> Value {
    const KEPT: [&str; 10] = [
        "type",
        "enum",
        "minimum",
        "maximum",
        "minLength",
        "maxLength",
        "minItems",
        "maxItems",
        "pattern",
        "maxProperties",
    ];
    let mut slimmed = Map::new();
    for (name, value) in schema.as_object().unwrap() {
        let of_each = |fields: &Map<String, Value>| {
            let fields: BTreeMap<&String, Value> = fields.iter().map(|(name, of)| (name, slim(of))).collect();
            json!(fields)
        };
        match name.as_str() {
            kept if KEPT.contains(&kept) => drop(slimmed.insert(name.clone(), value.clone())),
            "required" => drop(slimmed.insert(name.clone(), value.clone())),
            "properties" => drop(slimmed.insert(name.clone(), of_each(value.as_object().unwrap()))),
            "items" => drop(slimmed.insert(name.clone(), slim(value))),
            "additionalProperties" if value.is_object() => drop(slimmed.insert(name.clone(), slim(value))),
            _ => {}
        }
    }
    Value::Object(slimmed)
}

/// The fields that authors write.
fn of_version(version: &Value) -> Value {
    let mut schema = slim(&version["schema"]["openAPIV3Schema"]);
    let fields = schema["properties"].as_object_mut().unwrap();
    fields.retain(|name, _| !matches!(name.as_str(), "apiVersion" | "kind" | "metadata" | "status"));
    schema
}

fn served(definition: &Value) -> Vec<String> {
    let versions = definition["spec"]["versions"].as_array().unwrap().iter();
    let served = versions.filter(|version| version["served"] == true);
    served.map(|version| version["name"].as_str().unwrap().to_owned()).collect()
}

fn made() -> String {
    let directory = module().join("config/crd");
    let name = |definition: &Value| definition["spec"]["names"]["kind"].as_str().unwrap().to_owned();
    let standard: BTreeMap<String, Vec<String>> =
        definitions(&directory.join("standard")).iter().map(|of| (name(of), served(of))).collect();
    let mut kinds = BTreeMap::new();
    for definition in definitions(&directory.join("experimental")) {
        let kind = name(&definition);
        let is_standard = |version: &String| standard.get(&kind).is_some_and(|all| all.contains(version));
        let versions: BTreeMap<String, &str> = served(&definition)
            .into_iter()
            .map(|version| {
                let channel = if is_standard(&version) { "standard" } else { "experimental" };
                (version, channel)
            })
            .collect();
        let all = definition["spec"]["versions"].as_array().unwrap();
        let newest = all.iter().find(|version| version["name"] == "v1").unwrap_or(&all[0]);
        let schema = of_version(newest);
        let others = all.iter().filter(|version| version["served"] == true);
        let others = others.map(|version| (version["name"].as_str().unwrap(), of_version(version)));
        let others: BTreeMap<&str, Value> = others.filter(|(_, other)| *other != schema).collect();
        let mut made = json!({"group": definition["spec"]["group"], "versions": versions, "schema": schema});
        if !others.is_empty() {
            made["schemas"] = json!(others);
        }
        kinds.insert(kind, made);
    }
    let mut text = String::from("{\n");
    for (index, (kind, of)) in kinds.iter().enumerate() {
        let comma = if index + 1 < kinds.len() { "," } else { "" };
        writeln!(text, "{}: {of}{comma}", json!(kind)).unwrap();
    }
    text + "}\n"
}

#[test]
fn the_schemas_are_those_of_the_api() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/data/gateway-api.json");
    let made = made();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &made).unwrap();
    }
    assert!(std::fs::read_to_string(path).unwrap() == made, "run again with UPDATE_GOLDEN=1");
}
