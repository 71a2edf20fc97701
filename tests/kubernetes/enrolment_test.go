package kubernetes

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// A namespace's label enrols what runs in it, while it runs, and lets it go again; nothing fails meanwhile.
func TestLabelFlippedUnderTraffic(t *testing.T) {
	namespace(t, "flip", "")
	apply(t, deployment("flip", "cart", 4), pod("flip", "client", ""))
	ready(t, "flip")
	kept := start("flip", "client", "http://cart/", 50*time.Second, "--rate", "100", "--connections", "4")
	fresh := start("flip", "client", "http://cart/", 50*time.Second, "--rate", "50", "--connections", "4", "--new-connection")
	for range 5 {
		kubectl(t, "label", "namespace", "flip", "culvert.dev/mesh=enabled", "--overwrite")
		time.Sleep(4 * time.Second)
		kubectl(t, "label", "namespace", "flip", "culvert.dev/mesh-")
		time.Sleep(4 * time.Second)
	}
	kubectl(t, "label", "namespace", "flip", "culvert.dev/mesh=enabled", "--overwrite")
	for _, seen := range []answers{kept.wait(t), fresh.wait(t)} {
		if seen.failed() > 0 {
			t.Errorf("requests failed while the label changed: %v", seen)
		}
	}
	enrolled(t, "flip", true)
	kubectl(t, "label", "namespace", "flip", "culvert.dev/mesh-")
	enrolled(t, "flip", false)
}

// A pod's label counts more than its namespace's, also while it runs.
func TestPodsLabelCountsMore(t *testing.T) {
	namespace(t, "opt", "enabled")
	apply(t, pod("opt", "in", ""), pod("opt", "out", ""))
	ready(t, "opt")
	enrolled(t, "opt", true)
	kubectl(t, "-n", "opt", "label", "pod", "out", "culvert.dev/mesh=disabled")
	enrolled(t, "opt", false, "-l", "app=out")
	enrolled(t, "opt", true, "-l", "app=in")
	kubectl(t, "-n", "opt", "label", "pod", "out", "culvert.dev/mesh-")
	enrolled(t, "opt", true)
}

