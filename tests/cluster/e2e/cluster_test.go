package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"culvert.dev/tests/cluster/internal/keeper"
)

// TestCluster takes a cluster through its whole life, in order.
func TestCluster(t *testing.T) {
	c := newCluster(t)
	c.build(t)
	t.Cleanup(func() { c.must(t, "down") })
	for _, step := range []struct {
		name string
		test func(*testing.T)
	}{
		{"an up that is killed leaves nothing", c.killedUp},
		{"an up that fails names the component and leaves nothing", c.failedUp},
		{"up", func(t *testing.T) { t.Log(c.must(t, "up", "--nodes", "2")) }},
		{"a second up says what to do", c.secondUp},
		{"pods run on both nodes and reach each other", c.podsAcrossNodes},
		{"a Service is balanced and has a name", c.serviceAndName},
		{"a Service is reached from the control plane's network", c.serviceFromControlPlane},
		{"pods and Services have IPv6 addresses where the kernel has them", c.dualStack},
		{"exec takes input", c.exec},
		{"logs", c.logs},
		{"port-forward", c.portForward},
		{"projected tokens are reviewed by audience", c.tokens},
		{"RBAC is on", c.rbac},
		{"a node's agent sees its pods' namespaces and installs a CNI plugin", c.agent},
		{"an image with shared libraries is loaded", c.loadImage},
		{"a node is stopped and started", c.nodePower},
		{"the API server is stopped and started", c.apiServerPower},
		{"down leaves nothing", c.downLeavesNothing},
		{"a keeper that is killed takes its cluster along", c.killedKeeper},
		{"a cluster of one node works", func(t *testing.T) { c.must(t, "up", "--nodes", "1"); c.downLeavesNothing(t) }},
		{"the documentation's commands work", c.documentation},
		{"without a cluster, commands say so", c.withoutCluster},
	} {
		if !t.Run(step.name, step.test) {
			t.Fatal("the steps after this one depend on it")
		}
	}
}

func (c cluster) killedUp(t *testing.T) {
	// Those of an earlier cluster would look as if this one had come that far.
	if err := os.RemoveAll(c.layout.Log()); err != nil {
		t.Fatal(err)
	}
	up := exec.Command(c.layout.Source("up"))
	up.Stdout, up.Stderr = io.Discard, io.Discard
	if err := up.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "etcd and kubelets run", func() error {
		for _, log := range []string{"etcd.log", "n2/kubelet.log"} {
			if _, err := os.Stat(c.layout.Log(log)); err != nil {
				return err
			}
		}
		return nil
	})
	if err := up.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := up.Wait(); err == nil {
		t.Fatal("up had ended before it was killed")
	}
	eventually(t, "everything is gone", c.leftovers)
}

// failedUp puts a program that fails in the place of one of the cluster's.
func (c cluster) failedUp(t *testing.T) {
	for _, component := range []string{"etcd", "kubelet", "kube-scheduler"} {
		program := c.layout.Bin(component)
		if err := os.Remove(program); err != nil {
			t.Fatal(err)
		}
		err := os.WriteFile(program, []byte("#!/bin/sh\necho out of order >&2\nexit 3\n"), 0o755)
		output, upError := c.try("up")
		if err := errors.Join(err, os.Remove(program), os.Symlink("kubernetes", program)); err != nil {
			t.Fatal(err)
		}
		if upError == nil {
			t.Fatalf("it came up without %s", component)
		}
		for _, want := range []string{component + " ended", "exit status 3", component + ".log", "out of order"} {
			if !strings.Contains(output, want) {
				t.Errorf("%s: no %q in: %s", component, want, output)
			}
		}
		if err := c.leftovers(); err != nil {
			t.Error(err)
		}
	}
}

