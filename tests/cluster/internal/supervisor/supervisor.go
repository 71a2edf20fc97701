// Package supervisor is process 1 of a cluster: the control plane runs in its network namespace, nodes are its children,
// and when it ends, the kernel ends everything below it.
package supervisor

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"culvert.dev/tests/cluster/internal/api"
	"culvert.dev/tests/cluster/internal/layout"
	"culvert.dev/tests/cluster/internal/process"
)

// News is what a supervisor tells whoever brings the cluster up; one of the fields is set.
type News struct {
	Step  string `json:"step,omitempty"`
	Error string `json:"error,omitempty"`
	Ready bool   `json:"ready,omitempty"`
}

// Namespaces are those that a supervisor is started in.
const Namespaces = unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC

type supervisor struct {
	layout layout.Layout
	nodes  []layout.Node
	api    *api.Client
	// news is written until the cluster is ready.
	news *json.Encoder

	mutex sync.Mutex
	// components are the control plane's programs, machines the nodes, by name; a stopped one stays until it is started.
	components map[string]*process.Daemon
	machines   map[string]*process.Daemon
}

// Run brings a cluster up, then serves requests until it is killed. It returns only failures. News go to progress; when
// commit ends before a byte came from it, whoever wanted the cluster is gone, and so is the cluster.
func Run(l layout.Layout, count int, progress, commit *os.File) error {
	if err := enter(l); err != nil {
		return err
	}
	s := &supervisor{
		layout:     l,
		nodes:      layout.Nodes(count),
		news:       json.NewEncoder(progress),
		components: map[string]*process.Daemon{},
		machines:   map[string]*process.Daemon{},
	}
	committed := make(chan struct{})
	go awaitCommit(commit, committed)
	if err := s.bringUp(context.Background()); err != nil {
		// Whoever reads this may be gone.
		_ = s.news.Encode(News{Error: err.Error()})
		return err
	}
	requests, err := s.listen()
	if err != nil {
		return err
	}
	if err := s.news.Encode(News{Ready: true}); err != nil {
		return err
	}
	<-committed
	if err := progress.Close(); err != nil {
		return err
	}
	return s.serve(requests)
}

// enter makes the calling process's mount namespace its own, with a /proc that shows what is below it.
func enter(l layout.Layout) error {
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	// The control socket is bound by a relative name: a checkout's path may be longer than a socket's name.
	return os.Chdir(l.State())
}

func awaitCommit(commit *os.File, committed chan<- struct{}) {
	if _, err := bufio.NewReader(commit).ReadByte(); errors.Is(err, io.EOF) {
		fmt.Println("nobody waits for this cluster any more")
		os.Exit(1)
	}
	close(committed)
}

func (s *supervisor) step(format string, args ...any) {
	// Whoever reads this may be gone, which awaitCommit sees.
	_ = s.news.Encode(News{Step: fmt.Sprintf(format, args...)})
}

// SelfArguments are how a cluster's own program is called for one of its inner roles.
func SelfArguments(l layout.Layout, role string, rest ...string) []string {
	return append([]string{"--repository", l.Repository, role}, rest...)
}

// NodeArguments call it as process 1 of a node.
func NodeArguments(l layout.Layout, node string, count int) []string {
	return SelfArguments(l, "node-init", strconv.Itoa(count), node)
}
