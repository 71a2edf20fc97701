// Package e2e tests the test cluster itself, as its users call it. It needs root.
package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"culvert.dev/tests/cluster/internal/keeper"
	"culvert.dev/tests/cluster/internal/layout"
)

// patience bounds every wait: a machine that is busy with other things is slow, and nothing here measures speed.
const patience = 5 * time.Minute

// buildPatience is for a machine that has built nothing yet.
const buildPatience = 45 * time.Minute

// cluster calls the commands of one checkout.
type cluster struct {
	layout layout.Layout
}

func newCluster(t *testing.T) cluster {
	t.Helper()
	l, err := layout.Find(filepath.Join("..", "..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() != 0 {
		t.Fatal("these tests need root")
	}
	lock, err := keeper.Acquire(l)
	if err != nil {
		t.Fatalf("a cluster of this checkout is up; tests/cluster/down first: %v", err)
	}
	if err := lock.Release(); err != nil {
		t.Fatal(err)
	}
	return cluster{layout: l}
}

func (c cluster) command(ctx context.Context, verb string, args ...string) *exec.Cmd {
	command := exec.CommandContext(ctx, c.layout.Source(verb), args...)
	// A command that is killed may leave children with its output open.
	command.WaitDelay = 10 * time.Second
	return command
}

// try runs a command and returns what it printed, on both channels.
func (c cluster) try(verb string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	output, err := c.command(ctx, verb, args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s %s: %w\n%s", verb, strings.Join(args, " "), err, output)
	}
	return strings.TrimSpace(string(output)), err
}

func (c cluster) must(t *testing.T, verb string, args ...string) string {
	t.Helper()
	output, err := c.try(verb, args...)
	if err != nil {
		t.Fatal(err)
	}
	return output
}

func (c cluster) build(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), buildPatience)
	defer cancel()
	if output, err := c.command(ctx, "build").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
}

func (c cluster) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	return c.must(t, "kubectl", args...)
}

// create creates objects and returns what the API server made of them.
func (c cluster) create(t *testing.T, manifest string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	command := c.command(ctx, "kubectl", append([]string{"create", "-f", "-"}, args...)...)
	command.Stdin = strings.NewReader(manifest)
	output, err := command.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	return string(output)
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
		time.Sleep(200 * time.Millisecond)
	}
}

// noProcesses is nil when no program of a cluster runs.
func (c cluster) noProcesses() error {
	executables, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		return err
	}
	for _, link := range executables {
		// A process may end while it is looked at.
		if target, err := os.Readlink(link); err == nil && strings.HasPrefix(target, c.layout.Bin("")) {
			return fmt.Errorf("%s still runs as %s", target, link)
		}
	}
	return nil
}

// leftovers is what of a cluster is still on the machine.
func (c cluster) leftovers() error {
	if err := c.noProcesses(); err != nil {
		return err
	}
	var left []string
	groups, err := filepath.Glob("/sys/fs/cgroup/*/" + c.layout.CgroupName())
	if err != nil {
		return err
	}
	left = append(left, groups...)
	if _, err := os.Stat("/sys/fs/cgroup/" + c.layout.CgroupName()); err == nil {
		left = append(left, "/sys/fs/cgroup/"+c.layout.CgroupName())
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	for _, line := range strings.Split(string(mounts), "\n") {
		if strings.Contains(line, c.layout.Root) {
			left = append(left, line)
		}
	}
	if _, err := os.Stat(c.layout.State()); err == nil {
		left = append(left, c.layout.State())
	}
	if len(left) > 0 {
		return fmt.Errorf("left over:\n%s", strings.Join(left, "\n"))
	}
	return nil
}
