package node

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"culvert.dev/tests/cluster/internal/layout"
)

// own are the folders that a node has to itself at their usual places; what is in them is the node's state.
var own = []string{"/var/lib/kubelet", "/var/lib/containerd", "/var/lib/cni", "/var/log"}

// layered show the machine's files, but what the node's programs and pods write there stays with the node: CNI
// configuration and plugins, resolv.conf, and the mount points of the folders above, which the machine need not have.
var layered = []string{"/etc", "/opt", "/var"}

// mountAll gives the calling process's own mount namespace the look of a machine of its own.
func mountAll(l layout.Layout, name string) error {
	if err := mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return err
	}
	if err := mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	if err := mountSysfs(l.State(name, "cgroup")); err != nil {
		return err
	}
	for _, dir := range layered {
		if err := layer(dir, l.State(name, "layers", filepath.Base(dir))); err != nil {
			return err
		}
	}
	for _, dir := range own {
		source := l.State(name, dir)
		if err := bind(source, dir); err != nil {
			return err
		}
	}
	if err := mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return err
	}
	for _, dir := range []string{"/run/netns", "/run/lock"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	// Pods ask for mounts that propagate, which only a shared tree offers.
	return mount("", "/", "", unix.MS_SHARED|unix.MS_REC, "")
}

// mountSysfs replaces /sys by one that shows this network namespace's interfaces, and carries the control groups over.
func mountSysfs(aside string) error {
	if err := os.MkdirAll(aside, 0o755); err != nil {
		return err
	}
	const cgroups = "/sys/fs/cgroup"
	if err := mount(cgroups, aside, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	if err := mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	if err := mount(aside, cgroups, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	return unix.Unmount(aside, unix.MNT_DETACH)
}

func layer(dir, state string) error {
	upper, work := filepath.Join(state, "upper"), filepath.Join(state, "work")
	for _, d := range []string{upper, work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	return mount("overlay", dir, "overlay", 0, "lowerdir="+dir+",upperdir="+upper+",workdir="+work)
}

func bind(source, target string) error {
	for _, dir := range []string{source, target} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	return mount(source, target, "", unix.MS_BIND, "")
}

func mount(source, target, kind string, flags uintptr, options string) error {
	if err := unix.Mount(source, target, kind, flags, options); err != nil {
		return fmt.Errorf("mount %s (%s) on %s: %w", source, kind, target, err)
	}
	return nil
}