// Everything that a pod may be, in the mesh as outside of it.
func TestKindsOfPods(t *testing.T) {
	namespace(t, "kinds", "enabled")
	call := fmt.Sprintf(`{name: call, image: %q, args: [get, "http://cart/", --count, "5"]}`, image)
	apply(t, deployment("kinds", "cart", 2))
	ready(t, "kinds")
	apply(t,
		// An init container calls through the mesh before the pod's own containers run; it has two of those.
		pod("kinds", "init", ", initContainers: ["+call+"]"),
		fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {namespace: kinds, name: two}
spec: {containers: [%s, {name: other, image: %q, args: [serve, --http, "8081"]}]}`, echo(), image),
		fmt.Sprintf(`apiVersion: batch/v1
kind: Job
metadata: {namespace: kinds, name: job}
spec: {backoffLimit: 0, template: {spec: {restartPolicy: Never, containers: [%s]}}}`, call),
		fmt.Sprintf(`apiVersion: v1
kind: Service
metadata: {namespace: kinds, name: db}
spec: {clusterIP: None, selector: {app: db}, ports: [{name: http, port: 8080}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {namespace: kinds, name: db}
spec:
  serviceName: db
  replicas: 2
  selector: {matchLabels: {app: db}}
  template: {metadata: {labels: {app: db}}, spec: {containers: [%s]}}`, echo()),
		fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {namespace: kinds, name: hostport, labels: {app: hostport}}
spec: {containers: [{name: echo, image: %q, args: [serve, --http, "8080"], ports: [{containerPort: 8080, hostPort: 18080}]}]}`, image),
		fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {namespace: kinds, name: hostnetwork, labels: {app: hostnetwork}}
spec: {hostNetwork: true, containers: [{name: echo, image: %q, args: [serve, --http, "18081"]}]}`, image),
	)
	kubectl(t, "-n", "kinds", "wait", "--for=condition=Complete", "job/job", "--timeout="+patience.String())
	kubectl(t, "-n", "kinds", "rollout", "status", "statefulset/db", "--timeout="+patience.String())
	for _, name := range []string{"init", "two", "hostport", "hostnetwork"} {
		kubectl(t, "-n", "kinds", "wait", "--for=condition=Ready", "pod/"+name, "--timeout="+patience.String())
	}
	for _, url := range []string{"http://cart/", "http://db-0.db:8080/", "http://db-1.db.kinds.svc.cluster.local:8080/"} {
		if seen := mustGet(t, "kinds", "two", url, "--count", "10"); seen.failed() > 0 {
			t.Errorf("%s: %v", url, seen)
		}
	}
	for name, selector := range map[string]string{"db": "app=db", "hostport": "app=hostport"} {
		t.Run(name, func(t *testing.T) { enrolled(t, "kinds", true, "-l", selector) })
	}
	node := kubectl(t, "-n", "kinds", "get", "pod", "hostport", "-o", "jsonpath={.status.hostIP}")
	for name, address := range map[string]string{
		"host port": node + ":18080",
		"host network": kubectl(t, "-n", "kinds", "get", "pod", "hostnetwork", "-o", "jsonpath={.status.hostIP}") +
			":18081",
	} {
		if output, err := cluster("", "enter", program("probe"), "get", "http://"+address+"/"); err != nil {
			t.Errorf("%s: %v %s", name, err, output)
		}
	}
	condition := kubectl(t, "-n", "kinds", "get", "pod", "hostnetwork", "-o", `jsonpath={.status.conditions[?(@.type=="culvert.dev/Enrolled")].status}`)
	if condition == "True" {
		t.Error("a pod of the host's network was enrolled")
	}
	// A container that ends is started again in the same namespace, captured as before.
	kubectl(t, "-n", "kinds", "exec", "two", "-c", "other", "--", "culvert-echo", "get", "http://127.0.0.1:8080/")
	restarted := start("kinds", "two", "http://cart/", 15*time.Second, "--rate", "20")
	cartPod := strings.Fields(kubectl(t, "-n", "kinds", "get", "pods", "-l", "app=cart", "-o", "jsonpath={.items[*].metadata.name}"))[0]
	killContainer(t, "kinds", cartPod)
	eventually(t, "the container was started again", func() error {
		count := kubectl(t, "-n", "kinds", "get", "pod", cartPod, "-o", "jsonpath={.status.containerStatuses[0].restartCount}")
		if count == "0" {
			return fmt.Errorf("restartCount %s", count)
		}
		return nil
	})
	ready(t, "kinds", "-l", "app=cart")
	restarted.wait(t)
	seen := mustGet(t, "kinds", "two", "http://cart/", "--count", "200", "--new-connection")
	if seen.failed() > 0 || seen.Pods[cartPod] == 0 {
		t.Errorf("after its container was started again, %s: %v", cartPod, seen)
	}
}

// killContainer ends the first container of a pod, as a crash does; one that is about to be started again is waited for.
func killContainer(t *testing.T, namespace, pod string) {
	t.Helper()
	node := kubectl(t, "-n", namespace, "get", "pod", pod, "-o", "jsonpath={.spec.nodeName}")
	eventually(t, "the container runs, and is killed", func() error {
		id, err := cluster("", "kubectl", "-n", namespace, "get", "pod", pod, "-o", "jsonpath={.status.containerStatuses[0].containerID}")
		if err != nil {
			return err
		}
		id = strings.TrimPrefix(id, "containerd://")
		_, err = cluster("", "enter", "--node", node, program("ctr"), "--namespace", "k8s.io", "task", "kill", "--signal", "SIGKILL", id)
		return err
	})
}

// Probes of every kind reach a pod that takes nothing but mutual TLS; others in plaintext do not.
func TestProbesUnderStrict(t *testing.T) {
	namespace(t, "probes", "enabled")
	probed := func(name, probe string) string {
		return fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {namespace: probes, name: %s, labels: {app: %s}, annotations: {culvert.dev/inbound-mode: strict}}
spec:
  containers:
    - {name: echo, image: %q, args: [serve, --http, "8080", --grpc, "9000", --tcp, "9090"],
       startupProbe: {%[4]s, periodSeconds: 1}, livenessProbe: {%[4]s, periodSeconds: 1}, readinessProbe: {%[4]s, periodSeconds: 1}}`,
			name, name, image, probe)
	}
	apply(t,
		probed("http", `httpGet: {path: /healthz, port: 8080, httpHeaders: [{name: X-Probe, value: kubelet}]}`),
		probed("tcp", `tcpSocket: {port: 9090}`),
		probed("grpc", `grpc: {port: 9000}`),
		probed("exec", `exec: {command: [culvert-echo, get, "http://127.0.0.1:8080/"]}`),
	)
	apply(t, pod("probes", "client", ""))
	ready(t, "probes")
	enrolled(t, "probes", true)
	time.Sleep(10 * time.Second)
	restarts := kubectl(t, "-n", "probes", "get", "pods", "-o", "jsonpath={.items[*].status.containerStatuses[*].restartCount}")
	if strings.Trim(restarts, "0 ") != "" {
		t.Errorf("containers were started again, so a probe failed: %s", restarts)
	}
	address := kubectl(t, "-n", "probes", "get", "pod", "http", "-o", "jsonpath={.status.podIP}")
	if seen := mustGet(t, "probes", "client", "http://"+address+":8080/"); seen.failed() > 0 {
		t.Errorf("from the mesh: %v", seen)
	}
	// From a node's address, as the kubelet, but not what it asks.
	if output, err := cluster("", "enter", "--node", "n1", program("probe"), "get", "http://"+address+":8080/other"); err == nil {
		t.Errorf("plaintext from the node was answered under strict: %s", output)
	}
}
