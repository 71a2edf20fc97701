package chart

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// everything switches on what is off by default, and sets what is empty.
var everything = []string{
	"--set", "platform=k3s,monitoring.enabled=true,nodeProxy.admin=0.0.0.0:15000,resourceQuota=true,crds.keep=true",
	"--set", "networkPolicy.enabled=true,networkPolicy.adminFrom[0].ipBlock.cidr=10.9.0.0/16",
	"--set", "ca.providedSecret=mesh-ca,apiServer.host=10.0.0.1,apiServer.port=6443,nodeProxy.workers=2",
	"--set", "controller.podCidrs={10.1.0.0/16,fd00::/48},controller.serviceCidrs={10.2.0.0/16}",
	"--set", "imagePullSecrets[0].name=registry,commonLabels.team=mesh,commonAnnotations.owner=us,image.repository=registry.example/culvert/",
	"--set", "nodeProxy.podLabels.a=b,controller.podAnnotations.c=d,ca.extraArgs={--min-lifetime=1m},nodeProxy.seLinuxOptions.type=spc_t",
}

func TestTheChartIsClean(t *testing.T) {
	for _, values := range [][]string{nil, everything} {
		if out, err := helm(t, append([]string{"lint", "--strict", chart}, values...)...); err != nil {
			t.Errorf("%v: %v%s", values, err, out)
		}
	}
}

func TestValuesThatMeanNothingAreRefusedByName(t *testing.T) {
	for values, want := range map[string]string{
		"nodeproxy.drainSeconds=5":                "nodeproxy",
		"platform=openshift":                      "platform",
		"controller.replicas=0":                   "controller/replicas",
		"controller.leaseSeconds=1":               "controller/leaseSeconds",
		"nodeProxy.admin=localhost":               "nodeProxy/admin",
		"nodeProxy.drainSeconds=10m":              "nodeProxy/drainSeconds",
		"nodeProxy.stateDir=culvert":              "nodeProxy/stateDir",
		"nodeProxy.extraArgs={workers=4}":         "nodeProxy/extraArgs",
		"cni.unknownNamespaces=maybe":             "cni/unknownNamespaces",
		"cni.binDir=opt/cni":                      "cni/binDir",
		"ca.maxLifetime=1 day":                    "ca/maxLifetime",
		"controller.podCidrs={ten}":               "controller/podCidrs",
		"trustDomain=Example.com":                 "trustDomain",
		"image.pullPolicy=Sometimes":              "image/pullPolicy",
		"networkPolicy.adminFrom={monitoring}":    "networkPolicy/adminFrom",
		"nodeProxy.successorSeconds=-1":           "nodeProxy/successorSeconds",
		"uninstall.drainSeconds=600":              "uninstall/drainSeconds",
		"ca.podDisruptionBudget.maxUnavailable=0": "ca/podDisruptionBudget/maxUnavailable",
	} {
		_, err := helm(t, "template", "culvert", chart, "--set", values)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", values, err)
		}
	}
}

// The programs know their namespace by its name.
func TestEveryObjectIsLabelledAndInTheMeshsNamespace(t *testing.T) {
	clusterWide := regexp.MustCompile("^(Cluster|CustomResourceDefinition|Namespace)")
	for _, elsewhere := range []string{namespace, "default"} {
		text, err := helm(t, append([]string{"template", "culvert", chart, "--namespace", elsewhere}, everything...)...)
		if err != nil {
			t.Fatal(err)
		}
		objects := documents(t, text)
		for _, one := range objects {
			if one.text("metadata", "labels", "app.kubernetes.io/name") != "culvert" ||
				one.text("metadata", "labels", "app.kubernetes.io/managed-by") != "Helm" ||
				!strings.HasPrefix(one.text("metadata", "labels", "helm.sh/chart"), "culvert-") {
				t.Errorf("%s: %v", one.name(), one.at("metadata", "labels"))
			}
			if in := one.text("metadata", "namespace"); !clusterWide.MatchString(one.name()) && in != namespace {
				t.Errorf("%s is in %q", one.name(), in)
			}
		}
		made := slices.ContainsFunc(objects, func(one object) bool { return one.name() == "Namespace "+namespace })
		if made != (elsewhere != namespace) {
			t.Errorf("release in %s: namespace made: %v", elsewhere, made)
		}
	}
}

