// Package process runs daemons with a log each, and waits for conditions that they bring about.
package process

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// shownLines of a log are shown when its component failed.
const shownLines = 15

// Inherited is a file that the parent handed over. It is not handed on: somebody may wait for its last holder to go.
func Inherited(descriptor int, name string) *os.File {
	syscall.CloseOnExec(descriptor)
	return os.NewFile(uintptr(descriptor), name)
}

// Daemon is a running child.
type Daemon struct {
	Name    string
	Log     string
	command *exec.Cmd
	ended   chan struct{}
	result  error
}

// Start runs command with its output appended to log.
func Start(name, log string, command *exec.Cmd) (*Daemon, error) {
	if err := os.MkdirAll(filepath.Dir(log), 0o755); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	command.Stdout, command.Stderr = file, file
	if err := command.Start(); err != nil {
		return nil, fmt.Errorf("%s does not start: %w", name, err)
	}
	d := &Daemon{Name: name, Log: log, command: command, ended: make(chan struct{})}
	go func() {
		d.result = command.Wait()
		close(d.ended)
	}()
	return d, nil
}

// Pid is the daemon's process in the caller's own PID namespace.
func (d *Daemon) Pid() int { return d.command.Process.Pid }

// Ended is closed when it has ended.
func (d *Daemon) Ended() <-chan struct{} { return d.ended }

// Kill ends it at once and waits until it is gone. Nothing here is asked to end by itself: an API server whose etcd is
// gone never would.
func (d *Daemon) Kill() {
	// The only error is that it has ended already.
	_ = d.command.Process.Kill()
	<-d.ended
}

// Failure says how it ended and what its log's last lines are; nil while it runs.
func (d *Daemon) Failure() error {
	select {
	case <-d.ended:
		how := "exit status 0"
		if d.result != nil {
			how = d.result.Error()
		}
		return fmt.Errorf("%s ended (%s)\n%s", d.Name, how, Tail(d.Log))
	default:
		return nil
	}
}

// Tail is the end of a log with its path, for people.
func Tail(path string) string {
	content, err := os.ReadFile(path)
	if err != nil {
		return fmt.Sprintf("  no log: %v", err)
	}
	lines := strings.Split(string(bytes.TrimSpace(content)), "\n")
	if len(lines) > shownLines {
		lines = lines[len(lines)-shownLines:]
	}
	return "  the end of " + path + ":\n    " + strings.Join(lines, "\n    ")
}

// Wait asks again and again until holds returns nil. It gives up when a daemon that it depends on ends, or at the
// deadline, naming what was waited for, why it does not hold and what the daemons last said.
func Wait(ctx context.Context, what string, deadline time.Duration, daemons []*Daemon, holds func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		unmet := holds(ctx)
		if unmet == nil {
			return nil
		}
		for _, d := range daemons {
			if failure := d.Failure(); failure != nil {
				return fmt.Errorf("waiting for %s: %w", what, failure)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			logs := make([]string, 0, len(daemons))
			for _, d := range daemons {
				logs = append(logs, Tail(d.Log))
			}
			return fmt.Errorf("%s: not after %s: %w\n%s", what, deadline, unmet, strings.Join(logs, "\n"))
		}
	}
}
