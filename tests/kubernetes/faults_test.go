package kubernetes

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// shop is a namespace in the mesh with a server on every node and a client.
func shop(t *testing.T, name string) {
	t.Helper()
	namespace(t, name, "enabled")
	apply(t, deployment(name, "cart", 4), pod(name, "client", ""))
	ready(t, name)
	enrolled(t, name, true)
}

// nodeProxy is the pod of a node's that nobody has told to end.
func nodeProxy(t *testing.T, node string) string {
	t.Helper()
	const names = "{{range .items}}{{if not .metadata.deletionTimestamp}}{{.metadata.name}} {{end}}{{end}}"
	pods := strings.Fields(kubectl(t, "-n", mesh, "get", "pods", "-l", "app.kubernetes.io/component=node-proxy",
		"--field-selector", "spec.nodeName="+node, "-o", "go-template="+names))
	if len(pods) != 1 {
		t.Fatalf("%s has the node proxies %v", node, pods)
	}
	return pods[0]
}

// A node proxy that is killed is started again; connections that come meanwhile wait and are carried afterwards, none past
// the mesh.
func TestNodeProxyKilled(t *testing.T) {
	shop(t, "killed")
	server := kubectl(t, "-n", "killed", "get", "pods", "-l", "app=cart", "-o", "jsonpath={.items[0].spec.nodeName}")
	// The kubelet takes 10 s before it starts a container a second time, and 20 s the third time.
	traffic := start("killed", "client", "http://cart/", 60*time.Second,
		"--rate", "50", "--connections", "8", "--new-connection", "--timeout", "120000")
	time.Sleep(3 * time.Second)
	const times = 2
	for range times {
		killContainer(t, mesh, nodeProxy(t, server))
		time.Sleep(5 * time.Second)
	}
	seen := traffic.wait(t)
	// What is on its way through the process when it dies is cut: at most what is open on the 8 connections, both ways.
	if seen.failed() > times*2*8 {
		t.Errorf("more failed than was under way: %v", seen)
	}
	ready(t, mesh)
	enrolled(t, "killed", true)
	if seen := mustGet(t, "killed", "client", "http://cart/", "--count", "400", "--new-connection"); seen.failed() > 0 || len(seen.Pods) != 4 {
		t.Errorf("afterwards: %v", seen)
	}
}

// With both controllers and the CA gone, the mesh goes on with what it knows; later it follows again.
func TestControllersKilled(t *testing.T) {
	shop(t, "headless")
	t.Cleanup(func() { startMesh(t) })
	traffic := start("headless", "client", "http://cart/", 20*time.Second, "--rate", "100", "--connections", "4", "--new-connection")
	kubectl(t, "-n", mesh, "scale", "deployment", "culvert-controller", "culvert-ca", "--replicas=0")
	kubectl(t, "-n", mesh, "delete", "pods", "-l", "app.kubernetes.io/component in (controller,ca)", "--force", "--grace-period=0")
	if seen := traffic.wait(t); seen.failed() > 0 {
		t.Errorf("without controllers: %v", seen)
	}
	// And a node proxy that starts then serves what it kept. Keys are never kept, so it needs the CA.
	kubectl(t, "-n", mesh, "scale", "deployment", "culvert-ca", "--replicas=2")
	ready(t, mesh, "-l", "app.kubernetes.io/component=ca")
	killContainer(t, mesh, nodeProxy(t, "n1"))
	eventually(t, "calls succeed after a node proxy was started again without controllers", func() error {
		seen, err := get("headless", "client", "http://cart/", "--count", "100", "--new-connection", "--timeout", "5000")
		if err == nil && (seen.failed() > 0 || len(seen.Pods) != 4) {
			err = fmt.Errorf("%v", seen)
		}
		return err
	})
	startMesh(t)
	kubectl(t, "-n", "headless", "scale", "deployment", "cart", "--replicas=6")
	ready(t, "headless")
	eventually(t, "pods made later are called", func() error {
		seen, err := get("headless", "client", "http://cart/", "--count", "200", "--new-connection")
		if err == nil && (seen.failed() > 0 || len(seen.Pods) != 6) {
			err = fmt.Errorf("%v", seen)
		}
		return err
	})
}

