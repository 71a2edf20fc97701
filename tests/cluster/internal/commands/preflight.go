package commands

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"culvert.dev/tests/cluster/internal/layout"
	"culvert.dev/tests/cluster/internal/node"
)

const (
	// memoryNeeded is what two nodes with a handful of pods and the builds take, in bytes.
	memoryNeeded = 2 << 30
	// diskNeeded is what a cluster's state takes, in bytes.
	diskNeeded = 2 << 30
	// diskForBuild is what modules, the build cache and programs take the first time, in bytes.
	diskForBuild = 10 << 30
)

// goNeeded is the least minor version of Go 1 that reads the modules' go.mod.
const goNeeded = 26

// needed is what a cluster runs besides what it builds, with the Debian package that has it.
var needed = []struct{ command, file, packages string }{
	{command: "nft", packages: "nftables"},
	{command: "iptables", packages: "iptables"},
	{command: "nsenter", packages: "util-linux"},
	{file: node.CNIPlugins + "/bridge", packages: "containernetworking-plugins"},
	{file: "/bin/busybox", packages: "busybox-static"},
}

// preflight finds everything that is missing before anything is begun.
func preflight(l layout.Layout) error {
	if err := requireRoot(); err != nil {
		return err
	}
	var missing []error
	var packages []string
	for _, n := range needed {
		if n.file != "" {
			if _, err := os.Stat(n.file); err == nil {
				continue
			}
		} else if lookPath(n.command) {
			continue
		}
		packages = append(packages, n.packages)
	}
	if len(packages) > 0 {
		missing = append(missing, fmt.Errorf("Debian packages are missing: apt-get install -y --no-install-recommends %s", strings.Join(packages, " ")))
	}
	return errors.Join(append(missing, requireGo(), requireKernel(), requireSpace(l))...)
}

func requireRoot() error {
	if os.Geteuid() != 0 {
		return errors.New("a cluster needs root, for namespaces with real network devices and control groups: run this with sudo")
	}
	return nil
}

var goVersion = regexp.MustCompile(`go1\.(\d+)`)

func requireGo() error {
	const remedy = "install Go 1.%d or later from https://go.dev/dl (Debian 12's golang-go is too old) and put it on root's PATH"
	output, err := exec.Command("go", "env", "GOVERSION").Output()
	if err != nil {
		return fmt.Errorf("there is no Go toolchain: "+remedy, goNeeded)
	}
	found := goVersion.FindSubmatch(output)
	if found == nil {
		return nil // A development version.
	}
	if minor, err := strconv.Atoi(string(found[1])); err == nil && minor < goNeeded {
		return fmt.Errorf("%s is too old: "+remedy, found[0], goNeeded)
	}
	return nil
}

func requireKernel() error {
	known, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return err
	}
	if !strings.Contains(string(known), "\toverlay\n") {
		return errors.New("the kernel has no overlay file system: modprobe overlay (CONFIG_OVERLAY_FS)")
	}
	if _, err := os.Stat("/proc/sys/net/bridge"); err != nil {
		return errors.New("the kernel does not show bridged packets to the packet filter, so that pods could not reach Services on their own node: modprobe br_netfilter")
	}
	return nil
}

func requireSpace(l layout.Layout) error {
	available, err := availableMemory()
	if err != nil {
		return err
	}
	if available < memoryNeeded {
		return fmt.Errorf("%d MiB of memory are available, and a cluster takes %d MiB: end something, or add memory", available>>20, memoryNeeded>>20)
	}
	wanted := uint64(diskNeeded)
	if _, err := os.Stat(l.Bin("kubernetes")); err != nil {
		wanted = diskForBuild
	}
	var disk unix.Statfs_t
	if err := unix.Statfs(l.Repository, &disk); err != nil {
		return err
	}
	if free := disk.Bavail * uint64(disk.Bsize); free < wanted {
		return fmt.Errorf("%d MiB are free on the disk of %s, and this takes %d MiB: free some, or `go clean -cache`", free>>20, l.Repository, wanted>>20)
	}
	return nil
}

var memAvailable = regexp.MustCompile(`(?m)^MemAvailable:\s+(\d+) kB`)

func availableMemory() (uint64, error) {
	content, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	found := memAvailable.FindSubmatch(content)
	if found == nil {
		return 0, errors.New("/proc/meminfo has no MemAvailable")
	}
	kibibytes, err := strconv.ParseUint(string(found[1]), 10, 64)
	return kibibytes << 10, err
}
