package kubernetes

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// Node proxies, controllers and CA are replaced under load, and not one request fails.
func TestUpgradeUnderLoad(t *testing.T) {
	shop(t, "upgrade")
	kept := start("upgrade", "client", "http://cart/", 90*time.Second, "--rate", "100", "--connections", "4")
	fresh := start("upgrade", "client", "http://cart/", 90*time.Second, "--rate", "50", "--connections", "4", "--new-connection")
	stamp := fmt.Sprintf(`{"spec":{"template":{"metadata":{"annotations":{"culvert.test/upgrade":"%d"}}}}}`, time.Now().UnixNano())
	all := []string{"daemonset/culvert-node-proxy", "deployment/culvert-controller", "deployment/culvert-ca"}
	for _, name := range all {
		kubectl(t, "-n", mesh, "patch", name, "-p", stamp)
	}
	for _, name := range all {
		kubectl(t, "-n", mesh, "rollout", "status", name, "--timeout="+patience.String())
	}
	for _, seen := range []answers{kept.wait(t), fresh.wait(t)} {
		if seen.failed() > 0 {
			t.Errorf("requests failed during the upgrade: %v", seen)
		}
	}
	enrolled(t, "upgrade", true)
}

// The application is rolled out under load, and not one request fails.
func TestRolloutUnderLoad(t *testing.T) {
	shop(t, "rollout")
	kept := start("rollout", "client", "http://cart/", 60*time.Second, "--rate", "100", "--connections", "4")
	fresh := start("rollout", "client", "http://cart/", 60*time.Second, "--rate", "50", "--connections", "4", "--new-connection")
	for range 2 {
		kubectl(t, "-n", "rollout", "rollout", "restart", "deployment/cart")
		kubectl(t, "-n", "rollout", "rollout", "status", "deployment/cart", "--timeout="+patience.String())
	}
	for _, seen := range []answers{kept.wait(t), fresh.wait(t)} {
		if seen.failed() > 0 {
			t.Errorf("requests failed during the rollout: %v", seen)
		}
	}
}

// How much longer the network of an enrolled pod takes than that of another. A figure for the manual, not a limit.
func TestStartTime(t *testing.T) {
	const count = 25
	namespace(t, "start-in", "enabled")
	namespace(t, "start-out", "")
	for i := range count {
		// One after the other, or they would measure how the node's processors are shared.
		for _, namespace := range []string{"start-in", "start-out"} {
			apply(t, pod(namespace, fmt.Sprintf("p-%d", i), ", nodeName: n1"))
			ready(t, namespace)
		}
	}
	log, err := os.ReadFile(filepath.Join("..", "..", "target", "cluster", "log", "n1", "containerd.log"))
	if err != nil {
		t.Fatal(err)
	}
	for _, namespace := range []string{"start-in", "start-out"} {
		took := sandboxTimes(t, string(log), namespace)
		if len(took) < count {
			t.Fatalf("%s: %d of %d pods are in containerd's log", namespace, len(took), count)
		}
		// The log goes back to when the cluster came up.
		took = took[len(took)-count:]
		slices.Sort(took)
		t.Logf("%s: from RunPodSandbox to its answer p50 %v, p99 %v", namespace, took[len(took)/2], took[len(took)-1])
	}
}

var sandboxLine = regexp.MustCompile(`time="([^"]+)".*RunPodSandbox for name:\\"([^"\\]+)\\".*namespace:\\"([^"\\]+)\\"(.*)`)

// sandboxTimes is how long each pod's sandbox took, by containerd's log.
func sandboxTimes(t *testing.T, log, namespace string) []time.Duration {
	t.Helper()
	began := map[string]time.Time{}
	var took []time.Duration
	for _, line := range strings.Split(log, "\n") {
		match := sandboxLine.FindStringSubmatch(line)
		if match == nil || match[3] != namespace {
			continue
		}
		at, err := time.Parse(time.RFC3339Nano, match[1])
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(match[4], "returns sandbox id") {
			took = append(took, at.Sub(began[match[2]]))
		} else {
			began[match[2]] = at
		}
	}
	return took
}