func TestContainersHaveNoMoreRightsThanTheyNeed(t *testing.T) {
	named := []any{"NET_ADMIN", "SYS_ADMIN", "SYS_PTRACE", "NET_BIND_SERVICE", "DAC_OVERRIDE"}
	for _, one := range rendered(t) {
		for _, container := range one.containers() {
			where := one.name() + " " + container.text("name")
			if container.at("securityContext", "readOnlyRootFilesystem") != true || container.at("securityContext", "allowPrivilegeEscalation") != false {
				t.Errorf("%s: %v", where, container.at("securityContext"))
			}
			if drop := container.list("securityContext", "capabilities", "drop"); !slices.Equal(drop, []any{"ALL"}) {
				t.Errorf("%s drops %v", where, drop)
			}
			if one.text("spec", "template", "spec", "securityContext", "seccompProfile", "type") != "RuntimeDefault" {
				t.Errorf("%s has no seccomp profile", where)
			}
			added := container.list("securityContext", "capabilities", "add")
			onNode := one.text("kind") == "DaemonSet"
			if onNode != (len(added) > 0) || onNode && !slices.Equal(added, named) {
				t.Errorf("%s has %v", where, added)
			}
			if !onNode && one.at("spec", "template", "spec", "securityContext", "runAsNonRoot") != true {
				t.Errorf("%s runs as root", where)
			}
		}
	}
}

// Without peers nobody reaches the admin ports; node proxies reach the others from wherever they are.
func TestNetworkPoliciesCloseAdminPorts(t *testing.T) {
	for _, peers := range []string{"", "10.9.0.0/16"} {
		values := []string{"--set", "networkPolicy.enabled=true"}
		if peers != "" {
			values = append(values, "--set", "networkPolicy.adminFrom[0].ipBlock.cidr="+peers)
		}
		objects := rendered(t, values...)
		for name, port := range map[string]int{"culvert-controller": 15010, "culvert-ca": 15012} {
			open := map[any]string{}
			for _, rule := range find(t, objects, "NetworkPolicy "+name).list("spec", "ingress") {
				from := "everybody"
				for _, peer := range object(rule.(map[string]any)).list("from") {
					from = object(peer.(map[string]any)).text("ipBlock", "cidr")
				}
				for _, one := range object(rule.(map[string]any)).list("ports") {
					open[object(one.(map[string]any)).at("port")] = from
				}
			}
			if open[port] != "everybody" || open[15000] != peers {
				t.Errorf("%s with peers %q: %v", name, peers, open)
			}
		}
	}
}

// Two pods of the DaemonSet are on one node while it is upgraded: the scheduler would not put two with the same port there.
func TestNodeProxiesNameNoPorts(t *testing.T) {
	proxy := find(t, rendered(t), "DaemonSet culvert-node-proxy")
	for _, container := range proxy.containers() {
		if ports := container.list("ports"); ports != nil {
			t.Errorf("%v", ports)
		}
	}
	if grace := proxy.at("spec", "template", "spec", "terminationGracePeriodSeconds"); grace != 630 {
		t.Errorf("%v seconds to drain for 600", grace)
	}
}

