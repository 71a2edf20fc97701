package node

import (
	"embed"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/template"

	"culvert.dev/tests/cluster/internal/image"
	"culvert.dev/tests/cluster/internal/layout"
)

//go:embed files
var files embed.FS

// CNIPlugins is where Debian's package containernetworking-plugins puts them.
const CNIPlugins = "/usr/lib/cni"

// settings are what the templates of a node's configuration speak of.
type settings struct {
	layout.Node
	Cgroup       string
	Certificates string
	PauseImage   string
	Runc         string
	DNSService   string
	DNSDomain    string
	PodNetworks  string
	OpenFiles    uint64
}

func newSettings(l layout.Layout, n layout.Node, openFiles uint64) settings {
	return settings{
		Node:         n,
		Cgroup:       l.CgroupName() + "/" + n.Name,
		Certificates: l.Certificates(),
		PauseImage:   image.Pause,
		Runc:         l.Bin("runc"),
		DNSService:   layout.DNSService,
		DNSDomain:    layout.DNSDomain,
		PodNetworks:  strings.Join(layout.PodNetworks(), ","),
		OpenFiles:    openFiles,
	}
}

// configure writes everything that the node's programs read, at the places where a machine has it.
func configure(l layout.Layout, s settings) error {
	for file, target := range map[string]string{
		"containerd.toml": l.State(s.Name, "containerd.toml"),
		"kubelet.yaml":    l.State(s.Name, "kubelet.yaml"),
		"kube-proxy.yaml": l.State(s.Name, "kube-proxy.yaml"),
		"cni.conflist":    "/etc/cni/net.d/10-pods.conflist",
	} {
		if err := render(file, target, s); err != nil {
			return err
		}
	}
	// No name server: pods' names are resolved inside the cluster, and there is nothing outside it.
	if err := replace("/etc/resolv.conf", "options ndots:0\n"); err != nil {
		return err
	}
	if err := replace("/etc/hosts", "127.0.0.1 localhost "+s.Name+"\n"); err != nil {
		return err
	}
	return installPlugins()
}

func render(file, target string, s settings) error {
	parsed, err := template.ParseFS(files, "files/"+file)
	if err != nil {
		return err
	}
	var text strings.Builder
	if err := parsed.Execute(&text, s); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	// A node that comes back finds the configuration that others have changed meanwhile (a CNI chain) as they left it.
	if _, err := os.Stat(target); err == nil {
		return nil
	}
	return os.WriteFile(target, []byte(text.String()), 0o644)
}

// replace writes a file anew, whatever it was (resolv.conf is a symbolic link on many machines).
func replace(path, content string) error {
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return err
	}
	return os.WriteFile(path, []byte(content), 0o644)
}

// installPlugins copies the CNI plugins to where the configuration says, so that a pod may add its own there.
func installPlugins() error {
	const target = "/opt/cni/bin"
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	entries, err := os.ReadDir(CNIPlugins)
	if err != nil {
		return fmt.Errorf("no CNI plugins: %w; as root: apt-get install -y containernetworking-plugins", err)
	}
	for _, entry := range entries {
		destination := filepath.Join(target, entry.Name())
		if _, err := os.Stat(destination); err == nil {
			continue
		}
		content, err := os.ReadFile(filepath.Join(CNIPlugins, entry.Name()))
		if err != nil {
			return err
		}
		if err := os.WriteFile(destination, content, 0o755); err != nil {
			return err
		}
	}
	return nil
}
