// Command cluster is a real Kubernetes on one Linux machine: see docs/test-cluster.md. Users call it through the scripts
// beside this file; keeper, supervisor and node-init are the roles that it plays inside a cluster.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"strconv"

	"culvert.dev/tests/cluster/internal/commands"
	"culvert.dev/tests/cluster/internal/keeper"
	"culvert.dev/tests/cluster/internal/layout"
	"culvert.dev/tests/cluster/internal/node"
	"culvert.dev/tests/cluster/internal/process"
	"culvert.dev/tests/cluster/internal/supervisor"
)

var verbs = map[string]func(layout.Layout, []string) error{
	"build":      commands.Build,
	"up":         commands.Up,
	"down":       commands.Down,
	"kubectl":    commands.Kubectl,
	"enter":      commands.Enter,
	"load-image": commands.LoadImage,
	"image":      commands.Image,
	"node":       commands.Node,
	"component":  commands.Component,
	"keeper":     runKeeper,
	"supervisor": runSupervisor,
	"node-init":  runNode,
}

func main() {
	// What a parent's death ends, it ends with the thread that started it: the first, which lives as long as the process.
	runtime.LockOSThread()
	if err := run(os.Args[1:]); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "tests/cluster:", err)
		}
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 3 || args[0] != "--repository" || verbs[args[2]] == nil {
		return errors.New("called through the scripts up, down, kubectl, enter, load-image, image, node, component and build")
	}
	l, err := layout.Find(args[1])
	if err != nil {
		return err
	}
	return verbs[args[2]](l, args[3:])
}

func runKeeper(l layout.Layout, args []string) error {
	count, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	return keeper.Run(l, count)
}

func runSupervisor(l layout.Layout, args []string) error {
	count, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	return supervisor.Run(l, count, process.Inherited(3, "progress"), process.Inherited(4, "commit"))
}

func runNode(l layout.Layout, args []string) error {
	count, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	nodes := layout.Nodes(count)
	for _, n := range nodes {
		if n.Name == args[1] {
			return node.Init(l, n, nodes)
		}
	}
	return fmt.Errorf("a cluster of %d nodes has none named %q", count, args[1])
}
