package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"culvert.dev/tests/cluster/internal/layout"
)

const workload = `
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  ipFamilyPolicy: PreferDualStack
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

func (c cluster) dualStack(t *testing.T) {
	if !layout.HasIPv6() {
		t.Log("this kernel has no IPv6: the cluster has IPv4 alone")
		return
	}
	last := func(kind, name, field string) string {
		all := strings.Fields(c.kubectl(t, "get", kind, name, "-o", "jsonpath={"+field+"}"))
		if len(all) != 2 || strings.Contains(all[0], ":") || !strings.Contains(all[1], ":") {
			t.Fatalf("%s %s has the addresses %v, not one of each family", kind, name, all)
		}
		return all[1]
	}
	service := last("service", "web", ".spec.clusterIPs[*]")
	for from, to := range map[string]string{"web-n1": "web-n2", "web-n2": "web-n1"} {
		own, other := last("pod", from, ".status.podIPs[*].ip"), last("pod", to, ".status.podIPs[*].ip")
		answer := c.kubectl(t, "exec", from, "--", "probe", "get", "http://["+other+"]:8080/here")
		if want := to + " [" + own + "]:"; !strings.HasPrefix(answer, want) {
			t.Fatalf("%q does not begin with %q", answer, want)
		}
		eventually(t, "the Service answers over IPv6", func() error {
			_, err := c.try("kubectl", "exec", from, "--", "probe", "get", "http://["+service+"]/")
			return err
		})
	}
	node := last("node", "n2", `.status.addresses[?(@.type=="InternalIP")].address`)
	if output := c.must(t, "enter", "bash", "-c", "exec 3<>/dev/tcp/"+node+"/10250"); output != "" {
		t.Fatal(output)
	}
	c.must(t, "enter", c.layout.Bin("probe"), "get", "http://["+service+"]/")
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
	// A plugin under a name of its own, at the end of the chain, whose work can be seen in a pod.
	inside(`cp /host/bin/tuning /host/bin/marker
		sed 's/{"type": "portmap".*/&, {"type": "marker", "sysctl": {"net.core.somaxconn": "777"}}/' \
			/host/net.d/10-pods.conflist >/host/net.d/05-marked.conflist`)
	c.create(t, strings.Replace(strings.Split(workload, "---")[1], "web-n1", "late", 1))
	c.kubectl(t, "wait", "--for=condition=Ready", "pod/late", "--timeout=240s")
	if mark := c.kubectl(t, "exec", "late", "--", "cat", "/proc/sys/net/core/somaxconn"); mark != "777" {
		t.Errorf("the plugin was not called: %s", mark)
	}
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
