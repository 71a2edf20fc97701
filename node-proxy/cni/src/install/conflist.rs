//! Which network configuration the runtime takes, and that one with the plugin in it. Pure.

use serde_json::{Map, Value, json};
use thiserror::Error;

use crate::PLUGIN;

/// Names of our own file, the usual one first. The others stand before files that would stand before that.
pub const NAMES: [&str; 3] = ["00-culvert.conflist", "0-culvert.conflist", "!culvert.conflist"];
/// Plugins added after the primary network of a single configuration carry these fields for all.
const OF_THE_LIST: [&str; 2] = ["cniVersion", "name"];

/// Why there is nothing to put in force.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum ConflistError {
    #[error("{0} stands before any name that Culvert's CNI configuration may have; rename it")]
    NoName(String),
    #[error("{file}: cniVersion {version} is older than plugins that are chained; update that CNI")]
    TooOld { file: String, version: String },
}

/// What shall be.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    /// Name of our file.
    pub name: &'static str,
    pub text: String,
    /// The file that it stands for.
    pub primary: String,
    /// Files of ours under other names.
    pub obsolete: Vec<&'static str>,
}

/// Whether a runtime would read it, by its name.
#[must_use]
pub fn is_configuration(name: &str) -> bool {
    !name.starts_with('.') && [".conf", ".conflist", ".json"].iter().any(|end| name.ends_with(end))
}

/// `files` are all configurations of the directory; runtimes take the first that makes sense, by name. None where there is
/// no network yet: then our last file, if there is one, stays in force.
///
/// # Errors
/// When the first configuration cannot be chained to.
pub fn plan(files: &[(String, Vec<u8>)], plugin: &Value) -> Result<Option<Plan>, ConflistError> {
    let mut others: Vec<(&str, Map<String, Value>)> = files
        .iter()
        .filter(|(name, _)| !NAMES.contains(&name.as_str()))
        .filter_map(|(name, bytes)| Some((name.as_str(), network(name, bytes)?)))
        .collect();
    others.sort_by_key(|(name, _)| *name);
    let Some((primary, mut network)) = others.into_iter().next() else { return Ok(None) };
    let version = network["cniVersion"].as_str().unwrap_or_default().to_owned();
    if !crate::call::VERSIONS.contains(&version.as_str()) {
        return Err(ConflistError::TooOld { file: primary.to_owned(), version });
    }
    if let Some(plugins) = network.get_mut("plugins").and_then(Value::as_array_mut) {
        plugins.retain(|known| known["type"] != PLUGIN);
        plugins.push(plugin.clone());
    }
    let name = NAMES.into_iter().find(|name| *name < primary);
    let name = name.ok_or_else(|| ConflistError::NoName(primary.to_owned()))?;
    let text = format!("{:#}\n", Value::Object(network));
    let is_ours = |other: &&str| *other != name && files.iter().any(|(known, _)| known == other);
    Ok(Some(Plan {
        name,
        text,
        primary: primary.to_owned(),
        obsolete: NAMES.into_iter().filter(is_ours).collect(),
    }))
}

/// The content as a list of plugins. None for what runtimes skip, and for the loopback interface, which is no network.
fn network(name: &str, bytes: &[u8]) -> Option<Map<String, Value>> {
    let Ok(Value::Object(read)) = serde_json::from_slice(bytes) else { return None };
    if name.ends_with(".conflist") {
        let plugins = read.get("plugins")?.as_array()?;
        return (!plugins.is_empty() && !is_loopback(plugins)).then_some(read);
    }
    read.get("type")?.as_str()?;
    let mut list: Map<String, Value> =
        OF_THE_LIST.iter().filter_map(|key| Some(((*key).to_owned(), read.get(*key)?.clone()))).collect();
    let single: Map<String, Value> =
        read.into_iter().filter(|(key, _)| !OF_THE_LIST.contains(&key.as_str())).collect();
    if is_loopback(&[Value::Object(single.clone())]) {
        return None;
    }
    list.entry("cniVersion").or_insert(json!(""));
    list.insert("plugins".to_owned(), json!([single]));
    Some(list)
}

fn is_loopback(plugins: &[Value]) -> bool {
    plugins.iter().all(|plugin| plugin["type"] == "loopback")
}

#[cfg(test)]
mod tests {
    use super::*;

