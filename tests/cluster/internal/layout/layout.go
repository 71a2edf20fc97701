// Package layout says where a cluster keeps its files and which addresses it has.
package layout

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
)

// Addresses of every cluster. Nothing of them reaches the machine's own network namespace, so two clusters may share them.
const (
	ControlPlane      = "10.123.0.1"
	ControlPort       = 6443
	KubernetesService = "10.96.0.1"
	DNSService        = "10.96.0.10"
	DNSDomain         = "cluster.local"
)

// HasIPv6 is whether this kernel speaks it: then every cluster has both families, IPv4 first.
var HasIPv6 = sync.OnceValue(func() bool {
	_, err := os.Stat("/proc/net/if_inet6")
	return err == nil
})

// families are the given ones that this kernel speaks.
func families[T any](v4, v6 T) []T {
	if HasIPv6() {
		return []T{v4, v6}
	}
	return []T{v4}
}

// ControlAddresses are those of the control plane on the nodes' network.
func ControlAddresses() []string { return families(ControlPlane+"/24", "fd00:10:123::1/64") }

// PodNetworks hold the pods of all nodes.
func PodNetworks() []string { return families("10.244.0.0/16", "fd00:10:244::/56") }

// ServiceNetworks hold the addresses of Services.
func ServiceNetworks() []string { return families("10.96.0.0/16", "fd00:10:96::/112") }

// LoadBalancers may be written into a Service's status; the control plane's namespace reaches them through a node.
func LoadBalancers() []string { return families("10.97.0.0/16", "fd00:10:97::/112") }

// MaxNodes keeps every address within its network; the machine gives out sooner.
const MaxNodes = 20

// Node is one node of a cluster.
type Node struct {
	Name string
	// Addresses are its own with the length of the network that all nodes are on, by family, as all below.
	Addresses []netip.Prefix
	Pods      []netip.Prefix
}

// Address is the one by which the control plane calls the node.
func (n Node) Address() netip.Addr { return n.Addresses[0].Addr() }

// Nodes are n1, n2, ... with an address and a range of pod addresses each.
func Nodes(count int) []Node {
	nodes := make([]Node, 0, count)
	for i := 1; i <= count; i++ {
		nodes = append(nodes, Node{
			Name: fmt.Sprintf("n%d", i),
			Addresses: families(
				netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 123, 0, byte(10 + i)}), 24),
				netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 3: 0x10, 4: 0x01, 5: 0x23, 15: byte(0x10 + i)}), 64)),
			Pods: families(
				netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(i), 0}), 24),
				netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 3: 0x10, 4: 0x02, 5: 0x44, 7: byte(i)}), 64)),
		})
	}
	return nodes
}

// Layout is the folders of one checkout's cluster; every path in it is absolute.
type Layout struct {
	// Repository is the checkout.
	Repository string
	// Root is what belongs to the cluster alone: target/cluster.
	Root string
}

// Find is the layout of the checkout at repository.
func Find(repository string) (Layout, error) {
	absolute, err := filepath.Abs(repository)
	if err != nil {
		return Layout{}, err
	}
	if _, err := os.Stat(filepath.Join(absolute, "tests", "cluster", "programs.json")); err != nil {
		return Layout{}, fmt.Errorf("%s is no checkout with a test cluster: %w", absolute, err)
	}
	return Layout{Repository: absolute, Root: filepath.Join(absolute, "target", "cluster")}, nil
}

// Source is a file of tests/cluster.
func (l Layout) Source(parts ...string) string {
	return filepath.Join(append([]string{l.Repository, "tests", "cluster"}, parts...)...)
}

// Bin is a built program; the folder outlives every cluster.
func (l Layout) Bin(name string) string { return filepath.Join(l.Root, "bin", name) }

// Images is an archive of images; the folder outlives every cluster.
func (l Layout) Images(name string) string { return filepath.Join(l.Root, "images", name) }

// State is a file of the running cluster; the folder goes with it.
func (l Layout) State(parts ...string) string {
	return filepath.Join(append([]string{l.Root, "state"}, parts...)...)
}

// Log is a log; the folder stays until the next cluster comes up.
func (l Layout) Log(parts ...string) string {
	return filepath.Join(append([]string{l.Root, "log"}, parts...)...)
}

// Lock is held by whoever brings a cluster up, keeps it or takes it down.
func (l Layout) Lock() string { return filepath.Join(l.Root, "lock") }

// Certificates is the folder of keys, certificates and kubeconfigs.
func (l Layout) Certificates() string { return l.State("pki") }

// AdminConfig is the kubeconfig of cluster-admin.
func (l Layout) AdminConfig() string { return filepath.Join(l.Certificates(), "admin.conf") }

// CgroupName is the name below which all control groups of this checkout's cluster are; unique on the machine.
func (l Layout) CgroupName() string {
	sum := sha256.Sum256([]byte(l.Root))
	return "culvert-cluster-" + hex.EncodeToString(sum[:4])
}
