use super::*;
use crate::placement::PodFacts;

const OURS: &str = "spiffe://cluster.local/ns/shop/sa/cart";

fn object(name: &str, uid: &str) -> ObjectRef {
    ObjectRef { name: name.to_owned(), uid: uid.to_owned() }
}

fn caller(namespace: &str, service_account: &str, pod: Option<&str>, node: Option<&str>) -> Caller {
    Caller {
        namespace: namespace.to_owned(),
        service_account: service_account.to_owned(),
        pod: pod.map(|name| object(name, &format!("uid-{name}"))),
        node: node.map(|name| object(name, &format!("uid-{name}"))),
        expires: SystemTime::now() + Duration::from_secs(600),
    }
}

fn node_proxy(node: &str) -> Caller {
    caller(SYSTEM_NAMESPACE, NODE_PROXY_SERVICE_ACCOUNT, Some("proxy"), Some(node))
}

fn pod(name: &str, service_account: &str, node: &str) -> PodFacts {
    PodFacts {
        uid: format!("uid-{name}"),
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        service_account: service_account.to_owned(),
        node: Some(node.to_owned()),
        finished: false,
        ends: None,
    }
}

fn placement(pods: Vec<PodFacts>) -> Arc<Placement> {
    let nodes = ["one", "two"].map(|name| (name.to_owned(), format!("uid-{name}")));
    Arc::new(Placement::new(pods, nodes))
}

fn authorizer(pods: Vec<PodFacts>) -> (watch::Sender<Arc<Placement>>, Authorizer) {
    let (sender, receiver) = watch::channel(placement(pods));
    (sender, Authorizer::new("cluster.local".parse().unwrap(), receiver))
}

async fn grant(pods: Vec<PodFacts>, caller: &Caller, asked: &str) -> Result<Identity, &'static str> {
    let (_sender, authorizer) = authorizer(pods);
    let asked = (!asked.is_empty()).then(|| asked.parse().unwrap());
    authorizer.grant(caller, asked.as_ref()).await.map_err(|refusal| refusal.reason())
}

#[tokio::test(start_paused = true)]
async fn a_node_proxy_gets_identities_of_its_own_node_only() {
    let pods = || vec![pod("a", "cart", "one"), pod("b", "till", "two")];
    assert_eq!(grant(pods(), &node_proxy("one"), OURS).await.unwrap().uri(), OURS);
    assert_eq!(grant(pods(), &node_proxy("two"), OURS).await, Err("NoPodOnNode"));
    let absent = "spiffe://cluster.local/ns/shop/sa/absent";
    assert_eq!(grant(pods(), &node_proxy("one"), absent).await, Err("NoPodOnNode"));
}

#[tokio::test(start_paused = true)]
async fn only_node_proxies_ask_for_others() {
    let pods = || vec![pod("a", "cart", "one"), pod("b", "till", "one")];
    let workload = caller("shop", "till", Some("b"), Some("one"));
    assert_eq!(grant(pods(), &workload, OURS).await, Err("NotANodeProxy"));
    let impostor = caller("shop", NODE_PROXY_SERVICE_ACCOUNT, Some("b"), Some("one"));
    assert_eq!(grant(pods(), &impostor, OURS).await, Err("NotANodeProxy"));
    let own = "spiffe://cluster.local/ns/shop/sa/till";
    assert_eq!(grant(pods(), &workload, own).await.unwrap().uri(), own);
    assert_eq!(grant(pods(), &workload, "").await.unwrap().uri(), own);
}

#[tokio::test(start_paused = true)]
async fn parts_of_the_mesh_without_a_pod_object_are_known_by_their_node() {
    let controller = |node| caller(SYSTEM_NAMESPACE, CONTROLLER_SERVICE_ACCOUNT, None, node);
    for node in [None, Some("one")] {
        let granted = grant(vec![], &controller(node), "").await.unwrap();
        assert_eq!(granted.uri(), "spiffe://cluster.local/ns/culvert-system/sa/culvert-controller");
    }
    assert_eq!(grant(vec![], &controller(Some("three")), "").await, Err("CallerNodeUnknown"));
    assert_eq!(
        grant(vec![pod("a", "cart", "one")], &node_proxy("three"), OURS).await,
        Err("CallerNodeUnknown")
    );
    let mut stale = node_proxy("one");
    stale.node = Some(object("one", "uid-of-before"));
    assert_eq!(grant(vec![pod("a", "cart", "one")], &stale, OURS).await, Err("CallerNodeUnknown"));
    let nowhere = caller(SYSTEM_NAMESPACE, NODE_PROXY_SERVICE_ACCOUNT, None, None);
    assert_eq!(grant(vec![pod("a", "cart", "one")], &nowhere, OURS).await, Err("NoNode"));
}

