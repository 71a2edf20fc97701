//! `culvert config effective NS/POD`: each setting's value, and where it is from.

use anyhow::bail;
use clap::{Args, Subcommand};
use culvert_controller::translate::{self, Environment};
use culvert_objects::mesh_config::{LastGood, Origin, SETTINGS, SettingError};
use culvert_objects::{Kind, Object, Objects};
use serde::Serialize;
use std::fmt::Write as _;

use super::target::{Target, TargetArgs};
use crate::cli::output::{Format, print};
use crate::explain;
use crate::sandbox::get::Table;

/// The settings that are in force.
#[derive(Args, Debug)]
pub struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Subcommand, Debug)]
enum ConfigCommand {
    /// Each setting of a pod: its value, and where that is from (docs/settings.md).
    Effective(EffectiveArgs),
}

#[derive(Args, Debug)]
struct EffectiveArgs {
    /// NAMESPACE/POD
    #[arg(value_name = "NAMESPACE/POD", value_parser = pod_name)]
    pod: (String, String),
    #[command(flatten)]
    target: TargetArgs,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

fn pod_name(text: &str) -> Result<(String, String), String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok((namespace.to_owned(), name.to_owned()))
        }
        _ => Err("expected NAMESPACE/POD".to_owned()),
    }
}

/// What settings are made from.
const KINDS: [Kind; 4] = [Kind::XMesh, Kind::MeshConfig, Kind::Namespace, Kind::Pod];

/// Reads the objects and prints.
///
/// # Errors
/// When they cannot be read, or there is no such pod.
pub async fn run(arguments: &ConfigArgs) -> anyhow::Result<()> {
    let ConfigCommand::Effective(arguments) = &arguments.command;
    let (namespace, name) = &arguments.pod;
    let objects = match arguments.target.target() {
        Target::Sandbox(name) => explain::objects_of_sandbox(&name).await?,
        Target::Cluster(cluster) => cluster.connect_or_say().await?.objects(&KINDS, Some(namespace)).await?,
    };
    let Some(pod) = objects.find(Kind::Pod, namespace, name) else {
        bail!("there is no pod {namespace}/{name}; kubectl -n {namespace} get pods lists them");
    };
    let effective = effective(&objects, pod);
    print(arguments.output, &text(&effective), &serde_json::to_value(&effective)?)
}

/// The settings of one pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Effective {
    /// `namespace/name`
    pod: String,
    settings: Vec<Setting>,
    /// What is written and cannot be used.
    invalid: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Setting {
    /// As below `spec` of a MeshConfig.
    setting: &'static str,
    value: String,
    /// `default`, or the object and the field that say it.
    from: String,
}

fn effective(objects: &Objects, pod: &Object) -> Effective {
    let last = LastGood::default();
    let translation = translate::translate(objects, &Environment::default(), &last);
    let (found, errors) = translation.in_force.explained(pod, &last);
    let config = translate::config_name(objects);
    let settings = SETTINGS.iter().map(|setting| {
        let annotation = || format!("culvert.dev/{}", setting.annotation.unwrap_or_default());
        Setting {
            setting: setting.path,
            value: setting.text(&found.settings),
            from: match found.origin(setting.path) {
                Origin::Default => "default".to_owned(),
                Origin::Mesh => format!("MeshConfig {config}: spec.{}", setting.path),
                Origin::Namespace => format!("Namespace {}: annotation {}", pod.namespace(), annotation()),
                Origin::Pod => format!("the pod: annotation {}", annotation()),
            },
        }
    });
    Effective {
        pod: format!("{}/{}", pod.namespace(), pod.name()),
        settings: settings.collect(),
        invalid: errors.iter().map(SettingError::to_string).collect(),
    }
}

fn text(effective: &Effective) -> String {
    let mut table = Table::new(["SETTING", "VALUE", "FROM"]);
    for Setting { setting, value, from } in &effective.settings {
        table.row(vec![(*setting).to_owned(), value.clone(), from.clone()]);
    }
    let mut text = table.render();
    for error in &effective.invalid {
        let _ = writeln!(
            text,
            "invalid: {error} (a value that was valid before stays in force at the controller; here the next less specific one is shown)"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn object(api_version: &str, kind: &str, name: &str, annotations: Value, spec: Value) -> Object {
        let mut metadata = json!({"name": name, "annotations": annotations});
        if kind == "Pod" {
            metadata["namespace"] = "shop".into();
        }
        serde_json::from_value(
            json!({"apiVersion": api_version, "kind": kind, "metadata": metadata, "spec": spec}),
        )
        .unwrap()
    }

    #[test]
    fn each_value_says_where_it_is_from() {
        let pod = json!({"culvert.dev/inbound-mode": "strict", "culvert.dev/udp": "perhaps"});
        let objects: Objects = [
            object(
                "culvert.dev/v1alpha1",
                "MeshConfig",
                "default",
                json!({}),
                json!({"limits": {"connections": 10}, "inboundMode": "strict"}),
            ),
            object(
                "v1",
                "Namespace",
                "shop",
                json!({"culvert.dev/inbound-mode": "permissive", "culvert.dev/max-requests": "5"}),
                json!({}),
            ),
            object("v1", "Pod", "cart", pod, json!({})),
        ]
        .into_iter()
        .collect();
        let pod = objects.find(Kind::Pod, "shop", "cart").unwrap();
        let found = effective(&objects, pod);
        let of = |path: &str| {
            let setting = found.settings.iter().find(|of| of.setting == path).unwrap();
            (setting.value.as_str(), setting.from.as_str())
        };
        assert_eq!(of("inboundMode"), ("strict", "the pod: annotation culvert.dev/inbound-mode"));
        assert_eq!(of("limits.requests"), ("5", "Namespace shop: annotation culvert.dev/max-requests"));
        assert_eq!(of("limits.connections"), ("10", "MeshConfig default: spec.limits.connections"));
        assert_eq!(of("udp"), ("allow", "default"));
        assert!(found.invalid[0].contains("Pod shop/cart: culvert.dev/udp"), "{:?}", found.invalid);
    }

    #[test]
    fn a_pod_is_named_with_its_namespace() {
        assert_eq!(pod_name("a/b"), Ok(("a".to_owned(), "b".to_owned())));
        for wrong in ["a", "a/", "/b", "a/b/c"] {
            assert!(pod_name(wrong).is_err(), "{wrong}");
        }
    }
}