func TestPlatformsDifferInTheirPaths(t *testing.T) {
	paths := func(arguments ...string) map[string]string {
		found := map[string]string{}
		for _, volume := range find(t, rendered(t, arguments...), "DaemonSet culvert-node-proxy").list("spec", "template", "spec", "volumes") {
			one := object(volume.(map[string]any))
			found[one.text("name")] = one.text("hostPath", "path")
		}
		return found
	}
	for platform, want := range map[string][3]string{
		"kubernetes": {"/etc/cni/net.d", "/opt/cni/bin", "/var/run/netns"},
		"kind":       {"/etc/cni/net.d", "/opt/cni/bin", "/var/run/netns"},
		"k3s":        {"/var/lib/rancher/k3s/agent/etc/cni/net.d", "/var/lib/rancher/k3s/data/cni", "/var/run/netns"},
		"k3d":        {"/var/lib/rancher/k3s/agent/etc/cni/net.d", "/bin", "/var/run/netns"},
		"microk8s":   {"/var/snap/microk8s/current/args/cni-network", "/var/snap/microk8s/current/opt/cni/bin", "/var/run/netns"},
		"gke":        {"/etc/cni/net.d", "/home/kubernetes/bin", "/var/run/netns"},
		"minikube":   {"/etc/cni/net.d", "/opt/cni/bin", "/var/run/docker/netns"},
	} {
		found := paths("--set", "platform="+platform)
		if got := [3]string{found["cni-conf"], found["cni-bin"], found["netns"]}; got != want {
			t.Errorf("%s: %v", platform, got)
		}
	}
	if got := paths("--set", "platform=k3s,cni.binDir=/elsewhere"); got["cni-bin"] != "/elsewhere" || got["netns"] != "/var/run/netns" {
		t.Errorf("a path that is given: %v", got)
	}
	proxy := find(t, rendered(t, "--set", "platform=k3s"), "DaemonSet culvert-node-proxy")
	if flags := proxy.containers()[0].list("args"); !slices.Contains(flags, any("--cni-host-conf-dir=/var/lib/rancher/k3s/agent/etc/cni/net.d")) {
		t.Errorf("%v", flags)
	}
}

// Another version of a program than the chart is for may have lost a flag.
func TestProgramsKnowTheirFlags(t *testing.T) {
	programs := os.Getenv("CULVERT_BIN_DIR")
	if programs == "" {
		programs = filepath.Join("..", "..", "target", "release")
	}
	entrypoint := map[string]string{}
	for _, one := range recipes(t) {
		image, _, _ := strings.Cut(filepath.Base(one.Names[0]), ":")
		entrypoint[image] = filepath.Base(one.Entrypoint[0])
	}
	checked := 0
	for _, one := range rendered(t, everything...) {
		for _, container := range one.containers() {
			image, _, _ := strings.Cut(filepath.Base(container.text("image")), ":")
			arguments := container.list("args")
			help, err := exec.Command(filepath.Join(programs, entrypoint[image]), arguments[0].(string), "--help").CombinedOutput()
			if err != nil {
				t.Fatalf("%s %v: %v %s", entrypoint[image], arguments[0], err, help)
			}
			for _, argument := range arguments[1:] {
				flag, _, _ := strings.Cut(argument.(string), "=")
				if !regexp.MustCompile(`(?m)^\s+` + regexp.QuoteMeta(flag) + `\b`).Match(help) {
					t.Errorf("%s %v has no %s", entrypoint[image], arguments[0], flag)
				}
				checked++
			}
		}
	}
	if checked < 20 {
		t.Errorf("only %d flags were looked at", checked)
	}
}

func TestOneVersionEverywhere(t *testing.T) {
	version := regexp.MustCompile(`(?m)^version = "(.*)"$`).FindStringSubmatch(read(t, "Cargo.toml"))[1]
	for _, line := range []string{"version: " + version, "appVersion: " + version} {
		if !strings.Contains(read(t, "deploy/helm/culvert/Chart.yaml"), "\n"+line+"\n") {
			t.Errorf("Chart.yaml has no line %q", line)
		}
	}
	images := map[string]bool{}
	for _, one := range recipes(t) {
		images[one.Names[0]] = true
		if !strings.HasSuffix(one.Names[0], ":"+version) {
			t.Errorf("%s is not of version %s", one.Names[0], version)
		}
	}
	for _, one := range rendered(t) {
		for _, container := range one.containers() {
			if !images[container.text("image")] {
				t.Errorf("%s: nothing makes %s", one.name(), container.text("image"))
			}
		}
	}
}
