package kubernetes

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Another version of the chart, then back: while requests run, none fails, and what was in force before is again.
func TestRollback(t *testing.T) {
	shop(t, "rollback")
	traffic := start("rollback", "client", "http://cart/", 120*time.Second, "--rate", "50", "--connections", "4", "--new-connection")
	drain := func() string {
		return kubectl(t, "-n", mesh, "get", "daemonset", "culvert-node-proxy", "-o", `jsonpath={.spec.template.spec.containers[0].args}`)
	}
	before := drain()
	tools := tools(t)
	lines := commands(t, 2)
	shell(t, tools, lines[0]+" --set nodeProxy.drainSeconds=77")
	if now := drain(); !strings.Contains(now, "--drain=77") {
		t.Errorf("after the upgrade: %s", now)
	}
	shell(t, tools, lines[1])
	if now := drain(); now != before {
		t.Errorf("after the rollback: %s\nbefore: %s", now, before)
	}
	kubectl(t, "-n", mesh, "rollout", "status", "daemonset/culvert-node-proxy", "--timeout="+patience.String())
	if seen := traffic.wait(t); seen.failed() > 0 {
		t.Errorf("requests failed: %v", seen)
	}
	enrolled(t, "rollback", true)
}

// Node proxies are replaced again and again while the first ones still drain for connections that go on: these live through all of
// it, and no request fails. When they end, so do all the old ones.
func TestUpgradesInARow(t *testing.T) {
	shop(t, "row")
	held := hold(t, "row", "client", "cart:9090", 8)
	fresh := start("row", "client", "http://cart/", 150*time.Second, "--rate", "50", "--connections", "4", "--new-connection")
	const upgrades = 4
	for range upgrades {
		upgradeNodeProxies(t)
		held.alive(t)
	}
	if draining := nodeProxies(t); draining <= 2 {
		t.Errorf("%d node proxies: none of the old ones drains, so that nothing was tested", draining)
	}
	if seen := fresh.wait(t); seen.failed() > 0 {
		t.Errorf("requests failed: %v", seen)
	}
	held.alive(t)
	enrolled(t, "row", true)
	held.end(t)
	eventually(t, "the old node proxies end", func() error {
		if count := nodeProxies(t); count != 2 {
			return fmt.Errorf("%d node proxies", count)
		}
		return nil
	})
}

// upgradeNodeProxies returns when every node has a new one that is ready. The status of the DaemonSet speaks of the oldest pod of a
// node, as long as that drains, and `kubectl rollout status` with it.
func upgradeNodeProxies(t *testing.T) {
	t.Helper()
	stamp := fmt.Sprint(time.Now().UnixNano())
	patch := fmt.Sprintf(`{"spec":{"template":{"metadata":{"annotations":{"culvert.test/upgrade":%q}}}}}`, stamp)
	kubectl(t, "-n", mesh, "patch", "daemonset/culvert-node-proxy", "-p", patch)
	eventually(t, "every node has a new node proxy that is ready", func() error {
		states := kubectl(t, "-n", mesh, "get", "pods", "-l", "app.kubernetes.io/component=node-proxy", "-o",
			`jsonpath={range .items[*]}{.metadata.annotations.culvert\.test/upgrade}={.status.conditions[?(@.type=="Ready")].status} {end}`)
		if strings.Count(states, stamp+"=True") != 2 {
			return fmt.Errorf("%s", states)
		}
		return nil
	})
}

// nodeProxies counts their pods, those that end among them.
func nodeProxies(t *testing.T) int {
	t.Helper()
	return len(strings.Fields(kubectl(t, "-n", mesh, "get", "pods", "-l", "app.kubernetes.io/component=node-proxy", "-o", "name")))
}

// held are connections that stay open until they are told to end.
type held struct {
	input  io.WriteCloser
	output *bufio.Scanner
	done   func() error
	count  int
}

// hold opens connections from a pod to a TCP echo.
func hold(t *testing.T, namespace, pod, target string, count int) *held {
	t.Helper()
	command := exec.Command(filepath.Join(clusterCommands, "kubectl"), "-n", namespace, "exec", "-i", pod, "--",
		"culvert-echo", "hold", target, "--connections", fmt.Sprint(count), "--timeout", "30000")
	input, err := command.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	output, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = command.Process.Kill() })
	h := &held{input: input, output: bufio.NewScanner(output), done: command.Wait, count: count}
	h.report(t)
	return h
}

// alive has every connection carry a byte there and back.
func (h *held) alive(t *testing.T) {
	t.Helper()
	if _, err := fmt.Fprintln(h.input, "exchange"); err != nil {
		t.Fatal(err)
	}
	h.report(t)
}

func (h *held) report(t *testing.T) {
	t.Helper()
	if !h.output.Scan() {
		t.Fatalf("who holds the connections is gone: %v", h.output.Err())
	}
	var report struct {
		OK, Failed int
		Errors     map[string]int
	}
	if err := json.Unmarshal(h.output.Bytes(), &report); err != nil {
		t.Fatalf("%v: %s", err, h.output.Text())
	}
	if report.OK != h.count || report.Failed > 0 {
		t.Fatalf("of %d open connections %d are well: %v", h.count, report.OK, report.Errors)
	}
}

func (h *held) end(t *testing.T) {
	t.Helper()
	if err := h.input.Close(); err != nil {
		t.Fatal(err)
	}
	if err := h.done(); err != nil {
		t.Fatal(err)
	}
}

// A node proxy's pod that somebody deletes goes on until the one that comes in its place has taken over: no connection fails, new ones
// do not wait, and those that are open go on.
func TestNodeProxyPodDeleted(t *testing.T) {
	shop(t, "deleted")
	held := hold(t, "deleted", "client", "cart:9090", 8)
	fresh := start("deleted", "client", "http://cart/", 60*time.Second, "--rate", "100", "--connections", "8", "--new-connection", "--timeout", "120000")
	time.Sleep(3 * time.Second)
	for _, node := range []string{"n1", "n2"} {
		before := nodeProxy(t, node)
		kubectl(t, "-n", mesh, "delete", "pod", before, "--wait=false")
		eventually(t, "another one is ready on "+node, func() error {
			states := kubectl(t, "-n", mesh, "get", "pods", "-l", "app.kubernetes.io/component=node-proxy", "--field-selector", "spec.nodeName="+node,
				"-o", `jsonpath={range .items[*]}{.metadata.name}={.status.conditions[?(@.type=="Ready")].status} {end}`)
			for _, state := range strings.Fields(states) {
				if !strings.HasPrefix(state, before) && strings.HasSuffix(state, "=True") {
					return nil
				}
			}
			return fmt.Errorf("%s", states)
		})
		held.alive(t)
	}
	seen := fresh.wait(t)
	t.Logf("the longest request took %.0f ms", seen.Latency.Max)
	if seen.failed() > 0 {
		t.Errorf("requests failed: %v", seen)
	}
	held.alive(t)
	held.end(t)
	enrolled(t, "deleted", true)
}
