// Package e2e tests the test cluster itself, as its users call it. It needs root.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"culvert.dev/tests/cluster/internal/keeper"
	"culvert.dev/tests/cluster/internal/layout"
)

// patience bounds every wait: a machine that is busy with other things is slow, and nothing here measures speed.
const patience = 5 * time.Minute

// buildPatience is for a machine that has built nothing yet.
const buildPatience = 45 * time.Minute

// cluster calls the commands of one checkout.
type cluster struct {
	layout layout.Layout
}

func newCluster(t *testing.T) cluster {
	t.Helper()
	l, err := layout.Find(filepath.Join("..", "..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() != 0 {
		t.Fatal("these tests need root")
	}
	lock, err := keeper.Acquire(l)
	if err != nil {
		t.Fatalf("a cluster of this checkout is up; tests/cluster/down first: %v", err)
	}
	if err := lock.Release(); err != nil {
		t.Fatal(err)
	}
	return cluster{layout: l}
}

func (c cluster) command(ctx context.Context, verb string, args ...string) *exec.Cmd {
	command := exec.CommandContext(ctx, c.layout.Source(verb), args...)
	// A command that is killed may leave children with its output open.
	command.WaitDelay = 10 * time.Second
	return command
}

// try runs a command and returns what it printed, on both channels.
func (c cluster) try(verb string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	output, err := c.command(ctx, verb, args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s %s: %w\n%s", verb, strings.Join(args, " "), err, output)
	}
	return strings.TrimSpace(string(output)), err
}

func (c cluster) must(t *testing.T, verb string, args ...string) string {
	t.Helper()
	output, err := c.try(verb, args...)
	if err != nil {
		t.Fatal(err)
	}
	return output
}

func (c cluster) build(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), buildPatience)
	defer cancel()
	if output, err := c.command(ctx, "build").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
}

func (c cluster) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	return c.must(t, "kubectl", args...)
}

// create creates objects and returns what the API server made of them.
func (c cluster) create(t *testing.T, manifest string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	command := c.command(ctx, "kubectl", append([]string{"create", "-f", "-"}, args...)...)
	command.Stdin = strings.NewReader(manifest)
	output, err := command.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	return string(output)
}

func eventually(t *testing.T, what string, holds func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := holds()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not after %s: %v", what, patience, err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// noProcesses is nil when no program of a cluster runs.
func (c cluster) noProcesses() error {
	executables, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		return err
	}
	for _, link := range executables {
		// A process may end while it is looked at.
		if target, err := os.Readlink(link); err == nil && strings.HasPrefix(target, c.layout.Bin("")) {
			return fmt.Errorf("%s still runs as %s", target, link)
		}
	}
	return nil
}

