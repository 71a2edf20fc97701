package kubernetes

import (
	"os/exec"
	"strings"
	"testing"
	"time"
)

// With a node away `helm uninstall` ends by itself and says which node is left and what to do; the node is cleaned when it
// comes back, and then the command it named leaves nothing.
func TestUninstallWithANodeAway(t *testing.T) {
	shop(t, "away")
	t.Cleanup(func() {
		cluster("", "node", "start", "n2")
		cluster("", "kubectl", "-n", mesh, "delete", "daemonset", "culvert-cleanup", "--ignore-not-found", "--wait")
		if output, err := exec.Command("../conformance/install").CombinedOutput(); err != nil {
			t.Errorf("installing again: %v\n%s", err, output)
		}
	})
	if _, err := cluster("", "node", "stop", "n2"); err != nil {
		t.Fatal(err)
	}
	kubectl(t, "wait", "--for=condition=Ready=Unknown", "node/n2", "--timeout="+patience.String())

	began := time.Now()
	output := shell(t, tools(t), commands(t, 3)[0])
	t.Logf("it took %.0f s and said:\n%s", time.Since(began).Seconds(), output)
	const remedy = "kubectl -n culvert-system delete daemonset culvert-cleanup"
	// Helm quotes what a hook says.
	if !strings.Contains(strings.ReplaceAll(output, `\"`, `"`), `"nodes":"n2"`) || !strings.Contains(output, remedy) {
		t.Error("it does not name the node that is left, or not the remedy")
	}
	for _, left := range ours(t) {
		// The pods of the dead node stay until its kubelet is back.
		if !strings.HasPrefix(left, "Pod ") && !strings.Contains(left, "culvert-cleanup") {
			t.Errorf("%s is left", left)
		}
	}
	if left := leftovers(t, "n1"); strings.TrimSpace(left) != "" {
		t.Errorf("on n1, which was there: %s", left)
	}
	if _, err := cluster("", "node", "start", "n2"); err != nil {
		t.Fatal(err)
	}
	kubectl(t, "-n", mesh, "rollout", "status", "daemonset/culvert-cleanup", "--timeout="+patience.String())
	shell(t, tools(t), remedy)
	clean(t)
	// The namespace is enrolled still; without a mesh its pods start as any.
	kubectl(t, "-n", "away", "rollout", "restart", "deployment/cart")
	kubectl(t, "-n", "away", "rollout", "status", "deployment/cart", "--timeout="+patience.String())
}
