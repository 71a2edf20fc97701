use std::os::unix::fs::{MetadataExt, PermissionsExt};

use culvert_api::mesh as wire;
use serde_json::json;

use super::super::resources::Resources;
use super::super::snapshot::Origin;
use super::super::testing::{mesh_resource, namespace_resource, wire_mesh, wire_workload, workload_resource};
use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

struct Case {
    directory: tempfile::TempDir,
    snapshots: Snapshots,
    resources: Resources,
}

impl Case {
    fn new() -> Self {
        let mut resources = Resources::default();
        resources.apply(wire::Page { upserts: vec![mesh_resource(wire_mesh())], removals: Vec::new() });
        let snapshots = Snapshots::new(Snapshot::empty());
        Self { directory: tempfile::tempdir().unwrap(), snapshots, resources }
    }

    fn tell(&mut self, upserts: Vec<wire::Resource>, removals: &[&str]) {
        let key = |name: &&str| wire::ResourceKey {
            r#type: wire::ResourceType::Namespace.into(),
            name: (*name).to_owned(),
        };
        let removals = removals.iter().map(key).collect();
        assert_eq!(self.resources.apply(wire::Page { upserts, removals }), []);
        let (snapshot, _) = self.resources.freeze(Origin::Controller, "v").unwrap();
        self.snapshots.publish(snapshot);
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join(KEPT_NAMESPACES)
    }

    fn start(&self) -> (tokio::task::JoinHandle<()>, CancellationToken) {
        let cancel = CancellationToken::new();
        let keeper = NamespaceKeeper::new(self.directory.path(), self.snapshots.clone());
        (tokio::spawn(keeper.run(cancel.clone())), cancel)
    }

    fn read(&self) -> serde_json::Value {
        std::fs::read(self.path()).map_or(json!(null), |bytes| serde_json::from_slice(&bytes).unwrap())
    }

    async fn says(&self, expected: serde_json::Value) {
        let wait = async {
            while self.read() != expected {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let said = tokio::time::timeout(PATIENCE, wait).await;
        assert!(said.is_ok(), "{} is not {expected}", self.read());
    }
}

fn pod(enrolment: wire::Enrolment) -> wire::Resource {
    workload_resource(wire::Workload { enrolment: enrolment.into(), ..wire_workload("a", &[1]) })
}

#[tokio::test]
async fn the_file_follows_the_namespaces_and_this_nodes_pods() {
    let mut case = Case::new();
    let (keeper, cancel) = case.start();
    case.tell(vec![namespace_resource("shop", true), namespace_resource("kube-system", false)], &[]);
    case.says(json!({"enrols": {"kube-system": false, "shop": true}, "pods": {}})).await;
    assert_eq!(std::fs::metadata(case.path()).unwrap().permissions().mode() & 0o777, 0o600);
    case.tell(vec![namespace_resource("shop", false), pod(wire::Enrolment::Enrolled)], &["kube-system"]);
    case.says(json!({"enrols": {"shop": false}, "pods": {"a-uid": true}})).await;
    case.tell(vec![pod(wire::Enrolment::Leaving)], &[]);
    case.says(json!({"enrols": {"shop": false}, "pods": {"a-uid": false}})).await;
    case.tell(vec![namespace_resource("late", true)], &[]);
    cancel.cancel();
    keeper.await.unwrap();
    assert_eq!(case.read()["enrols"], json!({"late": true, "shop": false}), "written at the end");
}

#[tokio::test]
async fn what_is_on_disk_stays_when_it_is_the_same_and_when_nobody_tells_namespaces() {
    let mut case = Case::new();
    case.tell(vec![namespace_resource("shop", true)], &[]);
    let (first, cancel) = case.start();
    case.says(json!({"enrols": {"shop": true}, "pods": {}})).await;
    cancel.cancel();
    first.await.unwrap();
    let inode = || std::fs::metadata(case.path()).unwrap().ino();
    let before = inode();
    let (again, cancel) = case.start();
    cancel.cancel();
    again.await.unwrap();
    assert_eq!(inode(), before, "not written again");

    let mut older = Case::new();
    std::fs::copy(case.path(), older.path()).unwrap();
    let (keeper, cancel) = older.start();
    older.tell(vec![pod(wire::Enrolment::Enrolled)], &[]);
    cancel.cancel();
    keeper.await.unwrap();
    assert_eq!(older.read(), case.read(), "nothing known is not written over what was");
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_written_is_tried_again() {
    let mut case = Case::new();
    // Nothing can be renamed over a directory with something in it, also not by root.
    std::fs::create_dir(case.path()).unwrap();
    std::fs::write(case.path().join("in-the-way"), "").unwrap();
    case.tell(vec![namespace_resource("shop", true)], &[]);
    let (keeper, cancel) = case.start();
    tokio::time::sleep(RETRY * 3).await;
    std::fs::remove_dir_all(case.path()).unwrap();
    let wait = async {
        while !case.path().is_file() {
            tokio::time::sleep(RETRY).await;
        }
    };
    tokio::time::timeout(RETRY * 100, wait).await.unwrap();
    cancel.cancel();
    keeper.await.unwrap();
    assert_eq!(case.read()["enrols"], json!({"shop": true}));
}