#[tokio::test(start_paused = true)]
async fn a_caller_must_still_be_where_its_token_says() {
    let own = |node| caller("shop", "cart", Some("a"), Some(node));
    assert!(grant(vec![pod("a", "cart", "one")], &own("one"), "").await.is_ok());
    assert_eq!(grant(vec![pod("a", "cart", "one")], &own("two"), "").await, Err("CallerPodDiffers"));
    assert_eq!(grant(vec![pod("a", "till", "one")], &own("one"), "").await, Err("CallerPodDiffers"));
    assert_eq!(grant(vec![], &own("one"), "").await, Err("CallerPodUnknown"));
    assert_eq!(grant(vec![], &caller("shop", "cart", None, Some("one")), "").await, Err("TokenUnbound"));
    let ended = PodFacts { finished: true, ..pod("a", "cart", "one") };
    assert_eq!(grant(vec![ended], &own("one"), "").await, Err("CallerPodEnded"));
}

#[tokio::test(start_paused = true)]
async fn a_node_proxy_with_a_pod_is_where_its_pod_is() {
    let proxy = PodFacts {
        namespace: SYSTEM_NAMESPACE.to_owned(),
        ..pod("proxy", NODE_PROXY_SERVICE_ACCOUNT, "two")
    };
    let pods = || vec![proxy.clone(), pod("a", "cart", "one"), pod("b", "till", "two")];
    assert_eq!(grant(pods(), &node_proxy("one"), OURS).await, Err("CallerPodDiffers"));
    let mut without_claim = node_proxy("two");
    without_claim.node = None;
    let till = "spiffe://cluster.local/ns/shop/sa/till";
    assert!(grant(pods(), &without_claim, till).await.is_ok());
    assert_eq!(grant(pods(), &without_claim, OURS).await, Err("NoPodOnNode"));
}

#[tokio::test(start_paused = true)]
async fn ended_pods_lend_nobody_their_identity() {
    let finished = PodFacts { finished: true, ..pod("a", "cart", "one") };
    assert_eq!(grant(vec![finished.clone()], &node_proxy("one"), OURS).await, Err("NoPodOnNode"));
    let deleted = PodFacts { ends: Some(SystemTime::UNIX_EPOCH), ..pod("b", "cart", "one") };
    assert_eq!(grant(vec![finished, deleted], &node_proxy("one"), OURS).await, Err("NoPodOnNode"));
}

#[tokio::test(start_paused = true)]
async fn other_trust_domains_and_the_mesh_itself_are_out_of_reach() {
    let pods = || vec![pod("a", "cart", "one")];
    let foreign = "spiffe://elsewhere/ns/shop/sa/cart";
    assert_eq!(grant(pods(), &node_proxy("one"), foreign).await, Err("TrustDomain"));
    let controller =
        PodFacts { namespace: SYSTEM_NAMESPACE.to_owned(), ..pod("c", CONTROLLER_SERVICE_ACCOUNT, "one") };
    let asked = "spiffe://cluster.local/ns/culvert-system/sa/culvert-controller";
    assert_eq!(grant(vec![controller], &node_proxy("one"), asked).await, Err("ReservedNamespace"));
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_a_little_late_is_waited_for() {
    let (sender, authorizer) = authorizer(vec![]);
    let late = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(500)).await;
        sender.send_replace(placement(vec![pod("x", "other", "one")]));
        tokio::time::sleep(Duration::from_millis(1400)).await;
        sender.send_replace(placement(vec![pod("a", "cart", "one")]));
        sender
    });
    let start = Instant::now();
    let granted = authorizer.grant(&node_proxy("one"), Some(&OURS.parse().unwrap())).await.unwrap();
    assert_eq!(granted.uri(), OURS);
    assert_eq!(start.elapsed().as_millis(), 1900);
    late.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_longer_than_two_seconds() {
    let start = Instant::now();
    assert_eq!(grant(vec![], &node_proxy("one"), OURS).await, Err("NoPodOnNode"));
    assert!(start.elapsed() >= PATIENCE && start.elapsed() < PATIENCE + Duration::from_millis(50));
}
