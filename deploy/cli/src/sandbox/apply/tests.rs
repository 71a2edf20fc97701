use std::path::Path;

use super::*;
use culvert_objects::manifest;

const SHOP: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: cart, namespace: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: cart}}
  template:
    metadata: {labels: {app: cart}}
    spec: {serviceAccountName: cart, containers: [{name: c, image: culvert/echo, ports: [{containerPort: 8080}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {selector: {app: cart}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: cart, namespace: shop}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {culvert.dev/mesh: enabled, team: a}}
";

fn cluster() -> Cluster {
    Cluster::new("test", 2)
}

fn read(text: &str) -> Manifest {
    manifest::parse(text, Path::new("shop.yaml"))
}

fn outcomes(report: &Report) -> Vec<Outcome> {
    report.entries.iter().map(|entry| entry.outcome).collect()
}

fn errors(store: &Store, text: &str) -> String {
    apply(store, &cluster(), read(text)).unwrap_err().to_string()
}

fn pod(name: &str, rest: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{{rest}containers: [{{name: c, image: culvert/echo}}]}}\n"
    )
}

#[tokio::test]
async fn everything_follows_from_one_apply_in_any_order() {
    let store = Store::new(&cluster());
    let report = apply(&store, &cluster(), read(SHOP)).unwrap();
    assert_eq!(outcomes(&report), [Outcome::Created; 4]);
    let objects = store.objects();
    let pods: Vec<_> = objects.in_namespace(Kind::Pod, "shop").collect();
    assert_eq!(pods.len(), 2);
    let mut nodes: Vec<_> = pods.iter().map(|pod| pod.body["spec"]["nodeName"].as_str().unwrap()).collect();
    nodes.sort_unstable();
    assert_eq!(nodes, ["node1", "node2"]);
    assert!(pods[0].name().starts_with("cart-"));
    assert_eq!(objects.in_namespace(Kind::EndpointSlice, "shop").count(), 1);
    assert!(objects.find(Kind::ServiceAccount, "shop", "default").is_some());

    let again = apply(&store, &cluster(), read(SHOP)).unwrap();
    assert_eq!(outcomes(&again), [Outcome::Unchanged; 4]);
}

#[tokio::test]
async fn labels_go_when_the_file_drops_them_and_ours_stay() {
    let store = Store::new(&cluster());
    apply(&store, &cluster(), read(SHOP)).unwrap();
    let report = apply(&store, &cluster(), read(&SHOP.replace("culvert.dev/mesh: enabled, ", ""))).unwrap();
    assert_eq!(outcomes(&report)[3], Outcome::Configured);
    let objects = store.objects();
    let namespace = objects.namespace("shop").unwrap();
    assert_eq!(namespace.label("culvert.dev/mesh"), None);
    assert_eq!(namespace.label("team"), Some("a"));
    assert_eq!(namespace.label("kubernetes.io/metadata.name"), Some("shop"));
}

#[tokio::test]
async fn nothing_takes_effect_when_one_object_is_wrong() {
    let store = Store::new(&cluster());
    let before = store.objects().len();
    let text = format!("{SHOP}---\n{}", pod("lost", "serviceAccountName: nobody, nodeName: node9, "));
    let text = errors(&store, &text);
    let expected = "shop.yaml: document 5 (Pod default/lost): spec.serviceAccountName: \
        there is no service account \"nobody\" in namespace \"default\"";
    assert!(text.contains(expected), "{text}");
    assert!(text.contains("spec.nodeName: there is no node \"node9\""), "{text}");
    assert_eq!(store.objects().len(), before);
}

#[tokio::test]
async fn objects_of_one_apply_are_checked_against_each_other() {
    let store = Store::new(&cluster());
    let lost = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: nowhere}\n";
    assert!(errors(&store, lost).contains("there is no namespace \"nowhere\""));
    let service = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: 10.96.5.5, ports: [{{port: 80}}]}}\n"
        )
    };
    let clash = format!("{}---\n{}", service("a"), service("b"));
    assert!(errors(&store, &clash).contains("10.96.5.5 is taken by Service default/a"));
}

#[tokio::test]
async fn of_two_documents_of_an_object_the_last_one_counts() {
    let store = Store::new(&cluster());
    let namespace = |team: &str| {
        format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, labels: {{team: {team}}}}}\n")
    };
    let mut both = manifest::parse(&namespace("a"), Path::new("a.yaml"));
    both.append(manifest::parse(&format!("{}---\n{}", pod("b", ""), namespace("b")), Path::new("b.yaml")));
    let report = apply(&store, &cluster(), both.clone()).unwrap();
    assert_eq!(outcomes(&report), [Outcome::Created, Outcome::Created], "each once");
    assert_eq!(store.objects().namespace("shop").unwrap().label("team"), Some("b"));
    let notice =
        "a.yaml: document 1 (Namespace shop): skipped: the same object is also in b.yaml: document 2";
    assert!(report.skipped[0].starts_with(notice), "{report}");
    assert!(report.to_string().contains(notice));
    let report = delete(&store, both).unwrap();
    assert_eq!(outcomes(&report), [Outcome::Deleted, Outcome::Deleted]);
    assert_eq!(report.skipped.len(), 1);
}

