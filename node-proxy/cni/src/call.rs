//! One call as the runtime makes it: what it says in the environment and on standard input.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::answer::PluginError;

/// Versions of the specification whose configurations and results are understood; what is used of them is the same in all.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// `CNI_COMMAND`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Add,
    Del,
    Check,
    Version,
    Status,
    Gc,
}

/// The environment, by name.
pub type Environment = BTreeMap<String, String>;

/// What the environment says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    pub command: Command,
    /// Of the container's network namespace; may be missing when it is gone.
    pub netns: Option<PathBuf>,
    pub interface: String,
    pub pod: Option<PodName>,
}

/// `CNI_ARGS` as kubelets' runtimes set them. Old runtimes do not know the uid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodName {
    pub namespace: String,
    pub name: String,
    pub uid: Option<String>,
}

impl std::fmt::Display for PodName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "pod {}/{}", self.namespace, self.name)
    }
}

impl Call {
    /// # Errors
    /// When a variable is missing or has a value that means nothing.
    pub fn read(environment: &Environment) -> Result<Self, PluginError> {
        let get = |name: &str| environment.get(name).filter(|value| !value.is_empty());
        let command = match get("CNI_COMMAND").map(String::as_str) {
            Some("ADD") => Command::Add,
            Some("DEL") => Command::Del,
            Some("CHECK") => Command::Check,
            Some("VERSION") => Command::Version,
            Some("STATUS") => Command::Status,
            Some("GC") => Command::Gc,
            Some(other) => return Err(PluginError::Environment(format!("CNI_COMMAND is {other:?}"))),
            None => {
                return Err(PluginError::Environment(
                    "CNI_COMMAND is not set: this program is called by container runtimes".to_owned(),
                ));
            }
        };
        let netns = get("CNI_NETNS").map(PathBuf::from);
        if command == Command::Add && netns.is_none() {
            return Err(PluginError::Environment("CNI_NETNS is not set".to_owned()));
        }
        let pod = get("CNI_ARGS").and_then(|arguments| PodName::read(arguments));
        Ok(Self { command, netns, interface: get("CNI_IFNAME").cloned().unwrap_or_default(), pod })
    }
}

impl PodName {
    fn read(arguments: &str) -> Option<Self> {
        let pairs: BTreeMap<&str, &str> =
            arguments.split(';').filter_map(|pair| pair.split_once('=')).collect();
        let get =
            |name: &str| pairs.get(name).filter(|value| !value.is_empty()).map(|value| (*value).to_owned());
        Some(Self {
            namespace: get("K8S_POD_NAMESPACE")?,
            name: get("K8S_POD_NAME")?,
            uid: get("K8S_POD_UID"),
        })
    }
}

/// What happens to pods of a namespace of which nothing is known while neither the node proxy nor the API server can be asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum UnknownNamespaces {
    /// They wait until somebody can say.
    #[default]
    Wait,
    /// They start outside the mesh.
    Start,
}

/// The plugin's entry in the network configuration, as [`crate::install`] writes it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Configuration {
    #[serde(default)]
    pub cni_version: String,
    pub enrolment_socket: PathBuf,
    pub kubeconfig: PathBuf,
    /// Where the node proxy keeps the last enrolment it knew.
    pub state_directory: PathBuf,
    pub node: String,
    #[serde(default)]
    pub unknown_namespaces: UnknownNamespaces,
    /// What the plugins before this one made.
    #[serde(default)]
    pub prev_result: Option<Value>,
}

impl Configuration {
    /// # Errors
    /// When it does not parse, or is of a version that is not understood.
    pub fn read(bytes: &[u8]) -> Result<Self, PluginError> {
        let configuration: Self = serde_json::from_slice(bytes)?;
        if VERSIONS.contains(&configuration.cni_version.as_str()) {
            Ok(configuration)
        } else {
            Err(PluginError::Version(configuration.cni_version))
        }
    }

    /// The pod's addresses, by the result of the plugins before.
    ///
    /// # Errors
    /// When there is none, or it names no address.
    pub fn addresses(&self) -> Result<Vec<IpAddr>, PluginError> {
        let Some(result) = &self.prev_result else {
            let what = "prevResult is missing: the plugin must be chained after one that makes the network";
            return Err(PluginError::Configuration(what.to_owned()));
        };
        let addresses = result["ips"].as_array().into_iter().flatten();
        let addresses = addresses.map(|ip| {
            let text = ip["address"].as_str().unwrap_or_default();
            let address = text.split_once('/').map_or(text, |(address, _)| address);
            let wrong =
                |error| PluginError::Configuration(format!("prevResult.ips[].address {text:?}: {error}"));
            address.parse().map_err(wrong)
        });
        let addresses: Vec<IpAddr> = addresses.collect::<Result<_, _>>()?;
        if addresses.is_empty() {
            return Err(PluginError::Configuration("prevResult names no address".to_owned()));
        }
        Ok(addresses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> Environment {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_kubelets_call_is_read() {
        let call = Call::read(&environment(&[
            ("CNI_COMMAND", "ADD"),
            ("CNI_NETNS", "/var/run/netns/cni-1"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart;K8S_POD_UID=u-1"),
        ]));
        let call = call.unwrap();
        assert_eq!(call.command, Command::Add);
        let pod = PodName { namespace: "shop".into(), name: "cart".into(), uid: Some("u-1".into()) };
        assert_eq!(call.pod, Some(pod));
    }

    #[test]
    fn what_is_missing_is_named() {
        for (pairs, expected) in [
            (&[][..], "CNI_COMMAND is not set"),
            (&[("CNI_COMMAND", "SING")], "CNI_COMMAND is \"SING\""),
            (&[("CNI_COMMAND", "ADD")], "CNI_NETNS"),
        ] {
            let error = Call::read(&environment(pairs)).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let gone = Call::read(&environment(&[("CNI_COMMAND", "DEL")])).unwrap();
        assert_eq!((gone.netns, gone.pod), (None, None));
    }

    fn configuration(rest: &str) -> Result<Configuration, PluginError> {
        let text = format!(
            r#"{{"cniVersion":"1.0.0","enrolmentSocket":"/s","kubeconfig":"/k","stateDirectory":"/d","node":"n1"{rest}}}"#
        );
        Configuration::read(text.as_bytes())
    }

    #[test]
    fn addresses_come_from_the_result_before() {
        let both = r#","prevResult":{"ips":[{"address":"10.1.0.2/24"},{"address":"fd00::2/64"}]}"#;
        let addresses = configuration(both).unwrap().addresses().unwrap();
        assert_eq!(addresses, ["10.1.0.2".parse::<IpAddr>().unwrap(), "fd00::2".parse().unwrap()]);
        for (rest, expected) in [
            ("", "chained"),
            (r#","prevResult":{"ips":[]}"#, "no address"),
            (r#","prevResult":{"ips":[{"address":"ten"}]}"#, "\"ten\""),
        ] {
            let error = configuration(rest).unwrap().addresses().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn an_unknown_version_is_refused() {
        let error = Configuration::read(br#"{"cniVersion":"0.1.0","enrolmentSocket":"/s","kubeconfig":"/k","stateDirectory":"/d","node":"n"}"#);
        assert!(error.unwrap_err().to_json("1.0.0").contains("\"code\":1"));
    }
}
