package kubernetes

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// page is docs/install.md, whose commands are run as they stand there.
const page = "../../docs/install.md"

// commands are the lines of the page's n-th block of commands.
func commands(t *testing.T, n int) []string {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	blocks := strings.Split(string(text), "```sh\n")
	if len(blocks) <= n+1 {
		t.Fatalf("%s has %d blocks of commands", page, len(blocks)-1)
	}
	block, _, _ := strings.Cut(blocks[n+1], "```")
	return strings.Split(strings.TrimSpace(block), "\n")
}

// tools is a folder with what the page's commands call: those of the test cluster stand in for the user's own. Nothing but the
// addresses of cluster, images and CRDs differs.
func tools(t *testing.T) string {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	for name, script := range map[string]string{
		"kubectl": `case "$*" in *https://github.com/kubernetes-sigs/gateway-api/*) exec "$root/tests/conformance/crds" ;; esac
exec "$root/tests/cluster/kubectl" "$@"`,
		"helm": `exec "$root/tests/cluster/enter" "$root/target/cluster/bin/helm" "$@"`,
		"kind": `[ "$1 $2" = "load image-archive" ] || exit 2
exec "$root/tests/cluster/load-image" "$3"`,
	} {
		text := fmt.Sprintf("#!/bin/bash\nroot=%s\n%s\n", root, script)
		if err := os.WriteFile(filepath.Join(folder, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return folder
}

// shell runs a line of the page in the repository and gives what it prints.
func shell(t *testing.T, tools, line string) string {
	t.Helper()
	// A release build may be among them.
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
	defer cancel()
	command := exec.CommandContext(ctx, "bash", "-c", line)
	command.Dir = "../.."
	command.Env = append(os.Environ(), "PATH="+tools+":"+os.Getenv("PATH"))
	command.WaitDelay = 10 * time.Second
	output, err := command.CombinedOutput()
	if err != nil {
		evidence(t, mesh)
		t.Fatalf("%s: %v\n%s", line, err, output)
	}
	return string(output)
}

// ours are all objects of the cluster that are Culvert's, or that its programs made.
func ours(t *testing.T) []string {
	t.Helper()
	kinds := strings.Fields(kubectl(t, "api-resources", "--verbs=list", "--output=name"))
	kinds = slices.DeleteFunc(kinds, func(kind string) bool { return strings.HasPrefix(kind, "events") || strings.Contains(kind, "metrics") })
	var found []string
	for _, line := range strings.Split(kubectl(t, "get", strings.Join(kinds, ","), "--all-namespaces", "--ignore-not-found", "--output=json"), "\x00") {
		var list struct {
			Items []struct {
				Kind     string
				Metadata struct {
					Name, Namespace string
					Labels          map[string]string
				}
			}
		}
		if err := json.Unmarshal([]byte(line), &list); err != nil {
			t.Fatal(err)
		}
		for _, one := range list.Items {
			// What every namespace has, and what the test itself made.
			everywhere := one.Metadata.Name == "kube-root-ca.crt" || one.Metadata.Name == "default" || one.Kind == "Namespace"
			here := one.Metadata.Namespace == mesh || strings.Contains(one.Metadata.Name, "culvert") || one.Metadata.Labels["app.kubernetes.io/name"] == "culvert"
			released := one.Kind == "Node" && one.Metadata.Labels["culvert.dev/mesh"] != ""
			if here && !everywhere || released {
				found = append(found, fmt.Sprintf("%s %s/%s", one.Kind, one.Metadata.Namespace, one.Metadata.Name))
			}
		}
	}
	return found
}

// leftovers are files and rules of Culvert on a node.
func leftovers(t *testing.T, node string) string {
	t.Helper()
	const script = `
find /etc/cni/net.d /opt/cni/bin -name '*culvert*'
find /var/lib/culvert /run/culvert -mindepth 1 2>/dev/null
for netns in /run/netns/cni-*; do
  [ -e "$netns" ] || continue
  nsenter --net="$netns" nft list tables | grep -i culvert && echo "in $netns"
  nsenter --net="$netns" ip rule | grep -c fwmark | grep -vx 0 && echo "ip rules in $netns"
done
true`
	return kubectlNode(t, node, "bash", "-c", script)
}

// The page from its first line to its last: installed, a canary, upgraded, rolled back, uninstalled without a trace; a pod of an
// enrolled namespace starts afterwards as if there had never been a mesh. Then it is installed again, for other tests.
func TestInstallPage(t *testing.T) {
	tools := tools(t)
	t.Cleanup(func() {
		cluster("", "kubectl", "delete", "namespace", "shop", "--ignore-not-found", "--wait")
		if output, err := exec.Command("../conformance/install").CombinedOutput(); err != nil {
			t.Errorf("installing again: %v\n%s", err, output)
		}
	})
	uninstall := commands(t, 3)
	for _, line := range uninstall {
		shell(t, tools, line)
	}
	clean(t)

	install := commands(t, 0)
	if len(install) > 6 {
		t.Errorf("%d commands", len(install))
	}
	for _, line := range install {
		shell(t, tools, line)
	}
	canaryShown(t, tools)
	for _, line := range commands(t, 2) {
		shell(t, tools, line)
	}
	canaryShown(t, tools)

	load := start("shop", "deploy/web", "http://cart/", 40*time.Second, "--new-connection")
	for _, line := range uninstall {
		shell(t, tools, line)
	}
	t.Logf("requests during uninstall: %v", load.wait(t))
	clean(t)
	kubectl(t, "--namespace", "shop", "delete", "pod", "--all", "--wait")
	ready(t, "shop")
}

// canaryShown runs the page's commands that show it.
func canaryShown(t *testing.T, tools string) {
	t.Helper()
	lines := commands(t, 1)
	accepted(t, "shop", "cart")
	eventually(t, "a tenth of the requests goes to the canary, and all pods are in the mesh", func() error {
		shell(t, tools, lines[0])
		printed := shell(t, tools, lines[1])
		var report struct {
			OK   int
			Pods map[string]int
		}
		if err := json.Unmarshal([]byte(printed[strings.Index(printed, "{"):]), &report); err != nil {
			return fmt.Errorf("%w: %s", err, printed)
		}
		second := 0
		for pod, count := range report.Pods {
			if strings.HasPrefix(pod, "cart-canary-") {
				second += count
			}
		}
		// The choice by weight has low variance; which part of a hundred it is at is not known.
		if report.OK != 100 || second < 8 || second > 12 {
			return fmt.Errorf("%s", printed)
		}
		if shown := shell(t, tools, lines[2]); strings.Count(shown, "True") != 4 {
			return fmt.Errorf("%s", shown)
		}
		return nil
	})
}

// clean says that nothing of Culvert is left on the cluster.
func clean(t *testing.T) {
	t.Helper()
	eventually(t, "nothing of Culvert is left", func() error {
		if left := ours(t); len(left) > 0 {
			return fmt.Errorf("objects: %s", strings.Join(left, ", "))
		}
		for _, node := range []string{"n1", "n2"} {
			if left := leftovers(t, node); strings.TrimSpace(left) != "" {
				return fmt.Errorf("%s: %s", node, left)
			}
		}
		return nil
	})
}
