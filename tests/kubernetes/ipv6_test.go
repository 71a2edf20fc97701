package kubernetes

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

// Over IPv6 everything holds that holds over IPv4: routes of a Service apply at its address, what goes to a pod's own address is
// mutual TLS, probes of the node pass under strict and nothing else in plaintext does.
func TestIPv6(t *testing.T) {
	if !strings.Contains(kubectl(t, "get", "node", "n1", "-o", "jsonpath={.status.addresses[*].address}"), ":") {
		t.Fatal("the nodes have no IPv6 address: this test needs a kernel with IPv6 (sysctl net.ipv6.conf.all.disable_ipv6=0), then a new tests/cluster/up")
	}
	namespace(t, "dual", "enabled")
	namespace(t, "dual-out", "")
	kubectl(t, "annotate", "namespace", "dual", "culvert.dev/inbound-mode=strict")
	const dual = "\nspec: {ipFamilyPolicy: RequireDualStack, selector"
	for _, name := range []string{"cart", "cart-v2"} {
		apply(t, strings.Replace(deployment("dual", name, 2), "\nspec: {selector", dual, 1))
	}
	apply(t, canary("dual", 0, 1), pod("dual", "client", ""), pod("dual-out", "client", ""))
	ready(t, "dual")
	ready(t, "dual-out")
	enrolled(t, "dual", true)
	accepted(t, "dual", "canary")
	service := sixth(t, "dual", "service", "cart", ".spec.clusterIPs[*]")

	seen := mustGet(t, "dual", "client", "http://["+service+"]/", "--count", "50", "--new-connection")
	if seen.failed() > 0 || len(seen.Pods) != 2 {
		t.Errorf("the Service's address: %v", seen)
	}
	for name := range seen.Pods {
		if !strings.HasPrefix(name, "cart-v2-") {
			t.Errorf("the route does not apply to the Service's IPv6 address: %v", seen)
		}
	}
	for _, name := range strings.Fields(kubectl(t, "-n", "dual", "get", "pods", "-l", "app=cart", "-o", "jsonpath={.items[*].metadata.name}")) {
		podOverIPv6(t, name)
	}
	outside, err := get("dual-out", "client", "http://["+service+"]/", "--count", "5", "--new-connection", "--timeout", "5000")
	if err != nil || outside.OK > 0 {
		t.Errorf("from outside the mesh, the Service's address: %v %v", err, outside)
	}
	rangesOfBothFamilies(t)
}

// podOverIPv6 calls a pod of namespace dual at its own address: from the mesh, from outside of it, and from its node.
func podOverIPv6(t *testing.T, name string) {
	t.Helper()
	address := sixth(t, "dual", "pod", name, ".status.podIPs[*].ip")
	if seen := mustGet(t, "dual", "client", "http://["+address+"]:8080/other", "--count", "20", "--new-connection"); seen.Pods[name] != 20 {
		t.Errorf("%s from the mesh: %v", name, seen)
	}
	seen, err := get("dual-out", "client", "http://["+address+"]:8080/other", "--count", "5", "--new-connection", "--timeout", "5000")
	if err != nil || seen.OK > 0 {
		t.Errorf("%s in plaintext from outside the mesh: %v %v", name, err, seen)
	}
	node := kubectl(t, "-n", "dual", "get", "pod", name, "-o", "jsonpath={.spec.nodeName}")
	// The readiness probe's path, then another one.
	if output, err := cluster("", "enter", "--node", node, program("probe"), "get", "http://["+address+"]:8080/"); err != nil {
		t.Errorf("the probe of %s over IPv6: %v %s", name, err, output)
	}
	if output, err := cluster("", "enter", "--node", node, program("probe"), "get", "http://["+address+"]:8080/other"); err == nil {
		t.Errorf("plaintext from the node to %s was answered under strict: %s", name, output)
	}
}

// sixth is the IPv6 one of an object's addresses.
func sixth(t *testing.T, namespace, kind, name, field string) string {
	t.Helper()
	all := strings.Fields(kubectl(t, "-n", namespace, "get", kind, name, "-o", "jsonpath={"+field+"}"))
	at := slices.IndexFunc(all, func(address string) bool { return strings.Contains(address, ":") })
	if at < 0 {
		t.Fatalf("%s %s has no IPv6 address: %v", kind, name, all)
	}
	return all[at]
}

// rangesOfBothFamilies looks at what a node proxy holds for the cluster's own, by the chart's default values.
func rangesOfBothFamilies(t *testing.T) {
	t.Helper()
	printed, err := cluster("", "enter", "--node", "n1", program("probe"), "get", "http://127.0.0.1:15000/config")
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		Mesh struct {
			PodCIDRs     []string `json:"pod_cidrs"`
			ServiceCIDRs []string `json:"service_cidrs"`
		}
	}
	if err := json.Unmarshal([]byte(printed), &config); err != nil {
		t.Fatalf("%v: %s", err, printed)
	}
	for _, want := range []struct {
		what  string
		found []string
		text  string
	}{
		{"pods", config.Mesh.PodCIDRs, "10.244.1.0/24"},
		{"pods", config.Mesh.PodCIDRs, "fd00:10:244:1::/64"},
		{"Services", config.Mesh.ServiceCIDRs, "10.96.0.0/16"},
		{"Services", config.Mesh.ServiceCIDRs, "fd00:10:96::/112"},
	} {
		if !slices.Contains(want.found, want.text) {
			t.Errorf("the ranges of %s are %v, without %s", want.what, want.found, want.text)
		}
	}
}
