// Package fabric is the network between the control plane and the nodes: a bridge in the control plane's network
// namespace and a veth pair to each node's. There is no default route anywhere, so nothing leaves the machine.
package fabric

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"culvert.dev/tests/cluster/internal/layout"
)

const (
	bridge = "nodes"
	// Uplink is a node's interface.
	Uplink = "eth0"
	// appearance bounds a node's wait for its uplink.
	appearance = 30 * time.Second
)

// ControlPlane sets the calling process's namespace up, with routes to all nodes' pods, and to Services by way of the
// first node.
func ControlPlane(nodes []layout.Node) error {
	if err := up("lo"); err != nil {
		return err
	}
	link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridge}}
	if err := netlink.LinkAdd(link); err != nil {
		return explain("bridge", err)
	}
	for _, cidr := range layout.ControlAddresses() {
		if err := address(bridge, cidr); err != nil {
			return err
		}
	}
	if err := up(bridge); err != nil {
		return err
	}
	for _, node := range nodes {
		if err := routes(node.Pods, node); err != nil {
			return err
		}
	}
	for _, networks := range [][]string{layout.ServiceNetworks(), layout.LoadBalancers()} {
		if err := routes(networks, nodes[0]); err != nil {
			return err
		}
	}
	return nil
}

// Attach connects the namespace of the process pid, a node's first, with the bridge.
func Attach(node layout.Node, pid int) error {
	master, err := netlink.LinkByName(bridge)
	if err != nil {
		return err
	}
	attributes := netlink.LinkAttrs{Name: "to-" + node.Name, MasterIndex: master.Attrs().Index}
	pair := &netlink.Veth{LinkAttrs: attributes, PeerName: Uplink, PeerNamespace: netlink.NsPid(pid)}
	// The end of a node that was just killed goes with its namespace, which the kernel takes down in its own time.
	deadline := time.Now().Add(appearance)
	for {
		err := netlink.LinkAdd(pair)
		if err == nil {
			return up(attributes.Name)
		}
		if !errors.Is(err, os.ErrExist) || time.Now().After(deadline) {
			return explain("veth", err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// Node sets the calling process's namespace up as a node's, as soon as it has been attached.
func Node(node layout.Node, all []layout.Node) error {
	if err := up("lo"); err != nil {
		return err
	}
	deadline := time.Now().Add(appearance)
	for {
		if _, err := netlink.LinkByName(Uplink); err == nil {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("no %s after %s", Uplink, appearance)
		}
		time.Sleep(20 * time.Millisecond)
	}
	for _, cidr := range node.Addresses {
		if err := address(Uplink, cidr.String()); err != nil {
			return err
		}
	}
	if err := up(Uplink); err != nil {
		return err
	}
	for _, other := range all {
		if other.Name == node.Name {
			continue
		}
		if err := routes(other.Pods, other); err != nil {
			return err
		}
	}
	// A program of the node finds Services as pods do: kube-proxy rewrites the address, but only of what has a route.
	for _, network := range slices.Concat(layout.ServiceNetworks(), layout.LoadBalancers()) {
		if err := onLink(network, Uplink); err != nil {
			return err
		}
	}
	return forwarding()
}

// forwarding lets a node route for its pods. Replies to Services may come by another way than requests went, and those
// between pods of one node pass the packet filter though they are only bridged.
func forwarding() error {
	settings := map[string]string{
		"ipv4/ip_forward":                "1",
		"ipv4/conf/all/rp_filter":        "0",
		"ipv4/conf/default/rp_filter":    "0",
		"bridge/bridge-nf-call-iptables": "1",
	}
	if layout.HasIPv6() {
		settings["ipv6/conf/all/forwarding"] = "1"
		settings["bridge/bridge-nf-call-ip6tables"] = "1"
	}
	for file, value := range settings {
		if err := os.WriteFile("/proc/sys/net/"+file, []byte(value), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func up(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	return nil
}

func address(name, cidr string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	parsed, err := netlink.ParseAddr(cidr)
	if err != nil {
		return err
	}
	// Nobody else has it, and looking for somebody would take a second during which it cannot be used (IPv6).
	parsed.Flags = unix.IFA_F_NODAD
	if err := netlink.AddrAdd(link, parsed); err != nil {
		return fmt.Errorf("address %s on %s: %w", cidr, name, err)
	}
	return nil
}

// routes sends what is for the networks, one of each family, to the node by its address of that family.
func routes[T any](networks []T, by layout.Node) error {
	for n, network := range networks {
		_, destination, err := net.ParseCIDR(fmt.Sprint(network))
		if err != nil {
			return err
		}
		if err := netlink.RouteAdd(&netlink.Route{Dst: destination, Gw: by.Addresses[n].Addr().AsSlice()}); err != nil {
			return fmt.Errorf("route to %v by %s: %w", network, by.Name, err)
		}
	}
	return nil
}

func onLink(network, name string) error {
	_, destination, err := net.ParseCIDR(network)
	if err != nil {
		return err
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	if err := netlink.RouteAdd(&netlink.Route{Dst: destination, LinkIndex: link.Attrs().Index}); err != nil {
		return fmt.Errorf("route to %s on %s: %w", network, name, err)
	}
	return nil
}

func explain(kind string, err error) error {
	if errors.Is(err, syscall.EOPNOTSUPP) {
		return fmt.Errorf("this kernel has no links of type %s (CONFIG_%s; modprobe %s): %w", kind,
			map[string]string{"veth": "VETH", "bridge": "BRIDGE"}[kind], kind, err)
	}
	return fmt.Errorf("link of type %s: %w", kind, err)
}
