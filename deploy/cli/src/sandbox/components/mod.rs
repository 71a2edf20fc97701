//! The mesh's own processes: CA, controller, and one proxy per node, with the flags they have anywhere.

mod binaries;
mod component;
pub mod health;

use culvert_api::names::{ADMIN_PORT, CA_PORT, CONTROLLER_PORT};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

pub use self::binaries::{Binaries, BinaryMissing};
pub use self::component::{Action, Component, ComponentName, ComponentState, Recipe};
use super::cluster::{CONTROL_PLANE, Cluster, NodeInfo, netns_path};
use super::files::Files;
use super::namespaces::Entry;
use super::tokens::ISSUER;

/// The CA's admin port: it shares its namespace with the controller.
const CA_ADMIN_PORT: u16 = 15014;

/// What a user may say about the components.
#[derive(Clone, Debug)]
pub struct Settings {
    pub trust_domain: String,
    /// Log filter (`--log`); their own default without one.
    pub log: Option<String>,
    /// More arguments for every process of that program (`culvert-ca`, ...).
    pub extra: BTreeMap<String, Vec<String>>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { trust_domain: "cluster.local".to_owned(), log: None, extra: BTreeMap::new() }
    }
}

/// All of them. Clones share everything.
#[derive(Clone)]
pub struct Components(Arc<BTreeMap<ComponentName, Component>>);

impl Components {
    /// Starts them all.
    ///
    /// # Errors
    /// When a program is missing; nothing is started then.
    pub fn start(cluster: &Cluster, binaries: &Binaries, settings: &Settings) -> Result<Self, BinaryMissing> {
        let maker = Maker { cluster, binaries, settings };
        let mut recipes = vec![maker.ca()?, maker.controller()?];
        for node in &cluster.nodes {
            recipes.push(maker.node_proxy(node)?);
        }
        let started = recipes.into_iter().map(|recipe| (recipe.name.clone(), Component::start(recipe)));
        Ok(Self(Arc::new(started.collect())))
    }

    /// Carries out an action on one of them and returns when it is done.
    ///
    /// # Errors
    /// Names those that there are; why an upgrade has not come about.
    pub async fn act(&self, name: &ComponentName, action: Action) -> Result<(), String> {
        let Some(component) = self.0.get(name) else {
            let names = self.0.keys().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            return Err(format!("there is no component {name}; there are: {names}"));
        };
        component.act(action).await
    }

    /// What is known of each.
    #[must_use]
    pub fn states(&self) -> Vec<ComponentState> {
        self.0.values().map(Component::state).collect()
    }

    /// Ends them all at once.
    pub async fn stop(&self) {
        futures::future::join_all(self.0.values().map(|component| component.act(Action::Stop))).await;
    }
}

struct Maker<'a> {
    cluster: &'a Cluster,
    binaries: &'a Binaries,
    settings: &'a Settings,
}

impl Maker<'_> {
    fn ca(&self) -> Result<Recipe, BinaryMissing> {
        let address = self.cluster.control_plane.v4;
        let admin = SocketAddr::new(address.into(), CA_ADMIN_PORT);
        let mut arguments = self.trust();
        arguments.extend(pairs([
            ("--objects", path(&Files.objects())),
            ("--data-dir", path(&Files.ca_data())),
            ("--listen", SocketAddr::new(address.into(), CA_PORT).to_string()),
            ("--trust-domain", self.settings.trust_domain.clone()),
            ("--trust-bundle-out", path(&Files.trust_bundle())),
        ]));
        self.recipe(ComponentName::Ca, "culvert-ca", CONTROL_PLANE, admin, arguments)
    }

    fn controller(&self) -> Result<Recipe, BinaryMissing> {
        let address = self.cluster.control_plane.v4;
        let admin = SocketAddr::new(address.into(), ADMIN_PORT);
        let mut arguments = self.trust();
        arguments.extend(pairs([
            ("--objects", path(&Files.objects())),
            ("--statuses", path(&Files.statuses())),
            ("--wanted", path(&Files.wanted())),
            ("--session-keys", path(&Files.session_keys())),
            ("--listen", SocketAddr::new(address.into(), CONTROLLER_PORT).to_string()),
            ("--token", path(&Files.token("controller"))),
            ("--ca", self.ca_url()),
            ("--trust-bundle", path(&Files.trust_bundle())),
            ("--pod-cidr", self.cluster.pod_cidr.v4.to_string()),
            ("--pod-cidr", self.cluster.pod_cidr.v6.to_string()),
            ("--service-cidr", self.cluster.service_cidr.v4.to_string()),
            ("--service-cidr", self.cluster.service_cidr.v6.to_string()),
        ]));
        self.recipe(ComponentName::Controller, "culvert-controller", CONTROL_PLANE, admin, arguments)
    }

    fn node_proxy(&self, node: &NodeInfo) -> Result<Recipe, BinaryMissing> {
        let name = ComponentName::NodeProxy(node.name.clone());
        let admin = SocketAddr::new(node.address.v4.into(), ADMIN_PORT);
        let controller = SocketAddr::new(self.cluster.control_plane.v4.into(), CONTROLLER_PORT);
        let arguments = pairs([
            ("--controller", format!("https://{controller}")),
            ("--ca", self.ca_url()),
            ("--token", path(&Files.token(&name.file_name()))),
            ("--trust-bundle", path(&Files.trust_bundle())),
            ("--state-dir", path(&Files.node_state(&node.name))),
            ("--enrolment-socket", path(&Files.enrolment_socket(&node.name))),
        ]);
        self.recipe(name, "culvert-node-proxy", &node.name, admin, arguments)
    }

    /// How CA and controller check tokens.
    fn trust(&self) -> Vec<String> {
        pairs([("--token-keys", path(&Files.token_keys())), ("--token-issuer", ISSUER.to_owned())])
    }

    fn ca_url(&self) -> String {
        format!("https://{}", SocketAddr::new(self.cluster.control_plane.v4.into(), CA_PORT))
    }

    fn recipe(
        &self,
        name: ComponentName,
        program: &str,
        namespace: &str,
        admin: SocketAddr,
        arguments: Vec<String>,
    ) -> Result<Recipe, BinaryMissing> {
        let mut command = vec![path(&self.binaries.find(program)?), "run".to_owned()];
        command.extend(arguments);
        command.extend(["--admin".to_owned(), admin.to_string()]);
        if let Some(log) = &self.settings.log {
            command.extend(["--log".to_owned(), log.clone()]);
        }
        command.extend(self.settings.extra.get(program).into_iter().flatten().cloned());
        let entry = Entry {
            netns: Some(netns_path(namespace)),
            hostname: None,
            mounts: Vec::new(),
            directory: Some("/".into()),
            environment: environment(),
            command,
        };
        let log = Files.component_log(&name.file_name());
        Ok(Recipe { name, entry, log, admin, namespace: namespace.to_owned() })
    }
}

/// Our own, with the directories of `nft` and its like, which ordinary users often lack.
fn environment() -> BTreeMap<String, String> {
    let mut environment: BTreeMap<String, String> = std::env::vars().collect();
    let path = environment.entry("PATH".to_owned()).or_default();
    path.push_str(":/usr/local/sbin:/usr/sbin:/sbin");
    environment
}

fn pairs<const N: usize>(pairs: [(&str, String); N]) -> Vec<String> {
    pairs.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect()
}

fn path(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
