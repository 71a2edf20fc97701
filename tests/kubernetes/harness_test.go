// Package kubernetes tests Culvert on the test cluster, with kubectl as its users have it. It needs root, and a cluster that
// `run` has brought Culvert onto.
package kubernetes

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	// patience bounds every wait: a machine that is busy with other things is slow, and nothing here measures speed.
	patience = 5 * time.Minute
	// mesh is the namespace of Culvert itself.
	mesh = "culvert-system"
	// image is the echo server and client.
	image = "culvert/echo:0.1.0"
)

var clusterCommands = filepath.Join("..", "cluster")

// Who calls the tests' program with this in its environment wants it to do what is named there, and nothing else: the tests' own
// network does not reach the cluster, so they start themselves in one that does.
const insideVariable = "CULVERT_TEST_INSIDE"

func TestMain(m *testing.M) {
	words := strings.Fields(os.Getenv(insideVariable))
	if len(words) == 0 {
		os.Exit(m.Run())
	}
	if err := runInside(words); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func runInside(words []string) error {
	if words[0] == "ask" {
		answer, err := askForCertificate(words[1], words[2], words[3])
		fmt.Println(answer)
		return err
	}
	client, err := newAPIClient(words[1])
	if err != nil {
		return err
	}
	if words[0] == "populate" {
		return populate(client)
	}
	return allSettled(client)
}

// inside runs runInside in the cluster's network; it may have much to do there.
func inside(words ...string) (string, error) {
	own, err := os.Executable()
	if err != nil {
		return "", err
	}
	return clusterWithin(4*patience, "", "enter", "env", insideVariable+"="+strings.Join(words, " "), own)
}

// program is the path of a program of the cluster, also for whoever is on a node.
func program(name string) string {
	path, err := filepath.Abs(filepath.Join("..", "..", "target", "cluster", "bin", name))
	if err != nil {
		panic(err)
	}
	return path
}

// cluster runs a command of tests/cluster with input, and returns what it printed on both channels.
func cluster(input string, verb string, args ...string) (string, error) {
	return clusterWithin(patience, input, verb, args...)
}

func clusterWithin(limit time.Duration, input string, verb string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	command := exec.CommandContext(ctx, filepath.Join(clusterCommands, verb), args...)
	// A command that is killed may leave children with its output open.
	command.WaitDelay = 10 * time.Second
	command.Stdin = strings.NewReader(input)
	output, err := command.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s %s: %w\n%s", verb, strings.Join(args, " "), err, output)
	}
	return strings.TrimSpace(string(output)), err
}

func kubectl(t *testing.T, args ...string) string {
	t.Helper()
	output, err := cluster("", "kubectl", args...)
	if err != nil {
		t.Fatal(err)
	}
	return output
}

func apply(t *testing.T, manifests ...string) {
	t.Helper()
	if _, err := cluster(strings.Join(manifests, "\n---\n"), "kubectl", "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
}

// namespace makes one that is deleted when the test ends. An empty label leaves it outside the mesh.
func namespace(t *testing.T, name, label string) {
	t.Helper()
	labels := "{}"
	if label != "" {
		labels = fmt.Sprintf("{culvert.dev/mesh: %s}", label)
	}
	kubectl(t, "delete", "namespace", name, "--ignore-not-found", "--wait")
	apply(t, fmt.Sprintf("apiVersion: v1\nkind: Namespace\nmetadata: {name: %s, labels: %s}", name, labels))
	eventually(t, "the namespace has its service account", func() error {
		_, err := cluster("", "kubectl", "-n", name, "get", "serviceaccount", "default")
		return err
	})
	t.Cleanup(func() {
		if t.Failed() {
			evidence(t, name)
		}
		kubectl(t, "delete", "namespace", name, "--ignore-not-found", "--wait=false")
	})
}

// evidence is what a person would look at after a failure.
func evidence(t *testing.T, namespace string) {
	for _, args := range [][]string{
		{"-n", namespace, "get", "pods", "-o", "wide"},
		{"-n", namespace, "get", "events", "--sort-by=.lastTimestamp"},
		{"-n", mesh, "get", "pods", "-o", "wide"},
		{"-n", mesh, "logs", "-l", "app.kubernetes.io/name=culvert", "--tail=8", "--prefix"},
	} {
		output, _ := cluster("", "kubectl", args...)
		lines := strings.Split(output, "\n")
		for i, line := range lines {
			lines[i] = line[:min(len(line), 400)]
		}
		t.Logf("kubectl %s:\n%s", strings.Join(args, " "), strings.Join(lines[max(0, len(lines)-60):], "\n"))
	}
}

// echo is the echo server as a container.
func echo(args ...string) string {
	quoted, _ := json.Marshal(append([]string{"serve", "--http", "8080", "--tcp", "9090", "--linger", "3000"}, args...))
	return fmt.Sprintf(`{name: echo, image: %q, args: %s, readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}}`,
		image, quoted)
}

// pod is one with the echo server. More fields of its spec may follow, in YAML's flow style, each with a comma before it.
func pod(namespace, name, more string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {namespace: %s, name: %s, labels: {app: %s}}
spec: {terminationGracePeriodSeconds: 5, containers: [%s]%s}`, namespace, name, name, echo(), more)
}

// deployment is one of the echo server with a Service of its name, HTTP on port 80 and TCP echo on 9090.
func deployment(namespace, name string, replicas int) string {
	return fmt.Sprintf(`apiVersion: apps/v1
kind: Deployment
metadata: {namespace: %[1]s, name: %[2]s}
spec:
  replicas: %[3]d
  selector: {matchLabels: {app: %[2]s}}
  strategy: {rollingUpdate: {maxUnavailable: 0, maxSurge: 1}}
  template:
    metadata: {labels: {app: %[2]s}}
    spec:
      terminationGracePeriodSeconds: 15
      topologySpreadConstraints:
        - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {app: %[2]s}}}
      containers: [%[4]s]
