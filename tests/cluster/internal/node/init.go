// Package node is what runs as process 1 of a node: it makes namespaces look like a machine, starts the container
// runtime, kubelet and kube-proxy, and keeps them running.
package node

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"culvert.dev/tests/cluster/internal/fabric"
	"culvert.dev/tests/cluster/internal/layout"
	"culvert.dev/tests/cluster/internal/process"
)

const (
	runtimeSocket = "/run/containerd/containerd.sock"
	// startup bounds the container runtime's start.
	startup = 60 * time.Second
	// young is the age below which a daemon that ends was never up: the node then fails instead of starting it again.
	young = 5 * time.Second
	// pauseBeforeRestart keeps a daemon that cannot run from using up a core.
	pauseBeforeRestart = time.Second
	// openFiles is how many files a node's processes may have open, if the machine allows it.
	openFiles = 1 << 20
)

// Init runs a node and does not return unless the node fails.
func Init(l layout.Layout, n layout.Node, all []layout.Node) error {
	if err := unix.Sethostname([]byte(n.Name)); err != nil {
		return err
	}
	if err := mountAll(l, n.Name); err != nil {
		return err
	}
	if err := fabric.Node(n, all); err != nil {
		return err
	}
	limit, err := raiseOpenFiles()
	if err != nil {
		return err
	}
	if err := configure(l, newSettings(l, n, limit)); err != nil {
		return err
	}
	machine := &machine{layout: l, node: n, running: map[int]*daemon{}}
	if err := machine.startRuntime(); err != nil {
		return err
	}
	for _, d := range []*daemon{
		{name: "kubelet", args: []string{
			"--config=" + l.State(n.Name, "kubelet.yaml"),
			"--kubeconfig=" + filepath.Join(l.Certificates(), "kubelet-"+n.Name+".conf"),
			"--hostname-override=" + n.Name, "--node-ip=" + strings.Join(addresses(n), ","), "--root-dir=/var/lib/kubelet",
			"--node-labels=topology.kubernetes.io/zone=zone-" + n.Name, "-v=2",
		}},
		{name: "kube-proxy", args: []string{
			"--config=" + l.State(n.Name, "kube-proxy.yaml"), "--hostname-override=" + n.Name, "-v=2",
		}},
	} {
		if err := machine.start(d); err != nil {
			return err
		}
	}
	return machine.keep()
}

func addresses(n layout.Node) []string {
	var all []string
	for _, address := range n.Addresses {
		all = append(all, address.Addr().String())
	}
	return all
}

// raiseOpenFiles raises the limit for this process and all below it, and returns it.
func raiseOpenFiles() (uint64, error) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0, err
	}
	limit.Cur = min(limit.Max, openFiles)
	return limit.Cur, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
}

type daemon struct {
	name    string
	args    []string
	started time.Time
}

type machine struct {
	layout  layout.Layout
	node    layout.Node
	running map[int]*daemon
}

// startRuntime starts containerd and gives it the images without which no pod starts.
func (m *machine) startRuntime() error {
	containerd := &daemon{name: "containerd", args: []string{"-c", m.layout.State(m.node.Name, "containerd.toml")}}
	if err := m.start(containerd); err != nil {
		return err
	}
	deadline := time.Now().Add(startup)
	for {
		connection, err := net.Dial("unix", runtimeSocket)
		if err == nil {
			connection.Close()
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("containerd does not listen after %s: %w\n%s", startup, err, process.Tail(m.log(containerd)))
		}
		if ended := m.reap(unix.WNOHANG); ended != nil {
			return ended
		}
		time.Sleep(20 * time.Millisecond)
	}
	// Nothing else is reaped yet, so that this may wait for its own child.
	importing := exec.Command(m.layout.Bin("ctr"), "-n", "k8s.io", "images", "import", "--snapshotter", "overlayfs",
		m.layout.Images("base.tar"))
	importing.Env = m.environment()
	if output, err := importing.CombinedOutput(); err != nil {
		return fmt.Errorf("the base images cannot be imported: %w\n%s", err, output)
	}
	return nil
}

func (m *machine) environment() []string {
	// containerd finds its shim by name.
	return []string{"PATH=" + filepath.Dir(m.layout.Bin("runc")) + ":/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"}
}

func (m *machine) log(d *daemon) string { return m.layout.Log(m.node.Name, d.name+".log") }

func (m *machine) start(d *daemon) error {
	log, err := os.OpenFile(m.log(d), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	process, err := os.StartProcess(m.layout.Bin(d.name), append([]string{d.name}, d.args...),
		&os.ProcAttr{Env: m.environment(), Files: []*os.File{nil, log, log}})
	if err != nil {
		return fmt.Errorf("%s does not start: %w", d.name, err)
	}
	d.started = time.Now()
	m.running[process.Pid] = d
	// Its end is seen by reap, as is that of every process whose parent is gone.
	return process.Release()
}

// keep reaps for ever, and starts daemons again that ended.
func (m *machine) keep() error {
	for {
		if err := m.reap(0); err != nil {
			return err
		}
	}
}

// reap waits for one child. A daemon that had been up is started again; the error is one that never was.
func (m *machine) reap(options int) error {
	var status unix.WaitStatus
	pid, err := unix.Wait4(-1, &status, options, nil)
	if err == unix.EINTR || pid == 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("waiting for children: %w", err)
	}
	d := m.running[pid]
	if d == nil {
		return nil
	}
	delete(m.running, pid)
	how := fmt.Sprintf("exit status %d", status.ExitStatus())
	if status.Signaled() {
		how = "signal " + status.Signal().String()
	}
	if time.Since(d.started) < young {
		return fmt.Errorf("%s ended at once (%s)\n%s", d.name, how, process.Tail(m.log(d)))
	}
	fmt.Printf("%s %s ended (%s); starting it again\n", time.Now().Format(time.RFC3339), d.name, how)
	time.Sleep(pauseBeforeRestart)
	return m.start(d)
}