// leftovers is what of a cluster is still on the machine.
func (c cluster) leftovers() error {
	if err := c.noProcesses(); err != nil {
		return err
	}
	var left []string
	groups, err := filepath.Glob("/sys/fs/cgroup/*/" + c.layout.CgroupName())
	if err != nil {
		return err
	}
	left = append(left, groups...)
	if _, err := os.Stat("/sys/fs/cgroup/" + c.layout.CgroupName()); err == nil {
		left = append(left, "/sys/fs/cgroup/"+c.layout.CgroupName())
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	for _, line := range strings.Split(string(mounts), "\n") {
		if strings.Contains(line, c.layout.Root) {
			left = append(left, line)
		}
	}
	if _, err := os.Stat(c.layout.State()); err == nil {
		left = append(left, c.layout.State())
	}
	if len(left) > 0 {
		return fmt.Errorf("left over:\n%s", strings.Join(left, "\n"))
	}
	return nil
}

const workload = `
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Pod
metadata: {name: web-n1, labels: {app: web}}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 0
  containers:
  - name: web
    image: cluster.test/tools:1
    imagePullPolicy: Never
    command: [probe, serve, ":8080"]
    ports: [{containerPort: 8080}]
    readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
    volumeMounts: [{name: token, mountPath: /token}]
  volumes:
  - name: token
    projected: {sources: [{serviceAccountToken: {audience: somebody, path: token}}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-n2, labels: {app: web}}
spec:
  nodeName: n2
  terminationGracePeriodSeconds: 0
  containers:
  - name: web
    image: cluster.test/tools:1
    imagePullPolicy: Never
    command: [probe, serve, ":8080"]
    ports: [{containerPort: 8080}]
    readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
`

func (c cluster) awaitPods(t *testing.T) {
	t.Helper()
	c.kubectl(t, "wait", "--for=condition=Ready", "pod/web-n1", "pod/web-n2", "--timeout=240s")
}

func (c cluster) podAddress(t *testing.T, name string) string {
	t.Helper()
	return c.kubectl(t, "get", "pod", name, "-o", "jsonpath={.status.podIP}")
}

// TestCluster takes a cluster through its whole life, in order.
func TestCluster(t *testing.T) {
	c := newCluster(t)
	c.build(t)
	t.Cleanup(func() { c.must(t, "down") })
	for _, step := range []struct {
		name string
		test func(*testing.T)
	}{
		{"an up that is killed leaves nothing", c.killedUp},
		{"up", func(t *testing.T) { t.Log(c.must(t, "up", "--nodes", "2")) }},
		{"a second up says what to do", c.secondUp},
		{"pods run on both nodes and reach each other", c.podsAcrossNodes},
		{"a Service is balanced and has a name", c.serviceAndName},
		{"a Service is reached from the control plane's network", c.serviceFromControlPlane},
		{"exec takes input", c.exec},
		{"logs", c.logs},
		{"port-forward", c.portForward},
		{"projected tokens are reviewed by audience", c.tokens},
		{"RBAC is on", c.rbac},
		{"a node's agent sees its pods' namespaces and installs a CNI plugin", c.agent},
		{"an image with shared libraries is loaded", c.loadImage},
		{"a node is stopped and started", c.nodePower},
		{"the API server is stopped and started", c.apiServerPower},
		{"down leaves nothing", c.downLeavesNothing},
		{"a keeper that is killed takes its cluster along", c.killedKeeper},
		{"a cluster of one node works", func(t *testing.T) { c.must(t, "up", "--nodes", "1"); c.downLeavesNothing(t) }},
		{"the documentation's commands work", c.documentation},
		{"without a cluster, commands say so", c.withoutCluster},
	} {
		if !t.Run(step.name, step.test) {
			t.Fatal("the steps after this one depend on it")
		}
	}
}

func (c cluster) killedUp(t *testing.T) {
	// Those of an earlier cluster would look as if this one had come that far.
	if err := os.RemoveAll(c.layout.Log()); err != nil {
		t.Fatal(err)
	}
	up := exec.Command(c.layout.Source("up"))
	up.Stdout, up.Stderr = io.Discard, io.Discard
	if err := up.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "etcd and kubelets run", func() error {
		for _, log := range []string{"etcd.log", "n2/kubelet.log"} {
			if _, err := os.Stat(c.layout.Log(log)); err != nil {
				return err
			}
		}
		return nil
	})
	if err := up.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := up.Wait(); err == nil {
		t.Fatal("up had ended before it was killed")
	}
	eventually(t, "everything is gone", c.leftovers)
}

// killedKeeper kills what cleans up; the next down does it.
func (c cluster) killedKeeper(t *testing.T) {
	c.must(t, "up")
	_, err := keeper.Acquire(c.layout)
	held := keeper.HeldError{}
	if !errors.As(err, &held) {
		t.Fatal(err)
	}
	if err := syscall.Kill(held.Pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "everything that runs has ended", c.noProcesses)
	c.downLeavesNothing(t)
}

func (c cluster) secondUp(t *testing.T) {
	if output, err := c.try("up"); err == nil || !strings.Contains(output, "tests/cluster/down") {
		t.Fatalf("%v\n%s", err, output)
	}
}

func (c cluster) podsAcrossNodes(t *testing.T) {
	c.create(t, workload)
	c.awaitPods(t)
	for from, to := range map[string]string{"web-n1": "web-n2", "web-n2": "web-n1"} {
		answer := c.kubectl(t, "exec", from, "--", "probe", "get", "http://"+c.podAddress(t, to)+":8080/here")
		// The client's address is kept across nodes.
		if want := to + " " + c.podAddress(t, from) + ":"; !strings.HasPrefix(answer, want) || !strings.HasSuffix(answer, " /here") {
			t.Fatalf("%q does not begin with %q", answer, want)
		}
	}
}

func (c cluster) serviceAndName(t *testing.T) {
	var answers string
	// The rules of a new Service reach the nodes a moment after it.
	eventually(t, "the Service answers", func() (err error) {
		answers, err = c.try("kubectl", "exec", "web-n1", "--", "probe", "get", "http://web.default.svc.cluster.local/", "60")
		return err
	})
	for _, pod := range []string{"web-n1 ", "web-n2 "} {
		if !strings.Contains(answers, pod) {
			t.Fatalf("none of 60 requests went to %s:\n%s", pod, answers)
		}
	}
}

