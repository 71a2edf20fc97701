package commands

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"culvert.dev/tests/cluster/internal/image"
	"culvert.dev/tests/cluster/internal/keeper"
	"culvert.dev/tests/cluster/internal/layout"
	"culvert.dev/tests/cluster/internal/supervisor"
)

// Kubectl becomes the cluster's kubectl, in the control plane's network namespace and as cluster-admin.
func Kubectl(l layout.Layout, args []string) error {
	if err := enterControlPlane(l); err != nil {
		return err
	}
	return become(l, l.Bin("kubectl"), args)
}

// Enter becomes a command in the network namespace of the control plane, which reaches nodes, pods and Services; or,
// with --node, in all namespaces of a node.
func Enter(l layout.Layout, args []string) error {
	flags := flag.NewFlagSet("enter", flag.ContinueOnError)
	name := flags.String("node", "", "the node; else the control plane's network")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() == 0 {
		return errors.New("usage: tests/cluster/enter [--node NAME] COMMAND [ARGUMENT...]")
	}
	if *name != "" {
		inside, err := inNode(l, *name)
		if err != nil {
			return err
		}
		return become(l, inside[0], append(inside[1:], flags.Args()...))
	}
	if err := enterControlPlane(l); err != nil {
		return err
	}
	program, err := exec.LookPath(flags.Arg(0))
	if err != nil {
		return err
	}
	return become(l, program, flags.Args()[1:])
}

func enterControlPlane(l layout.Layout) error {
	if err := requireRoot(); err != nil {
		return err
	}
	pid, err := keeper.SupervisorPid(l)
	if err != nil {
		return err
	}
	namespace, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return err
	}
	defer namespace.Close()
	// This thread is the one that becomes the command: main keeps to its first.
	return unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNET)
}

// become replaces this process.
func become(l layout.Layout, program string, args []string) error {
	environment := os.Environ()
	if os.Getenv("KUBECONFIG") == "" {
		environment = append(environment, "KUBECONFIG="+l.AdminConfig())
	}
	// What the client remembers of one cluster is wrong for the next at the same address.
	environment = append(environment, "KUBECACHEDIR="+l.State("kubectl-cache"))
	return fmt.Errorf("%s: %w", program, unix.Exec(program, append([]string{filepath.Base(program)}, args...), environment))
}

// inNode is the beginning of a command that runs in a node.
func inNode(l layout.Layout, name string) ([]string, error) {
	if err := requireRoot(); err != nil {
		return nil, err
	}
	machines, err := runningNodes(l)
	if err != nil {
		return nil, err
	}
	pid, running := machines[name]
	if !running {
		return nil, fmt.Errorf("no node %q runs", name)
	}
	nsenter, err := exec.LookPath("nsenter")
	if err != nil {
		return nil, err
	}
	return []string{nsenter, "--target", strconv.Itoa(pid), "--mount", "--uts", "--ipc", "--net", "--pid", "--"}, nil
}

// runningNodes are the processes 1 of the nodes by name, as this machine numbers them.
func runningNodes(l layout.Layout) (map[string]int, error) {
	parent, err := keeper.SupervisorPid(l)
	if err != nil {
		return nil, err
	}
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", parent))
	if err != nil {
		return nil, err
	}
	nodes := map[string]int{}
	for _, list := range lists {
		children, err := os.ReadFile(list)
		if err != nil {
			continue // A thread that has ended.
		}
		for _, child := range strings.Fields(string(children)) {
			line, err := os.ReadFile("/proc/" + child + "/cmdline")
			if err != nil {
				continue // A process that has ended.
			}
			args := strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")
			if len(args) < 3 || args[len(args)-3] != "node-init" {
				continue
			}
			pid, err := strconv.Atoi(child)
			if err != nil {
				return nil, err
			}
			nodes[args[len(args)-1]] = pid
		}
	}
	return nodes, nil
}

// LoadImage imports archives, and images described by recipes, into all running nodes.
func LoadImage(l layout.Layout, args []string) error {
	if len(args) == 0 {
		return errors.New("usage: tests/cluster/load-image ARCHIVE.tar|RECIPE.json...")
	}
	nodes, err := runningNodes(l)
	if err != nil {
		return err
	}
	for _, arg := range args {
		archive := arg
		if strings.HasSuffix(arg, ".json") {
			archive = l.State(filepath.Base(arg) + ".tar")
			defer os.Remove(archive)
			if err := writeRecipes(l, arg, archive); err != nil {
				return err
			}
		}
		for name := range nodes {
			if err := importInto(l, name, archive); err != nil {
				return fmt.Errorf("%s into node %s: %w", arg, name, err)
			}
		}
	}
	return nil
}

// Image writes the images of a recipe to an archive, for any container runtime to load.
func Image(l layout.Layout, args []string) error {
	if len(args) != 2 {
		return errors.New("usage: tests/cluster/image RECIPE.json ARCHIVE.tar")
	}
	return writeRecipes(l, args[0], args[1])
}

func writeRecipes(l layout.Layout, recipe, archive string) error {
	images, err := image.ReadRecipes(recipe, image.Places{Repository: l.Repository, Cluster: l.Bin("")})
	if err != nil {
		return err
	}
	return image.Write(archive, images)
}

func importInto(l layout.Layout, node, archive string) error {
	file, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer file.Close()
	inside, err := inNode(l, node)
	if err != nil {
		return err
	}
	args := append(inside[1:], l.Bin("ctr"), "-n", "k8s.io", "images", "import", "--snapshotter", "overlayfs", "-")
	command := exec.Command(inside[0], args...)
	command.Stdin = file
	if output, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, output)
	}
	return nil
}

// Node stops or starts a node as its power switch would.
func Node(l layout.Layout, args []string) error { return ask(l, "node", args) }

// Component stops or starts a program of the control plane.
func Component(l layout.Layout, args []string) error { return ask(l, "component", args) }

func ask(l layout.Layout, kind string, args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("usage: tests/cluster/%s stop|start NAME", kind)
	}
	if err := requireRoot(); err != nil {
		return err
	}
	pid, err := keeper.SupervisorPid(l)
	if err != nil {
		return err
	}
	return supervisor.Ask(pid, supervisor.Request{Verb: args[0], Kind: kind, Name: args[1]})
}
