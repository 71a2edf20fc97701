package supervisor

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"syscall"
	"text/template"
	"time"

	"culvert.dev/tests/cluster/internal/api"
	"culvert.dev/tests/cluster/internal/cgroup"
	"culvert.dev/tests/cluster/internal/fabric"
	"culvert.dev/tests/cluster/internal/image"
	"culvert.dev/tests/cluster/internal/layout"
	"culvert.dev/tests/cluster/internal/pki"
	"culvert.dev/tests/cluster/internal/process"
)

//go:embed files/addons.yaml
var addons string

// kubectlPatience bounds one call of kubectl.
const kubectlPatience = 2 * time.Minute

func (s *supervisor) bringUp(ctx context.Context) error {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if err := pki.Write(s.layout.Certificates(), s.nodes); err != nil {
		return fmt.Errorf("certificates: %w", err)
	}
	client, err := api.New(s.layout.Certificates())
	if err != nil {
		return fmt.Errorf("certificates: %w", err)
	}
	s.api = client
	if err := fabric.ControlPlane(s.nodes); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	for _, name := range []string{etcd, apiServer} {
		if err := s.startComponent(name); err != nil {
			return err
		}
	}
	for _, n := range s.nodes {
		if err := s.startMachine(n); err != nil {
			return err
		}
	}
	if err := s.awaitAPI(ctx); err != nil {
		return err
	}
	s.step("the API server is ready")
	// Before it is, they would end at once.
	for _, name := range []string{controllerManager, scheduler} {
		if err := s.startComponent(name); err != nil {
			return err
		}
	}
	if err := s.installAddons(ctx); err != nil {
		return err
	}
	for _, n := range s.nodes {
		if err := s.awaitMachine(ctx, n); err != nil {
			return err
		}
	}
	s.step("%d nodes are Ready", len(s.nodes))
	return s.awaitDNS(ctx)
}

func (s *supervisor) controlPlane() []*process.Daemon {
	var all []*process.Daemon
	for _, d := range s.components {
		all = append(all, d)
	}
	return all
}

func (s *supervisor) awaitAPI(ctx context.Context) error {
	return process.Wait(ctx, "the API server", startOfAPI, s.controlPlane(), s.api.Ready)
}

func (s *supervisor) installAddons(ctx context.Context) error {
	parsed, err := template.New("addons").Parse(addons)
	if err != nil {
		return err
	}
	var manifests bytes.Buffer
	values := map[string]string{"DNSService": layout.DNSService, "DNSDomain": layout.DNSDomain, "Image": image.CoreDNS}
	if err := parsed.Execute(&manifests, values); err != nil {
		return err
	}
	// The API server makes this namespace itself, a moment after it is ready.
	err = process.Wait(ctx, "namespace kube-system", startOfAPI, s.controlPlane(), func(ctx context.Context) error {
		return s.api.Exists(ctx, "/api/v1/namespaces/kube-system")
	})
	if err != nil {
		return err
	}
	return s.kubectl(ctx, manifests.String(), "apply", "--server-side", "-f", "-")
}

func (s *supervisor) awaitDNS(ctx context.Context) error {
	err := process.Wait(ctx, "CoreDNS", startOfDNS, s.controlPlane(), func(ctx context.Context) error {
		return s.api.DeploymentAvailable(ctx, "kube-system", "coredns")
	})
	if err != nil {
		return fmt.Errorf("%w\n%s", err, process.Tail(s.layout.Log(s.nodes[0].Name, "kubelet.log")))
	}
	return nil
}

func (s *supervisor) kubectl(ctx context.Context, input string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, kubectlPatience)
	defer cancel()
	command := exec.CommandContext(ctx, s.layout.Bin("kubectl"), args...)
	command.Env = append(os.Environ(), "KUBECONFIG="+s.layout.AdminConfig(), "KUBECACHEDIR="+s.layout.State("kubectl-cache"))
	command.Stdin = bytes.NewBufferString(input)
	if output, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("kubectl %v: %w\n%s", args, err, output)
	}
	return nil
}

func (s *supervisor) cgroup(n layout.Node) string { return s.layout.CgroupName() + "/" + n.Name }

// startMachine starts a node and connects it; the mutex is held.
func (s *supervisor) startMachine(n layout.Node) error {
	if running := s.machines[n.Name]; running != nil && running.Failure() == nil {
		return fmt.Errorf("node %s runs already", n.Name)
	}
	// Groups of pods that were there before would make kubelet wait for their containers.
	if err := cgroup.Empty(s.cgroup(n)); err != nil {
		return err
	}
	if err := cgroup.Create(s.cgroup(n)); err != nil {
		return err
	}
	command := exec.Command("/proc/self/exe", NodeArguments(s.layout, n.Name, len(s.nodes))...)
	command.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID |
		syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC | syscall.CLONE_NEWNET}
	d, err := process.Start("node "+n.Name, s.layout.Log(n.Name, "node.log"), command)
	if err != nil {
		return err
	}
	s.machines[n.Name] = d
	return fabric.Attach(n, d.Pid())
}

// awaitMachine waits until kubelet serves and the node is Ready.
func (s *supervisor) awaitMachine(ctx context.Context, n layout.Node) error {
	daemons := append(s.controlPlane(), s.machines[n.Name])
	err := process.Wait(ctx, "node "+n.Name, startOfNodes, daemons, func(ctx context.Context) error {
		// A node that was stopped a moment ago is still taken for Ready.
		if err := listens(n.Address().String() + ":10250"); err != nil {
			return err
		}
		return s.api.NodeReady(ctx, n.Name)
	})
	if err != nil {
		return fmt.Errorf("%w\n%s", err, process.Tail(s.layout.Log(n.Name, "kubelet.log")))
	}
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{"podCIDR": n.Pods[0], "podCIDRs": n.Pods}})
	if err != nil {
		return err
	}
	return s.kubectl(ctx, "", "patch", "node", n.Name, "--patch", string(patch))
}

func listens(address string) error {
	connection, err := net.DialTimeout("tcp", address, 2*time.Second)
	if err != nil {
		return err
	}
	return connection.Close()
}

// stopMachine takes a node's power away; the mutex is held.
func (s *supervisor) stopMachine(n layout.Node) error {
	running := s.machines[n.Name]
	if running == nil || running.Failure() != nil {
		return fmt.Errorf("node %s does not run", n.Name)
	}
	running.Kill()
	return cgroup.Empty(s.cgroup(n))
}
