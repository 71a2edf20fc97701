package kubernetes

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// What a large cluster is here: Services with pods and routes of each, on nodes that nobody plays.
const manyServices, ofEach, manyNodes = 500, 10, 50

// Memory and processor time of controller and node proxy with 5,000 pods and 5,000 routes. A figure for the manual, not a limit, but
// for one that says when something is kept that nobody needs.
func TestMemory(t *testing.T) {
	before := usage(t)
	t.Cleanup(func() {
		cluster("", "kubectl", "delete", "nodes", "-l", "culvert.test/fake", "--ignore-not-found")
		cluster("", "kubectl", "delete", "namespace", "many", "--ignore-not-found", "--wait")
	})
	address := kubectl(t, "config", "view", "--minify", "--output=jsonpath={.clusters[0].cluster.server}")
	if output, err := inside("populate", address); err != nil {
		t.Fatalf("%v: %s", err, output)
	} else {
		t.Log(output)
	}
	eventually(t, "every node proxy has all routes, and every pod its condition", func() error {
		if output, err := inside("settled", address); err != nil {
			return fmt.Errorf("%v: %s", err, output)
		}
		return nil
	})
	// Nothing is written any more; what an allocator keeps of the start it may give back.
	time.Sleep(60 * time.Second)
	settled := usage(t)
	const interval = 30 * time.Second
	time.Sleep(interval)
	for name, now := range usage(t) {
		busy := (now.cpu - settled[name].cpu).Seconds() / interval.Seconds() * 100
		t.Logf("%s: %d MiB resident, at most %d; %d MiB without; processor time %.1f s for the start, then %.1f %%",
			name, now.resident, now.most, before[name].resident, (settled[name].cpu - before[name].cpu).Seconds(), busy)
		if now.resident > 1024 {
			t.Errorf("%s has %d MiB", name, now.resident)
		}
	}
}

// used is what a process uses; memory in MiB.
type used struct {
	resident, most int
	cpu            time.Duration
}

// usage of controllers and node proxies, by node and name.
func usage(t *testing.T) map[string]used {
	t.Helper()
	const script = `for p in /proc/[0-9]*; do case "$(cat $p/comm 2>/dev/null)" in culvert-node-pr*|culvert-control*)
echo $(cat $p/comm) $(sed -n 's/VmRSS:\s*\([0-9]*\).*/\1/p;s/VmHWM:\s*\([0-9]*\).*/\1/p' $p/status) $(cut -d' ' -f14,15 $p/stat);; esac; done`
	all := map[string]used{}
	for _, node := range []string{"n1", "n2"} {
		for _, line := range strings.Split(kubectlNode(t, node, "sh", "-c", script), "\n") {
			words := strings.Fields(line)
			if len(words) != 5 {
				t.Fatalf("%s: %q", node, line)
			}
			var numbers [4]int
			for i := range numbers {
				numbers[i], _ = strconv.Atoi(words[i+1])
			}
			// The kernel counts hundredths of a second. The peak comes first.
			all[node+" "+words[0]] = used{numbers[1] >> 10, numbers[0] >> 10, time.Duration(numbers[2]+numbers[3]) * 10 * time.Millisecond}
		}
	}
	return all
}

// apiClient talks to the API server as cluster-admin.
type apiClient struct {
	http    http.Client
	address string
}

func newAPIClient(address string) (*apiClient, error) {
	pki := filepath.Join("..", "..", "target", "cluster", "state", "pki")
	pair, err := tls.LoadX509KeyPair(filepath.Join(pki, "admin.crt"), filepath.Join(pki, "admin.key"))
	if err != nil {
		return nil, err
	}
	authority, err := os.ReadFile(filepath.Join(pki, "ca.crt"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(authority)
	transport := &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}}}
	return &apiClient{http.Client{Transport: transport, Timeout: time.Minute}, address}, nil
}

func (c *apiClient) call(method, path string, body any) ([]byte, error) {
	encoded, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	request, err := http.NewRequest(method, c.address+path, bytes.NewReader(encoded))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/json")
	if method == http.MethodPatch {
		request.Header.Set("Content-Type", "application/merge-patch+json")
	}
	answer, err := c.http.Do(request)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	content, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode >= 300 {
		err = fmt.Errorf("%s %s: %s %s", method, path, answer.Status, content)
	}
	return content, err
}

type fields = map[string]any