    const BRIDGE: &str =
        r#"{"cniVersion":"1.0.0","name":"kube","plugins":[{"type":"bridge","bridge":"cni0"}]}"#;

    fn planned(files: &[(&str, &str)]) -> Result<Option<Plan>, ConflistError> {
        let files: Vec<_> =
            files.iter().map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec())).collect();
        plan(&files, &json!({"type": PLUGIN, "node": "n1"}))
    }

    fn types(plan: &Plan) -> Vec<String> {
        let list: Value = serde_json::from_str(&plan.text).unwrap();
        let plugins = list["plugins"].as_array().unwrap();
        plugins.iter().map(|plugin| plugin["type"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn the_plugin_comes_last_and_the_rest_stays() {
        let plan = planned(&[("10-kube.conflist", BRIDGE), ("20-other.conflist", "{}")]).unwrap().unwrap();
        assert_eq!((plan.name, plan.primary.as_str()), ("00-culvert.conflist", "10-kube.conflist"));
        assert_eq!(types(&plan), ["bridge", PLUGIN]);
        let list: Value = serde_json::from_str(&plan.text).unwrap();
        assert_eq!((&list["name"], &list["plugins"][0]["bridge"]), (&json!("kube"), &json!("cni0")));
    }

    #[test]
    fn a_single_configuration_becomes_a_list() {
        let single = r#"{"cniVersion":"0.3.1","name":"old","type":"flannel","delegate":{"mtu":1400}}"#;
        let plan = planned(&[("10-old.conf", single)]).unwrap().unwrap();
        let list: Value = serde_json::from_str(&plan.text).unwrap();
        assert_eq!(list["cniVersion"], "0.3.1");
        assert_eq!(list["plugins"][0], json!({"type": "flannel", "delegate": {"mtu": 1400}}));
        assert_eq!(types(&plan), ["flannel", PLUGIN]);
    }

    #[test]
    fn what_runtimes_skip_and_loopbacks_are_no_network() {
        let loopback = r#"{"cniVersion":"1.0.0","name":"lo","type":"loopback"}"#;
        let files = [
            ("05-broken.conflist", "{"),
            ("06-lo.conf", loopback),
            ("07-empty.conflist", "{\"plugins\":[]}"),
        ];
        assert_eq!(planned(&files), Ok(None));
        assert_eq!(planned(&[]), Ok(None));
        let plan = planned(&[files[0], files[1], ("99-kube.conflist", BRIDGE)]).unwrap().unwrap();
        assert_eq!(plan.primary, "99-kube.conflist");
    }

    #[test]
    fn planning_again_changes_nothing() {
        let first = planned(&[("10-kube.conflist", BRIDGE)]).unwrap().unwrap();
        let again = planned(&[(first.name, &first.text), ("10-kube.conflist", BRIDGE)]).unwrap().unwrap();
        assert_eq!(first, again);
        // Somebody copied ours.
        let copied = planned(&[("10-kube.conflist", &first.text)]).unwrap().unwrap();
        assert_eq!(types(&copied), ["bridge", PLUGIN]);
    }

    #[test]
    fn another_network_that_comes_first_is_followed() {
        let calico = BRIDGE.replace("bridge", "calico");
        let ours = planned(&[("10-kube.conflist", BRIDGE)]).unwrap().unwrap().text;
        let plan = planned(&[
            ("00-culvert.conflist", &ours),
            ("00-aaa.conflist", &calico),
            ("10-kube.conflist", BRIDGE),
        ]);
        let plan = plan.unwrap().unwrap();
        assert_eq!((plan.name, plan.primary.as_str()), ("0-culvert.conflist", "00-aaa.conflist"));
        assert_eq!(plan.obsolete, ["00-culvert.conflist"]);
        assert_eq!(types(&plan), ["calico", PLUGIN]);
        let refused = planned(&[(" first.conflist", BRIDGE)]);
        assert_eq!(refused, Err(ConflistError::NoName(" first.conflist".to_owned())));
    }

    #[test]
    fn a_version_without_chaining_is_refused_by_name() {
        let old = BRIDGE.replace("1.0.0", "0.2.0");
        let error = planned(&[("10-kube.conflist", &old)]).unwrap_err().to_string();
        assert!(error.contains("10-kube.conflist") && error.contains("0.2.0"), "{error}");
    }
}