#[tokio::test]
async fn what_cannot_change_is_named() {
    let store = Store::new(&cluster());
    apply(&store, &cluster(), read(&pod("a", ""))).unwrap();
    let report = apply(&store, &cluster(), read(&pod("a", ""))).unwrap();
    assert_eq!(outcomes(&report), [Outcome::Unchanged], "the scheduler's choice is no difference");
    let once = SHOP.replace("serviceAccountName: cart,", "restartPolicy: Never, ");
    assert!(errors(&store, &once).contains("spec.template.spec.restartPolicy: pods of a Deployment"));
    let text = errors(&store, &pod("a", "hostname: other, "));
    assert!(text.contains("(Pod default/a): spec: differs from what is there"), "{text}");
}

#[tokio::test]
async fn nodes_take_labels_only() {
    let store = Store::new(&cluster());
    let node = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}, labels: {{topology.kubernetes.io/zone: west}}}}\n"
        )
    };
    apply(&store, &cluster(), read(&node("node1"))).unwrap();
    let objects = store.objects();
    let found = objects.find(Kind::Node, "", "node1").unwrap();
    assert_eq!(found.label("topology.kubernetes.io/zone"), Some("west"));
    assert_eq!(found.label("kubernetes.io/hostname"), Some("node1"));
    assert!(found.body["spec"]["podCIDR"].is_string() && found.body["status"]["addresses"].is_array());
    assert!(errors(&store, &node("node7")).contains("expected one of node1, node2"));
}

#[tokio::test]
async fn a_deleted_namespace_takes_its_contents_along() {
    let store = Store::new(&cluster());
    apply(&store, &cluster(), read(SHOP)).unwrap();
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n";
    let report = delete(&store, read(namespace)).unwrap();
    assert_eq!(outcomes(&report), [Outcome::Deleted]);
    let objects = store.objects();
    assert!(objects.find(Kind::Service, "shop", "cart").is_none());
    assert!(objects.namespace("shop").is_some(), "its pods are still stopping");
    assert!(errors(&store, SHOP).contains("is being deleted"));
    let pods: Vec<_> = objects.in_namespace(Kind::Pod, "shop").map(|pod| pod.key()).collect();
    assert_eq!(pods.len(), 2);
    for pod in pods {
        store.remove(&pod).await;
    }
    assert!(store.objects().namespace("shop").is_none());
    assert_eq!(outcomes(&delete(&store, read(namespace)).unwrap()), [Outcome::Absent]);
}

#[tokio::test]
async fn what_every_cluster_needs_is_not_deleted() {
    let store = Store::new(&cluster());
    let text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: kube-system}\n";
    assert!(delete(&store, read(text)).unwrap_err().to_string().contains("part of every cluster"));
    let dns = ObjectKey::namespaced(Kind::Service, "kube-system", "kube-dns");
    assert!(delete_one(&store, dns).unwrap_err().contains("the cluster's DNS"));
}

#[tokio::test]
async fn a_deployment_is_replaced_pod_by_pod() {
    let store = Store::new(&cluster());
    apply(&store, &cluster(), read(SHOP)).unwrap();
    let ready = serde_json::json!({"phase": "Running", "podIPs": [{"ip": "10.244.1.2"}],
        "conditions": [{"type": "Ready", "status": "True"}]});
    let pods = || -> Vec<_> {
        let objects = store.objects();
        objects.in_namespace(Kind::Pod, "shop").cloned().collect()
    };
    let live = |pod: &Object| pod.metadata.deletion_timestamp.is_none();
    for pod in pods() {
        store.commit(vec![Change::Status(pod.key(), ready.clone())]);
    }
    apply(&store, &cluster(), read(&SHOP.replace("name: c,", "name: changed,"))).unwrap();
    for _ in 0..10 {
        assert!(pods().iter().filter(|pod| live(pod) && pod.body["status"] == ready).count() >= 2);
        for pod in pods() {
            match live(&pod) {
                true => store.commit(vec![Change::Status(pod.key(), ready.clone())]),
                false => store.remove(&pod.key()).await,
            }
        }
    }
    let pods = pods();
    assert_eq!(pods.len(), 2);
    assert!(pods.iter().all(|pod| pod.body["spec"]["containers"][0]["name"] == "changed"), "{pods:?}");
    let objects = store.objects();
    let status = &objects.find(Kind::Deployment, "shop", "cart").unwrap().body["status"];
    assert_eq!((&status["readyReplicas"], &status["observedGeneration"]), (&2.into(), &2.into()));
}