---
apiVersion: v1
kind: Service
metadata: {namespace: %[1]s, name: %[2]s}
spec: {selector: {app: %[2]s}, ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp, port: 9090}]}`,
		namespace, name, replicas, echo())
}

func ready(t *testing.T, namespace string, selector ...string) {
	t.Helper()
	if len(selector) == 0 {
		selector = []string{"--all"}
	}
	// Pods that nobody has made yet are no reason to wait for kubectl, and one that goes meanwhile is one for it to fail.
	eventually(t, "all pods are Ready", func() error {
		args := []string{"-n", namespace, "wait", "--for=condition=Ready", "pod", "--timeout=30s"}
		_, err := cluster("", "kubectl", append(args, selector...)...)
		return err
	})
}

// enrolled waits until the pods say that they are, or are not, in the mesh.
func enrolled(t *testing.T, namespace string, is bool, selector ...string) {
	t.Helper()
	status := map[bool]string{true: "True", false: "False"}[is]
	const jsonpath = `{range .items[*]}{.metadata.name}={.status.conditions[?(@.type=="culvert.dev/Enrolled")].status} {end}`
	eventually(t, "the pods' condition culvert.dev/Enrolled is "+status, func() error {
		output, err := cluster("", "kubectl", append([]string{"-n", namespace, "get", "pods", "-o", "jsonpath=" + jsonpath}, selector...)...)
		if err != nil {
			return err
		}
		pods := strings.Fields(output)
		for _, pod := range pods {
			// A pod that has nothing to do with the mesh has no condition.
			if !strings.HasSuffix(pod, "="+status) && (is || !strings.HasSuffix(pod, "=")) {
				return fmt.Errorf("%s", output)
			}
		}
		if len(pods) == 0 {
			return fmt.Errorf("no pods")
		}
		return nil
	})
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
		time.Sleep(300 * time.Millisecond)
	}
}

// answers are what a run of `culvert-echo get` saw.
type answers struct {
	Requests int            `json:"requests"`
	OK       int            `json:"ok"`
	Statuses map[string]int `json:"statuses"`
	Errors   map[string]int `json:"errors"`
	Pods     map[string]int `json:"pods"`
	Latency  struct {
		P50 float64 `json:"p50"`
		P99 float64 `json:"p99"`
		Max float64 `json:"max"`
	} `json:"latency_ms"`
}

func (a answers) String() string {
	return fmt.Sprintf("%d of %d requests succeeded, statuses %v, errors %v, pods %v", a.OK, a.Requests, a.Statuses, a.Errors, a.Pods)
}

func (a answers) failed() int { return a.Requests - a.OK }

// get calls URL from a pod; an error means that there was no client, not that requests failed.
func get(namespace, pod, url string, args ...string) (answers, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	words := append([]string{"-n", namespace, "exec", pod, "--", "culvert-echo", "get", url}, args...)
	command := exec.CommandContext(ctx, filepath.Join(clusterCommands, "kubectl"), words...)
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	// It fails when a request did, too.
	failure := command.Run()
	var seen answers
	if err := json.Unmarshal(stdout.Bytes(), &seen); err != nil {
		return seen, fmt.Errorf("%v: %s%s", failure, stderr.String(), stdout.String())
	}
	return seen, nil
}

func mustGet(t *testing.T, namespace, pod, url string, args ...string) answers {
	t.Helper()
	seen, err := get(namespace, pod, url, args...)
	if err != nil {
		t.Fatal(err)
	}
	return seen
}

// load is traffic that goes on in the background.
type load struct {
	seen answers
	err  error
	done sync.WaitGroup
}

// start begins requests that last for the given time.
func start(namespace, pod, url string, duration time.Duration, args ...string) *load {
	l := &load{}
	l.done.Add(1)
	go func() {
		defer l.done.Done()
		seconds := fmt.Sprint(int(duration.Seconds()))
		l.seen, l.err = get(namespace, pod, url, append([]string{"--count", "100000000", "--seconds", seconds}, args...)...)
	}()
	return l
}

func (l *load) wait(t *testing.T) answers {
	t.Helper()
	l.done.Wait()
	if l.err != nil {
		t.Fatal(l.err)
	}
	t.Log(l.seen)
	if l.seen.Requests == 0 {
		t.Fatal("there was no traffic")
	}
	return l.seen
}