// killedKeeper kills what cleans up; the next down does it.
func (c cluster) killedKeeper(t *testing.T) {
	c.must(t, "up")
	_, err := keeper.Acquire(c.layout)
	held := keeper.HeldError{}
	if !errors.As(err, &held) {
		t.Fatal(err)
	}
	if err := syscall.Kill(held.Pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "everything that runs has ended", c.noProcesses)
	c.downLeavesNothing(t)
}

func (c cluster) secondUp(t *testing.T) {
	if output, err := c.try("up"); err == nil || !strings.Contains(output, "tests/cluster/down") {
		t.Fatalf("%v\n%s", err, output)
	}
}

func (c cluster) nodePower(t *testing.T) {
	before := c.kubectl(t, "get", "pod", "web-n2", "-o", "jsonpath={.status.containerStatuses[0].containerID}")
	c.must(t, "node", "stop", "n2")
	if output, err := c.try("node", "stop", "n2"); err == nil || !strings.Contains(output, "does not run") {
		t.Fatalf("%v %q", err, output)
	}
	c.kubectl(t, "wait", "--for=condition=Ready=Unknown", "node/n2", "--timeout=240s")
	c.must(t, "node", "start", "n2")
	c.kubectl(t, "wait", "--for=condition=Ready", "node/n2", "--timeout=240s")
	eventually(t, "web-n2 has a new container", func() error {
		after, err := c.try("kubectl", "get", "pod", "web-n2", "-o", "jsonpath={.status.containerStatuses[0].containerID}")
		if err == nil && (after == before || after == "") {
			return fmt.Errorf("its container is %q", after)
		}
		return err
	})
	c.awaitPods(t)
	eventually(t, "the Service answers", func() error {
		_, err := c.try("kubectl", "exec", "web-n2", "--", "probe", "get", "http://web/")
		return err
	})
}

func (c cluster) apiServerPower(t *testing.T) {
	c.must(t, "component", "stop", "kube-apiserver")
	if output, err := c.try("kubectl", "get", "nodes", "--request-timeout=5s"); err == nil {
		t.Fatal(output)
	}
	c.must(t, "component", "start", "kube-apiserver")
	c.kubectl(t, "get", "nodes")
	if output, err := c.try("component", "stop", "kube-nothing"); err == nil || !strings.Contains(output, "kube-scheduler") {
		t.Fatalf("the message does not name what there is: %q", output)
	}
}

func (c cluster) downLeavesNothing(t *testing.T) {
	c.must(t, "down")
	if err := c.leftovers(); err != nil {
		t.Fatal(err)
	}
}

// commandsOfPage are the blocks of a page that say that they are commands.
var commandsOfPage = regexp.MustCompile("(?ms)^```sh\n(.*?)^```$")

// documentation runs the page's commands in their order, which begins with up and ends with down.
func (c cluster) documentation(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(c.layout.Repository, "docs", "test-cluster.md"))
	if err != nil {
		t.Fatal(err)
	}
	blocks := commandsOfPage.FindAllSubmatch(page, -1)
	if len(blocks) < 4 {
		t.Fatalf("the page has only %d blocks of commands", len(blocks))
	}
	for _, block := range blocks {
		ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
		shell := exec.CommandContext(ctx, "bash", "-euc", string(block[1]))
		shell.Dir = c.layout.Repository
		shell.WaitDelay = 10 * time.Second
		output, err := shell.CombinedOutput()
		cancel()
		if err != nil {
			t.Fatalf("%v\n%s\n%s", err, block[1], output)
		}
	}
	if err := c.leftovers(); err != nil {
		t.Fatal(err)
	}
}

func (c cluster) withoutCluster(t *testing.T) {
	for _, args := range [][]string{{"kubectl", "get", "nodes"}, {"node", "stop", "n1"}, {"load-image", "x.tar"}, {"enter", "true"}} {
		if output, err := c.try(args[0], args[1:]...); err == nil || !strings.Contains(output, "tests/cluster/up") {
			t.Errorf("%v: %v %q", args, err, output)
		}
	}
	c.must(t, "down")
}
