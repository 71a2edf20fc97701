package kubernetes

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Older bundles of the Gateway API, and the standard channel: Culvert follows them when they are put in the place of another while it
// runs, starts with them, and routes; `culvert check` names what each lacks.
func TestBundles(t *testing.T) {
	t.Cleanup(func() { bundle(t, "v1.6.1", "experimental") })
	for _, b := range []struct {
		version, channel string
		// What check says is not there without it, and what it does not say.
		lacks, has []string
	}{
		{"v1.2.1", "standard", []string{"XMesh", "TCPRoute"}, nil},
		{"v1.2.1", "experimental", []string{"XMesh"}, []string{"TCPRoute"}},
		{"v1.4.1", "standard", []string{"XMesh", "TCPRoute"}, []string{"BackendTLSPolicy"}},
		{"v1.4.1", "experimental", nil, []string{"XMesh", "TCPRoute"}},
		{"v1.6.1", "standard", []string{"XMesh"}, []string{"TCPRoute"}},
	} {
		t.Run(b.version+" "+b.channel, func(t *testing.T) {
			bundle(t, b.version, b.channel)
			shop(t, "bundle")
			apply(t, deployment("bundle", "cart-v2", 1))
			ready(t, "bundle")
			routed(t, 0, 1)
			// Those that start with it know nothing of what was there before.
			for _, name := range []string{"deployment/culvert-controller", "deployment/culvert-ca"} {
				kubectl(t, "-n", mesh, "rollout", "restart", name)
				kubectl(t, "-n", mesh, "rollout", "status", name, "--timeout="+patience.String())
			}
			routed(t, 1, 0)
			finding := lackOfBundle(t)
			for _, kind := range b.lacks {
				if !strings.Contains(finding, b.version+" "+b.channel) || !strings.Contains(finding, kind) {
					t.Errorf("check does not say that it lacks %s: %s", kind, finding)
				}
			}
			for _, kind := range b.has {
				if strings.Contains(finding, kind) {
					t.Errorf("check says that it lacks %s: %s", kind, finding)
				}
			}
		})
	}
}

func bundle(t *testing.T, version, channel string) {
	t.Helper()
	if output, err := exec.Command("../conformance/crds", version, channel).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
}

// routed writes the canary of namespace bundle and waits until requests go as it says.
func routed(t *testing.T, first, second int) {
	t.Helper()
	eventually(t, "the API server takes the route", func() error {
		_, err := cluster(canary("bundle", first, second), "kubectl", "apply", "-f", "-")
		return err
	})
	accepted(t, "bundle", "canary")
	eventually(t, "requests go as the route says", func() error {
		seen, err := get("bundle", "client", "http://cart/", "--count", "40", "--new-connection")
		if err != nil {
			return err
		}
		for name := range seen.Pods {
			if strings.HasPrefix(name, "cart-v2-") != (second > 0) {
				return fmt.Errorf("%v", seen)
			}
		}
		if seen.failed() > 0 {
			return fmt.Errorf("%v", seen)
		}
		return nil
	})
}

// lackOfBundle is what `culvert check` says of the bundle.
func lackOfBundle(t *testing.T) string {
	t.Helper()
	programs := os.Getenv("CULVERT_BIN_DIR")
	if programs == "" {
		programs = "../../target/release"
	}
	culvert, err := filepath.Abs(filepath.Join(programs, "culvert"))
	if err != nil {
		t.Fatal(err)
	}
	output, err := cluster("", "enter", culvert, "check", "--output", "json")
	if err != nil {
		t.Fatal(err)
	}
	var report struct {
		Findings []struct{ Code, What string }
	}
	if err := json.Unmarshal([]byte(output), &report); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	for _, finding := range report.Findings {
		if finding.Code == "CV623" {
			return finding.What
		}
	}
	return ""
}