// With the API server away for a minute the mesh goes on; what changed is picked up when it is back.
func TestAPIServerDown(t *testing.T) {
	shop(t, "noapi")
	apply(t, canary("noapi", 1, 0))
	apply(t, deployment("noapi", "cart-v2", 1))
	ready(t, "noapi")
	accepted(t, "noapi", "canary")
	// kubectl exec goes by way of the API server; the traffic must not.
	client := kubectl(t, "-n", "noapi", "get", "pod", "client", "-o", "jsonpath={.status.containerStatuses[0].containerID}")
	node := kubectl(t, "-n", "noapi", "get", "pod", "client", "-o", "jsonpath={.spec.nodeName}")
	call := []string{"--node", node, program("ctr"), "--namespace", "k8s.io", "task", "exec", "--exec-id", "without-api",
		strings.TrimPrefix(client, "containerd://"), "culvert-echo", "get", "http://cart/", "--count", "100000000", "--seconds", "60",
		"--rate", "50", "--new-connection"}
	if _, err := cluster("", "component", "stop", "kube-apiserver"); err != nil {
		t.Fatal(err)
	}
	restarted := false
	restart := func() {
		if !restarted {
			restarted = true
			if _, err := cluster("", "component", "start", "kube-apiserver"); err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(restart)
	output, err := cluster("", "enter", call...)
	if err != nil || !strings.Contains(output, `"errors":{}`) || !strings.Contains(output, `"200":`) {
		t.Errorf("without the API server: %v %s", err, output)
	}
	restart()
	eventually(t, "the API server is back", func() error {
		_, err := cluster("", "kubectl", "get", "nodes")
		return err
	})
	apply(t, canary("noapi", 0, 1))
	eventually(t, "a route edited afterwards is followed", func() error {
		seen, err := get("noapi", "client", "http://cart/", "--count", "50")
		if err != nil {
			return err
		}
		for name := range seen.Pods {
			if !strings.HasPrefix(name, "cart-v2-") || seen.failed() > 0 {
				return fmt.Errorf("%v", seen)
			}
		}
		return nil
	})
}

// canary splits cart between itself and cart-v2.
func canary(namespace string, first, second int) string {
	return fmt.Sprintf(`apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {namespace: %s, name: canary}
spec:
  parentRefs: [{group: "", kind: Service, name: cart, port: 80}]
  rules: [{backendRefs: [{name: cart, port: 80, weight: %d}, {name: cart-v2, port: 80, weight: %d}]}]`, namespace, first, second)
}

func accepted(t *testing.T, namespace, route string) {
	t.Helper()
	eventually(t, "the route is accepted", func() error {
		status, err := cluster("", "kubectl", "-n", namespace, "get", "httproute", route, "-o",
			`jsonpath={.status.parents[*].conditions[?(@.type=="Accepted")].status}`)
		if err == nil && status != "True" {
			err = fmt.Errorf("Accepted: %q", status)
		}
		return err
	})
}

// A node that loses its power comes back with its enrolled pods in the mesh, whoever starts first.
func TestNodeRebooted(t *testing.T) {
	shop(t, "reboot")
	for _, verb := range []string{"stop", "start"} {
		if _, err := cluster("", "node", verb, "n2"); err != nil {
			t.Fatal(err)
		}
		if verb == "stop" {
			kubectl(t, "wait", "--for=condition=Ready=Unknown", "node/n2", "--timeout="+patience.String())
		}
	}
	kubectl(t, "wait", "--for=condition=Ready", "node/n2", "--timeout="+patience.String())
	ready(t, mesh)
	eventually(t, "all of the namespace's pods serve in the mesh again", func() error {
		seen, err := get("reboot", "client", "http://cart/", "--count", "200", "--new-connection", "--timeout", "3000")
		if err == nil && (seen.failed() > 0 || len(seen.Pods) != 4) {
			err = fmt.Errorf("%v", seen)
		}
		return err
	})
	enrolled(t, "reboot", true)
}

// Who comes through a NodePort has the node's address, as the kubelet has: no reason to let it in under strict.
func TestNodePortUnderStrict(t *testing.T) {
	namespace(t, "nodeport", "enabled")
	apply(t, deployment("nodeport", "cart", 2), `apiVersion: v1
kind: Service
metadata: {namespace: nodeport, name: outside}
spec: {type: NodePort, selector: {app: cart}, ports: [{name: http, port: 80, targetPort: 8080, nodePort: 30080}]}`)
	ready(t, "nodeport")
	enrolled(t, "nodeport", true)
	// One of each family.
	addresses := strings.Fields(kubectl(t, "get", "node", "n1", "-o", `jsonpath={.status.addresses[?(@.type=="InternalIP")].address}`))
	// The path of the readiness probe would pass, as the kubelet's own does.
	call := func() error {
		_, err := cluster("", "enter", program("probe"), "get", "http://"+addresses[0]+":30080/orders")
		return err
	}
	eventually(t, "the NodePort works while the mode is permissive", call)
	kubectl(t, "annotate", "namespace", "nodeport", "culvert.dev/inbound-mode=strict")
	eventually(t, "the NodePort is refused under strict", func() error {
		if err := call(); err == nil {
			return fmt.Errorf("it was answered")
		}
		return nil
	})
	for range 10 {
		if err := call(); err == nil {
			t.Error("plaintext by way of a NodePort was answered under strict")
		}
	}
}

// A fail-closed webhook served from an ordinary namespace is in nobody's way when the mesh starts.
func TestWebhookWhileTheMeshStarts(t *testing.T) {
	namespace(t, "hook", "")
	namespace(t, "hooked", "enabled")
	stopMesh(t)
	apply(t, pod("hook", "server", ""), `apiVersion: v1
kind: Service
metadata: {namespace: hook, name: server}
spec: {selector: {app: server}, ports: [{port: 443, targetPort: 8080}]}`)
	ready(t, "hook")
	apply(t, `apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: culvert-test-hook}
webhooks:
  - name: hook.culvert.test
    admissionReviewVersions: [v1]
    sideEffects: None
    failurePolicy: Fail
    timeoutSeconds: 2
    namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: hooked}}
    rules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [pods]}]
    clientConfig: {service: {namespace: hook, name: server, port: 443}}`)
	t.Cleanup(func() {
		kubectl(t, "delete", "validatingwebhookconfiguration", "culvert-test-hook", "--ignore-not-found")
	})
	startMesh(t)
	ready(t, mesh)
	kubectl(t, "delete", "validatingwebhookconfiguration", "culvert-test-hook")
	apply(t, pod("hooked", "p", ""))
	ready(t, "hooked")
	enrolled(t, "hooked", true)
}

// Pods that come and go in waves are all guarded while they run, and leave nothing on their nodes.
func TestWaves(t *testing.T) {
	namespace(t, "waves", "enabled")
	const wave, waves = 25, 8
	for i := range waves {
		apply(t, pods("waves", fmt.Sprintf("w%d", i), wave))
		if i > 0 {
			kubectl(t, "-n", "waves", "delete", "pods", "--wait=false", "-l", "app in ("+names(fmt.Sprintf("w%d", i-1), wave)+")")
		}
		ready(t, "waves", "-l", "app in ("+names(fmt.Sprintf("w%d", i), wave)+")")
		enrolled(t, "waves", true, "-l", "app in ("+names(fmt.Sprintf("w%d", i), wave)+")")
	}
	kubectl(t, "-n", "waves", "delete", "pods", "--all", "--timeout="+patience.String())
	eventually(t, "nothing of the pods is left on the nodes", func() error {
		for _, node := range []string{"n1", "n2"} {
			if err := leftOn(t, node); err != nil {
				return err
			}
		}
		return nil
	})
}

func names(prefix string, count int) string {
	var all []string
	for i := range count {
		all = append(all, fmt.Sprintf("%s-%d", prefix, i))
	}
	return strings.Join(all, ",")
}

// leftOn is nil when a node has no more network namespaces, and its node proxy knows of no more pods, than run there.
func leftOn(t *testing.T, node string) error {
	t.Helper()
	run := strings.Fields(kubectl(t, "get", "pods", "-A", "--field-selector", "spec.nodeName="+node,
		"-o", `jsonpath={range .items[*]}{.metadata.uid}{"\n"}{end}`))
	namespaces := len(strings.Fields(kubectlNode(t, node, "ls", "/run/netns")))
	if namespaces > len(run) {
		return fmt.Errorf("%s: %d network namespaces for %d pods", node, namespaces, len(run))
	}
	var kept []struct{ Pod struct{ UID string } }
	if err := json.Unmarshal([]byte(kubectlNode(t, node, "cat", "/var/lib/culvert/pods.json")), &kept); err != nil {
		t.Fatal(err)
	}
	for _, entry := range kept {
		if !slices.Contains(run, entry.Pod.UID) {
			return fmt.Errorf("%s: the node proxy still knows of pod %s", node, entry.Pod.UID)
		}
	}
	return nil
}

// An address that another identity gets at once is not called under the one it had before.
func TestAddressUsedAgain(t *testing.T) {
	namespace(t, "reuse", "enabled")
	apply(t, pod("reuse", "client", ", nodeName: n1"), `apiVersion: v1
kind: ServiceAccount
metadata: {namespace: reuse, name: first}
---
apiVersion: v1
kind: ServiceAccount
metadata: {namespace: reuse, name: second}
---
apiVersion: v1
kind: Service
metadata: {namespace: reuse, name: server}
spec: {selector: {role: server}, ports: [{name: http, port: 80, targetPort: 8080}]}`)
	server := func(account string) string {
		return fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {namespace: reuse, name: %[1]s, labels: {role: server}}
spec: {serviceAccountName: %[1]s, nodeName: n2, terminationGracePeriodSeconds: 1, containers: [%[2]s]}`, account, echo())
	}
	apply(t, server("first"))
	ready(t, "reuse")
	address := kubectl(t, "-n", "reuse", "get", "pod", "first", "-o", "jsonpath={.status.podIP}")
	if seen := mustGet(t, "reuse", "client", "http://server/", "--count", "20"); seen.failed() > 0 {
		t.Fatal(seen)
	}
	kubectl(t, "-n", "reuse", "delete", "pod", "first", "--wait")
	// The range is handed out in turn: the address comes back when the allocator's memory of the last one is set before it.
	parts := strings.Split(address, ".")
	var last int
	if _, err := fmt.Sscan(parts[3], &last); err != nil {
		t.Fatal(err)
	}
	before := fmt.Sprintf("%s.%d", strings.Join(parts[:3], "."), last-1)
	kubectlNode(t, "n2", "sh", "-c", "printf %s "+before+" > /var/lib/cni/networks/pods/last_reserved_ip.0")
	apply(t, server("second"))
	kubectl(t, "-n", "reuse", "wait", "--for=condition=Ready", "pod/second", "--timeout="+patience.String())
	if now := kubectl(t, "-n", "reuse", "get", "pod", "second", "-o", "jsonpath={.status.podIP}"); now != address {
		t.Fatalf("the test's own doing: the second pod has %s, not %s", now, address)
	}
	eventually(t, "calls reach the second pod", func() error {
		seen, err := get("reuse", "client", "http://"+address+":8080/", "--count", "20", "--new-connection", "--timeout", "3000")
		if err == nil && (seen.failed() > 0 || seen.Pods["second"] != 20) {
			err = fmt.Errorf("%v", seen)
		}
		return err
	})
}