// populate makes the objects of a large cluster.
func populate(c *apiClient) error {
	began := time.Now()
	named := func(name string, more fields) fields {
		meta := fields{"name": name, "labels": fields{"culvert.test/fake": "true", "culvert.dev/mesh": "enabled"}}
		more["metadata"] = meta
		return more
	}
	if _, err := c.call("POST", "/api/v1/namespaces", named("many", fields{})); err != nil {
		return err
	}
	jobs := make(chan func() error)
	failures := make(chan error, 1)
	var workers sync.WaitGroup
	for range 32 {
		workers.Go(func() {
			for job := range jobs {
				if err := job(); err != nil {
					select {
					case failures <- err:
					default:
					}
				}
			}
		})
	}
	for n := range manyNodes {
		jobs <- func() error {
			meta := named(fmt.Sprintf("fake-%d", n), fields{"spec": fields{"podCIDR": fmt.Sprintf("10.200.%d.0/24", n)}})
			meta["metadata"].(fields)["labels"] = fields{"culvert.test/fake": "true"}
			_, err := c.call("POST", "/api/v1/nodes", meta)
			return err
		}
	}
	for service := range manyServices {
		name := fmt.Sprintf("svc-%d", service)
		jobs <- func() error {
			_, err := c.call("POST", "/api/v1/namespaces/many/services", named(name, fields{
				"spec": fields{"selector": fields{"app": name}, "ports": []fields{{"name": "http", "port": 80, "targetPort": 8080}}}}))
			return err
		}
		for n := range ofEach {
			jobs <- func() error { return manyPod(c, name, service*ofEach+n) }
			jobs <- func() error {
				rule := fields{"matches": []fields{{"path": fields{"type": "PathPrefix", "value": fmt.Sprintf("/part/%d", n)},
					"headers": []fields{{"name": "x-version", "value": fmt.Sprint(n)}}}},
					"backendRefs": []fields{{"name": name, "port": 80, "weight": 9}, {"name": fmt.Sprintf("svc-%d", (service+1)%manyServices), "port": 80}}}
				_, err := c.call("POST", "/apis/gateway.networking.k8s.io/v1/namespaces/many/httproutes", named(fmt.Sprintf("%s-%d", name, n),
					fields{"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "spec": fields{
						"parentRefs": []fields{{"group": "", "kind": "Service", "name": name, "port": 80}}, "rules": []fields{rule}}}))
				return err
			}
		}
	}
	close(jobs)
	workers.Wait()
	select {
	case err := <-failures:
		return err
	default:
		fmt.Printf("made within %.0f s", time.Since(began).Seconds())
		return nil
	}
}

// manyPod makes one that looks like those of a cluster, and says that it runs.
func manyPod(c *apiClient, app string, number int) error {
	var env []fields
	for n := range 20 {
		env = append(env, fields{"name": fmt.Sprintf("VARIABLE_%d", n), "value": "some value of an ordinary length"})
	}
	name := fmt.Sprintf("%s-5c89b578b-%d", app, number)
	node := number % manyNodes
	pod := fields{
		"metadata": fields{"name": name, "labels": fields{"app": app, "pod-template-hash": "5c89b578b"}, "annotations": fields{"example.test/config": strings.Repeat("0", 64)}},
		"spec": fields{"nodeName": fmt.Sprintf("fake-%d", node), "terminationGracePeriodSeconds": 0, "tolerations": []fields{{"operator": "Exists"}},
			"containers": []fields{{"name": "app", "image": "registry.example.com/shop/cart:1.2.3", "env": env, "ports": []fields{{"containerPort": 8080}},
				"readinessProbe": fields{"httpGet": fields{"path": "/healthz", "port": 8080}}, "livenessProbe": fields{"tcpSocket": fields{"port": 8080}}}}},
	}
	if _, err := c.call("POST", "/api/v1/namespaces/many/pods", pod); err != nil {
		return err
	}
	address := fmt.Sprintf("10.200.%d.%d", node, 1+number/manyNodes)
	now := time.Now().UTC().Format(time.RFC3339)
	status := fields{"status": fields{"phase": "Running", "podIP": address, "podIPs": []fields{{"ip": address}}, "startTime": now,
		"conditions": []fields{{"type": "Ready", "status": "True", "lastTransitionTime": now}, {"type": "PodScheduled", "status": "True", "lastTransitionTime": now}}}}
	_, err := c.call("PATCH", "/api/v1/namespaces/many/pods/"+name+"/status", status)
	return err
}

// allSettled is nil when Culvert has written a status of every route and pod.
func allSettled(c *apiClient) error {
	for path, what := range map[string]string{
		"/apis/gateway.networking.k8s.io/v1/namespaces/many/httproutes": "Accepted", "/api/v1/namespaces/many/pods": "culvert.dev/Enrolled",
	} {
		all, err := c.call("GET", path, nil)
		if err != nil {
			return err
		}
		// Once in an object's status, once in its managed fields.
		if found := bytes.Count(all, []byte(`"type":"`+what+`"`)); found < manyServices*ofEach {
			return fmt.Errorf("%d of %s", found, path)
		}
	}
	return nil
}