func (c cluster) serviceFromControlPlane(t *testing.T) {
	address := c.kubectl(t, "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
	eventually(t, "the Service answers", func() error {
		answer, err := c.try("enter", c.layout.Bin("probe"), "get", "http://"+address+"/")
		if err == nil && !strings.HasPrefix(answer, "web-n") {
			return fmt.Errorf("answered %q", answer)
		}
		return err
	})
}

func (c cluster) exec(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	command := c.command(ctx, "kubectl", "exec", "-i", "web-n2", "--", "tr", "a-z", "A-Z")
	command.Stdin = strings.NewReader("told through the pipe")
	output, err := command.CombinedOutput()
	if err != nil || string(output) != "TOLD THROUGH THE PIPE" {
		t.Fatalf("%v %q", err, output)
	}
}

func (c cluster) logs(t *testing.T) {
	if log := c.kubectl(t, "logs", "web-n1"); log != "serving on :8080" {
		t.Fatalf("%q", log)
	}
}

// portForward forwards within the control plane's network namespace, where kubectl runs.
func (c cluster) portForward(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	command := c.command(ctx, "kubectl", "port-forward", "pod/web-n2", "18080:8080")
	var output bytes.Buffer
	command.Stdout, command.Stderr = &output, &output
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the forwarded port answers", func() error {
		answer, err := c.try("enter", c.layout.Bin("probe"), "get", "http://127.0.0.1:18080/forwarded")
		if err == nil && !strings.HasPrefix(answer, "web-n2 ") {
			return fmt.Errorf("answered %q", answer)
		}
		return err
	})
	cancel()
	_ = command.Wait() // It was killed.
}

func (c cluster) tokens(t *testing.T) {
	token := c.kubectl(t, "exec", "web-n1", "--", "cat", "/token/token")
	for audience, valid := range map[string]bool{"somebody": true, "somebody-else": false} {
		reviewed := c.create(t, fmt.Sprintf(`{"apiVersion":"authentication.k8s.io/v1","kind":"TokenReview","spec":{"token":%q,"audiences":[%q]}}`, token, audience), "-o", "json")
		var review struct {
			Status struct {
				Authenticated bool
				User          struct {
					Username string
					Extra    map[string][]string
				}
			}
		}
		if err := json.Unmarshal([]byte(reviewed), &review); err != nil {
			t.Fatalf("%v\n%s", err, reviewed)
		}
		if review.Status.Authenticated != valid {
			t.Fatalf("for %s: %s", audience, reviewed)
		}
		if !valid {
			continue
		}
		node := review.Status.User.Extra["authentication.kubernetes.io/node-name"]
		if review.Status.User.Username != "system:serviceaccount:default:default" || len(node) != 1 || node[0] != "n1" {
			t.Fatalf("the token is not bound to its account and node: %s", reviewed)
		}
	}
}

func (c cluster) rbac(t *testing.T) {
	// It exits with 1 for "no".
	output, err := c.try("kubectl", "auth", "can-i", "list", "secrets", "--as=system:serviceaccount:default:default")
	if err == nil || output != "no" {
		t.Fatalf("%v %q", err, output)
	}
}

const nodeAgent = `
apiVersion: v1
kind: Pod
metadata: {name: agent}
spec:
  nodeName: n1
  hostNetwork: true
  hostPID: true
  terminationGracePeriodSeconds: 0
  containers:
  - name: agent
    image: cluster.test/tools:1
    imagePullPolicy: Never
    command: [sleep, infinity]
    securityContext: {privileged: true}
    volumeMounts:
    - {name: netns, mountPath: /host/netns, mountPropagation: HostToContainer}
    - {name: configuration, mountPath: /host/net.d}
    - {name: plugins, mountPath: /host/bin}
  volumes:
  - {name: netns, hostPath: {path: /var/run/netns}}
  - {name: configuration, hostPath: {path: /etc/cni/net.d}}
  - {name: plugins, hostPath: {path: /opt/cni/bin}}
`

// agent does what the agents of networks do: it enters the namespaces of pods, also of such that come after it, and what
// it installs for the container runtime is used on its node only.
func (c cluster) agent(t *testing.T) {
	c.create(t, nodeAgent)
	c.kubectl(t, "wait", "--for=condition=Ready", "pod/agent", "--timeout=240s")
	inside := func(script string) string { return c.kubectl(t, "exec", "agent", "--", "sh", "-euc", script) }
	// A plugin that leaves a mark and does nothing else, at the end of the chain.
	inside(`printf '#!/bin/sh\ncat >/dev/null\necho $CNI_COMMAND >>/var/log/marker\n' >/host/bin/marker && chmod +x /host/bin/marker
		sed 's/{"type": "portmap".*/&, {"type": "marker"}/' /host/net.d/10-pods.conflist >/host/net.d/05-marked.conflist`)
	c.create(t, strings.Replace(strings.Split(workload, "---")[1], "web-n1", "late", 1))
	c.kubectl(t, "wait", "--for=condition=Ready", "pod/late", "--timeout=240s")
	namespaces := inside("for n in /host/netns/*; do nsenter --net=$n ip -o -4 addr show eth0 || true; done")
	if address := c.podAddress(t, "late"); !strings.Contains(namespaces, " "+address+"/") {
		t.Errorf("%s is in none of its node's namespaces:\n%s", address, namespaces)
	}
	inside("rm /host/net.d/05-marked.conflist")
	c.kubectl(t, "delete", "pod", "agent", "late", "--wait")
	c.must(t, "enter", "--node", "n1", "ls", "/opt/cni/bin/marker")
	if output, err := c.try("enter", "--node", "n2", "ls", "/opt/cni/bin/marker"); err == nil {
		t.Errorf("a plugin of node n1 is on n2: %s", output)
	}
}

