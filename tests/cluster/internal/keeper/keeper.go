// Package keeper outlives whoever brought a cluster up: it holds the lock, starts the supervisor and, when that ends for
// whatever reason, removes what the kernel does not remove by itself.
package keeper

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"culvert.dev/tests/cluster/internal/cgroup"
	"culvert.dev/tests/cluster/internal/layout"
	"culvert.dev/tests/cluster/internal/process"
	"culvert.dev/tests/cluster/internal/supervisor"
)

// Files that a keeper inherits, in this order.
const (
	lockFile = 3 + iota
	progressFile
	commitFile
)

// Start starts a keeper in a session of its own, which takes over the lock. The returned command ends with the cluster.
func Start(l layout.Layout, count int, lock *Lock, progress, commit *os.File) (*exec.Cmd, error) {
	log, err := os.OpenFile(l.Log("keeper.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	command := exec.Command("/proc/self/exe", supervisor.SelfArguments(l, "keeper", strconv.Itoa(count))...)
	command.ExtraFiles = []*os.File{lock.file, progress, commit}
	command.Stdout, command.Stderr = log, log
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return command, command.Start()
}

// Run is a keeper's life.
func Run(l layout.Layout, count int) error {
	lock := &Lock{file: process.Inherited(lockFile, "lock")}
	if err := lock.sign(); err != nil {
		return err
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)

	command := exec.Command("/proc/self/exe", supervisor.SelfArguments(l, "supervisor", strconv.Itoa(count))...)
	progress, commit := process.Inherited(progressFile, "progress"), process.Inherited(commitFile, "commit")
	command.ExtraFiles = []*os.File{progress, commit}
	command.Stdout, command.Stderr = os.Stdout, os.Stderr
	command.SysProcAttr = &syscall.SysProcAttr{Cloneflags: supervisor.Namespaces, Pdeathsig: syscall.SIGKILL}
	startError := command.Start()
	// Only the supervisor's ends count now.
	if err := errors.Join(progress.Close(), commit.Close()); err != nil {
		return err
	}
	if startError != nil {
		return errors.Join(fmt.Errorf("the supervisor does not start: %w", startError), CleanUp(l))
	}
	if err := os.WriteFile(l.State("supervisor.pid"), []byte(strconv.Itoa(command.Process.Pid)), 0o644); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	select {
	case err := <-ended:
		fmt.Println("the supervisor ended:", err)
	case s := <-stop:
		fmt.Println("told to end:", s)
		// The only error is that it has ended already.
		_ = command.Process.Kill()
		<-ended
	}
	return CleanUp(l)
}

// CleanUp removes what a cluster leaves when all its processes are gone: control groups and its state. The lock is held.
func CleanUp(l layout.Layout) error {
	if err := cgroup.Remove(l.CgroupName()); err != nil {
		return err
	}
	// The last mounts go with the last process, a moment after it.
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := os.RemoveAll(l.State())
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// Lock is held for a cluster by exactly one process, whose id it holds.
type Lock struct{ file *os.File }

// HeldError names who holds the lock.
type HeldError struct{ Pid int }

func (e HeldError) Error() string { return fmt.Sprintf("process %d holds the cluster", e.Pid) }

// Acquire takes the lock, or returns a HeldError at once.
func Acquire(l layout.Layout) (*Lock, error) {
	if err := os.MkdirAll(l.Root, 0o755); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(l.Lock(), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		defer file.Close()
		return nil, HeldError{Pid: readPid(l.Lock())}
	}
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("lock %s: %w", l.Lock(), err)
	}
	lock := &Lock{file: file}
	return lock, lock.sign()
}

func (k *Lock) sign() error {
	if err := k.file.Truncate(0); err != nil {
		return err
	}
	_, err := k.file.WriteAt([]byte(strconv.Itoa(os.Getpid())), 0)
	return err
}

// Release gives the lock up, unless a keeper shares it.
func (k *Lock) Release() error { return k.file.Close() }

func readPid(path string) int {
	content, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(content)))
	if err != nil {
		return 0
	}
	return pid
}

// SupervisorPid is the process id of the running cluster's supervisor.
func SupervisorPid(l layout.Layout) (int, error) {
	lock, err := Acquire(l)
	if err == nil {
		return 0, errors.Join(errors.New("no cluster runs; tests/cluster/up brings one up"), lock.Release())
	}
	if held := (HeldError{}); !errors.As(err, &held) {
		return 0, err
	}
	if pid := readPid(l.State("supervisor.pid")); pid != 0 {
		return pid, nil
	}
	return 0, errors.New("the cluster is only just coming up")
}
