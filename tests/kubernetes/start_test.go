package kubernetes

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// mesh states, set and put back.
const nowhere = `{"spec":{"template":{"spec":{"nodeSelector":{"culvert.test/nowhere":"true"}}}}}`
const everywhere = `{"spec":{"template":{"spec":{"nodeSelector":{"culvert.test/nowhere":null}}}}}`

// stopMesh takes all of Culvert away, as if it had never come up, until the test ends or startMesh is called.
func stopMesh(t *testing.T) {
	t.Helper()
	t.Cleanup(func() { startMesh(t) })
	kubectl(t, "-n", mesh, "patch", "daemonset", "culvert-node-proxy", "-p", nowhere)
	kubectl(t, "-n", mesh, "scale", "deployment", "culvert-controller", "culvert-ca", "--replicas=0")
	// Their time to drain is not what is tested here.
	kubectl(t, "-n", mesh, "delete", "pods", "--all", "--force", "--grace-period=0", "--ignore-not-found")
	kubectl(t, "-n", mesh, "wait", "--for=delete", "pods", "--all", "--timeout="+patience.String())
}

func startMesh(t *testing.T) {
	t.Helper()
	kubectl(t, "-n", mesh, "patch", "daemonset", "culvert-node-proxy", "-p", everywhere)
	kubectl(t, "-n", mesh, "scale", "deployment", "culvert-controller", "culvert-ca", "--replicas=2")
	for _, name := range []string{"daemonset/culvert-node-proxy", "deployment/culvert-controller", "deployment/culvert-ca"} {
		kubectl(t, "-n", mesh, "rollout", "status", name, "--timeout="+patience.String())
	}
}

func pods(namespace, prefix string, count int) string {
	var all []string
	for i := range count {
		all = append(all, pod(namespace, fmt.Sprintf("%s-%d", prefix, i), ""))
	}
	return strings.Join(all, "\n---\n")
}

func readyPods(t *testing.T, namespace string) int {
	t.Helper()
	states := kubectl(t, "-n", namespace, "get", "pods", "-o", `jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}`)
	return strings.Count(states, "True")
}

// waiting is nil when an Event of the pod says who is missing and what to do.
func waiting(namespace, pod string) error {
	events, err := cluster("", "kubectl", "-n", namespace, "get", "events", "--field-selector", "involvedObject.name="+pod, "-o", "jsonpath={.items[*].message}")
	if err != nil {
		return err
	}
	for _, words := range []string{"the node proxy of n", "culvert.dev/mesh=disabled", "culvert.dev/mesh=released"} {
		if !strings.Contains(events, words) {
			return fmt.Errorf("no Event with %q: %s", words, events)
		}
	}
	return nil
}

// With all of Culvert gone, pods outside the mesh start as ever, those of namespaces made meanwhile, too. Those in the
// mesh wait, say why, and start by themselves when it is back.
func TestAllOfCulvertDown(t *testing.T) {
	namespace(t, "down-in", "enabled")
	namespace(t, "down-out", "")
	stopMesh(t)
	namespace(t, "down-new", "")
	began := time.Now()
	apply(t, pods("down-out", "p", 20), pods("down-in", "p", 20), pod("down-new", "p", ""))
	ready(t, "down-out")
	ready(t, "down-new")
	t.Logf("20 pods outside the mesh were ready after %.1f s", time.Since(began).Seconds())
	eventually(t, "an Event says why a pod waits", func() error { return waiting("down-in", "p-7") })
	if count := readyPods(t, "down-in"); count > 0 {
		t.Errorf("%d pods started past the mesh", count)
	}
	startMesh(t)
	ready(t, "down-in")
	enrolled(t, "down-in", true)
}

// A pod's or a node's label frees pods while the whole mesh is down.
func TestReleasedWhileDown(t *testing.T) {
	namespace(t, "freed", "enabled")
	stopMesh(t)
	onNode := func(node string) string { return ", nodeName: " + node }
	apply(t, pod("freed", "labelled", onNode("n1")), pod("freed", "released", onNode("n2")), pod("freed", "waits", onNode("n1")))
	eventually(t, "an Event says why a pod waits", func() error { return waiting("freed", "labelled") })
	kubectl(t, "-n", "freed", "label", "pod", "labelled", "culvert.dev/mesh=disabled")
	kubectl(t, "label", "node", "n2", "culvert.dev/mesh=released")
	t.Cleanup(func() { kubectl(t, "label", "node", "n2", "culvert.dev/mesh-") })
	ready(t, "freed", "-l", "app in (labelled,released)")
	if count := readyPods(t, "freed"); count != 2 {
		t.Errorf("%d pods are ready, 2 were let go", count)
	}
	kubectl(t, "label", "node", "n2", "culvert.dev/mesh-")
	startMesh(t)
	ready(t, "freed")
	enrolled(t, "freed", true, "-l", "app=waits")
}

// The plugin is called twice, out of order, and for a pod that is gone.
func TestPluginCalledOutOfOrder(t *testing.T) {
	configuration := kubectlNode(t, "n1", "cat", "/etc/cni/net.d/00-culvert.conflist")
	if !strings.Contains(configuration, "culvert-cni") {
		t.Fatalf("the plugin is not in force: %s", configuration)
	}
	const script = `
call() { # COMMAND NETNS
  printf '%s' "$input" | env CNI_COMMAND="$1" CNI_CONTAINERID=c1 CNI_NETNS="$2" CNI_IFNAME=eth0 CNI_PATH=/opt/cni/bin \
    CNI_ARGS="K8S_POD_NAMESPACE=gone;K8S_POD_NAME=gone;K8S_POD_UID=11111111-2222-3333-4444-555555555555" /opt/cni/bin/culvert-cni
}
kubeconfig=/etc/cni/net.d/culvert-kubeconfig
input='{"cniVersion":"1.0.0","name":"pods","type":"culvert-cni","enrolmentSocket":"/run/culvert/enrolment.sock","kubeconfig":"'$kubeconfig'","stateDirectory":"/var/lib/culvert","node":"n1","unknownNamespaces":"wait","prevResult":{"cniVersion":"1.0.0","ips":[{"address":"10.244.1.250/24"}]}}'
ip netns add culvert-out-of-order || exit 1
trap 'ip netns delete culvert-out-of-order 2>/dev/null' EXIT
call DEL /run/netns/culvert-out-of-order || { echo "DEL before ADD failed"; exit 1; }
call ADD /run/netns/culvert-out-of-order || { echo "ADD of a pod that is gone, of no namespace of the mesh, failed"; exit 1; }
call ADD /run/netns/culvert-out-of-order || { echo "a second ADD failed"; exit 1; }
ip netns delete culvert-out-of-order
call DEL /run/netns/culvert-out-of-order || { echo "DEL after the namespace is gone failed"; exit 1; }
call DEL "" || { echo "a second DEL failed"; exit 1; }
`
	if output, err := cluster("", "enter", "--node", "n1", "bash", "-c", script); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
}

func kubectlNode(t *testing.T, node string, command ...string) string {
	t.Helper()
	output, err := cluster("", "enter", append([]string{"--node", node}, command...)...)
	if err != nil {
		t.Fatal(err)
	}
	return output
}