func (c cluster) loadImage(t *testing.T) {
	recipe := filepath.Join(t.TempDir(), "sorted.json")
	text := `[{"names": ["example.test/sorted:1"], "files": {"/bin/sort": "/usr/bin/sort"},
		"entrypoint": ["/bin/sort", "--version"], "user": "65532"}]`
	if err := os.WriteFile(recipe, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	c.must(t, "load-image", recipe)
	for _, node := range []string{"n1", "n2"} {
		c.create(t, `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"sorted-`+node+`"},"spec":{"nodeName":"`+node+`",
			"restartPolicy":"Never","containers":[{"name":"sorted","image":"example.test/sorted:1","imagePullPolicy":"Never"}]}}`)
		c.kubectl(t, "wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/sorted-"+node, "--timeout=240s")
		if log := c.kubectl(t, "logs", "sorted-"+node); !strings.Contains(log, "coreutils") {
			t.Fatalf("%q", log)
		}
	}
}

func (c cluster) nodePower(t *testing.T) {
	before := c.kubectl(t, "get", "pod", "web-n2", "-o", "jsonpath={.status.containerStatuses[0].containerID}")
	c.must(t, "node", "stop", "n2")
	if output, err := c.try("node", "stop", "n2"); err == nil || !strings.Contains(output, "does not run") {
		t.Fatalf("%v %q", err, output)
	}
	c.kubectl(t, "wait", "--for=condition=Ready=Unknown", "node/n2", "--timeout=240s")
	c.must(t, "node", "start", "n2")
	c.kubectl(t, "wait", "--for=condition=Ready", "node/n2", "--timeout=240s")
	eventually(t, "web-n2 has a new container", func() error {
		after, err := c.try("kubectl", "get", "pod", "web-n2", "-o", "jsonpath={.status.containerStatuses[0].containerID}")
		if err == nil && (after == before || after == "") {
			return fmt.Errorf("its container is %q", after)
		}
		return err
	})
	c.awaitPods(t)
	eventually(t, "the Service answers", func() error {
		_, err := c.try("kubectl", "exec", "web-n2", "--", "probe", "get", "http://web/")
		return err
	})
}

func (c cluster) apiServerPower(t *testing.T) {
	c.must(t, "component", "stop", "kube-apiserver")
	if output, err := c.try("kubectl", "get", "nodes", "--request-timeout=5s"); err == nil {
		t.Fatal(output)
	}
	c.must(t, "component", "start", "kube-apiserver")
	c.kubectl(t, "get", "nodes")
	if output, err := c.try("component", "stop", "kube-nothing"); err == nil || !strings.Contains(output, "kube-scheduler") {
		t.Fatalf("the message does not name what there is: %q", output)
	}
}

func (c cluster) downLeavesNothing(t *testing.T) {
	c.must(t, "down")
	if err := c.leftovers(); err != nil {
		t.Fatal(err)
	}
}

// commandsOfPage are the blocks of a page that say that they are commands.
var commandsOfPage = regexp.MustCompile("(?ms)^```sh\n(.*?)^```$")

// documentation runs the page's commands in their order, which begins with up and ends with down.
func (c cluster) documentation(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(c.layout.Repository, "docs", "test-cluster.md"))
	if err != nil {
		t.Fatal(err)
	}
	blocks := commandsOfPage.FindAllSubmatch(page, -1)
	if len(blocks) < 4 {
		t.Fatalf("the page has only %d blocks of commands", len(blocks))
	}
	for _, block := range blocks {
		ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
		shell := exec.CommandContext(ctx, "bash", "-euc", string(block[1]))
		shell.Dir = c.layout.Repository
		shell.WaitDelay = 10 * time.Second
		output, err := shell.CombinedOutput()
		cancel()
		if err != nil {
			t.Fatalf("%v\n%s\n%s", err, block[1], output)
		}
	}
	if err := c.leftovers(); err != nil {
		t.Fatal(err)
	}
}

func (c cluster) withoutCluster(t *testing.T) {
	for _, args := range [][]string{{"kubectl", "get", "nodes"}, {"node", "stop", "n1"}, {"load-image", "x.tar"}, {"enter", "true"}} {
		if output, err := c.try(args[0], args[1:]...); err == nil || !strings.Contains(output, "tests/cluster/up") {
			t.Errorf("%v: %v %q", args, err, output)
		}
	}
	c.must(t, "down")
}
