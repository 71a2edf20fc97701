// Package commands is what users call.
package commands

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"

	"culvert.dev/tests/cluster/internal/build"
	"culvert.dev/tests/cluster/internal/image"
	"culvert.dev/tests/cluster/internal/keeper"
	"culvert.dev/tests/cluster/internal/layout"
	"culvert.dev/tests/cluster/internal/supervisor"
)

// Up builds what is missing and brings a cluster up.
func Up(l layout.Layout, args []string) error {
	flags := flag.NewFlagSet("up", flag.ContinueOnError)
	count := flags.Int("nodes", 2, "how many nodes")
	if err := parse(flags, args); err != nil {
		return err
	}
	if *count < 1 || *count > layout.MaxNodes {
		return fmt.Errorf("--nodes %d: from 1 to %d", *count, layout.MaxNodes)
	}
	if err := preflight(l); err != nil {
		return err
	}
	lock, err := keeper.Acquire(l)
	if held := (keeper.HeldError{}); errors.As(err, &held) {
		return fmt.Errorf("a cluster of this checkout is up, or coming up, already (process %d); tests/cluster/down takes it down", held.Pid)
	}
	if err != nil {
		return err
	}
	defer lock.Release()
	if err := Build(l, nil); err != nil {
		return err
	}
	began := time.Now()
	if err := prepare(l); err != nil {
		return err
	}
	if err := bringUp(l, *count, lock, began); err != nil {
		return err
	}
	say("a cluster of %d nodes is up after %.1f s; use tests/cluster/kubectl; tests/cluster/down takes it down",
		*count, time.Since(began).Seconds())
	return nil
}

// prepare leaves an empty state, empty logs and the archive of base images.
func prepare(l layout.Layout) error {
	if err := keeper.CleanUp(l); err != nil {
		return err
	}
	if err := os.RemoveAll(l.Log()); err != nil {
		return err
	}
	for _, dir := range []string{l.Log(), l.State()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	images, err := image.Base(l.Bin)
	if err != nil {
		return err
	}
	return image.Write(l.Images("base.tar"), images)
}

// bringUp starts a keeper and follows what the supervisor tells, until the cluster is ready or has failed. Should this
// process end before, its end of the pipe closes and the cluster goes.
func bringUp(l layout.Layout, count int, lock *keeper.Lock, began time.Time) error {
	news, progress, err := os.Pipe()
	if err != nil {
		return err
	}
	defer news.Close()
	commit, decision, err := os.Pipe()
	if err != nil {
		return err
	}
	defer decision.Close()
	kept, err := keeper.Start(l, count, lock, progress, commit)
	if err := errors.Join(err, progress.Close(), commit.Close()); err != nil {
		return err
	}
	failure := follow(news, began)
	if failure == nil {
		_, failure = decision.Write([]byte{1})
	}
	if failure == nil {
		// The supervisor lets go of the pipe when it has taken note.
		_, failure = io.Copy(io.Discard, news)
		return failure
	}
	if err := decision.Close(); err != nil {
		return errors.Join(failure, err)
	}
	// The supervisor has failed or sees the pipe's end; the keeper then cleans up and ends.
	if err := kept.Wait(); err != nil {
		failure = fmt.Errorf("%w\nand cleaning up failed: %w; see %s", failure, err, l.Log("keeper.log"))
	}
	return fmt.Errorf("%w\n(all logs are in %s)", failure, l.Log())
}

func follow(news io.Reader, began time.Time) error {
	decoder := json.NewDecoder(news)
	for {
		var n supervisor.News
		err := decoder.Decode(&n)
		switch {
		case errors.Is(err, io.EOF):
			return errors.New("the cluster was taken down while it came up")
		case err != nil:
			return err
		case n.Error != "":
			return errors.New(n.Error)
		case n.Ready:
			return nil
		default:
			say("%5.1f s  %s", time.Since(began).Seconds(), n.Step)
		}
	}
}

// Build builds the cluster's programs, or those of the lists that are named.
func Build(l layout.Layout, args []string) error {
	flags := flag.NewFlagSet("build", flag.ContinueOnError)
	if err := parse(flags, args); err != nil {
		return err
	}
	lists := flags.Args()
	if len(lists) == 0 {
		lists = []string{l.Source("programs.json")}
	}
	if err := requireGo(); err != nil {
		return err
	}
	builder := build.Builder{Repository: l.Repository, Output: l.Bin(""), Say: func(line string) { say("%s", line) }}
	stale, err := stalePrograms(builder, lists)
	if err != nil || len(stale) == 0 {
		return err
	}
	release, err := awaitBuildLock(l)
	if err != nil {
		return err
	}
	defer release()
	for _, p := range stale {
		if err := builder.Build(p); err != nil {
			return err
		}
	}
	return nil
}

func stalePrograms(builder build.Builder, lists []string) ([]build.Program, error) {
	var stale []build.Program
	for _, list := range lists {
		programs, err := build.Read(list)
		if err != nil {
			return nil, err
		}
		for _, p := range programs {
			fresh, err := builder.Fresh(p)
			if err != nil {
				return nil, err
			}
			if !fresh {
				stale = append(stale, p)
			}
		}
	}
	return stale, nil
}

// awaitBuildLock lets one build at a time into the folder of programs.
func awaitBuildLock(l layout.Layout) (release func(), err error) {
	if err := os.MkdirAll(l.Root, 0o755); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(l.Root+"/build.lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	const patience = 30 * time.Minute
	deadline := time.Now().Add(patience)
	for waited := false; ; waited = true {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { file.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(deadline) {
			file.Close()
			return nil, fmt.Errorf("another build has not ended after %s: %w", patience, err)
		}
		if !waited {
			say("another build is at work; waiting for it ...")
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// Down takes the cluster down, and removes what one that was killed has left.
func Down(l layout.Layout, args []string) error {
	if err := parse(flag.NewFlagSet("down", flag.ContinueOnError), args); err != nil {
		return err
	}
	if err := requireRoot(); err != nil {
		return err
	}
	began := time.Now()
	lock, err := keeper.Acquire(l)
	if held := (keeper.HeldError{}); errors.As(err, &held) {
		lock, err = end(l, held.Pid)
		if err == nil {
			defer func() { say("the cluster is down after %.1f s", time.Since(began).Seconds()) }()
		}
	}
	if err != nil {
		return err
	}
	defer lock.Release()
	return keeper.CleanUp(l)
}

// end asks who holds the lock to end, insists after a while, and returns with the lock.
func end(l layout.Layout, pid int) (*keeper.Lock, error) {
	const patience, insisting = 60 * time.Second, 30 * time.Second
	began := time.Now()
	signal := unix.SIGTERM
	for {
		// The holder changes when `up` hands over to the keeper.
		if pid > 0 {
			if err := unix.Kill(pid, signal); err != nil && !errors.Is(err, unix.ESRCH) {
				return nil, fmt.Errorf("process %d: %w", pid, err)
			}
		}
		time.Sleep(100 * time.Millisecond)
		lock, err := keeper.Acquire(l)
		held := keeper.HeldError{}
		if !errors.As(err, &held) {
			return lock, err
		}
		pid = held.Pid
		if time.Since(began) > insisting {
			signal = unix.SIGKILL
		}
		if time.Since(began) > patience {
			return nil, fmt.Errorf("process %d still holds the cluster after %s; see %s", pid, patience, l.Log("keeper.log"))
		}
	}
}

func say(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

func parse(flags *flag.FlagSet, args []string) error {
	flags.SetOutput(os.Stderr)
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.Name() != "build" && flags.NArg() > 0 {
		return fmt.Errorf("%s takes no %q", flags.Name(), flags.Arg(0))
	}
	return nil
}

// lookPath says whether there is a command, also where ordinary users do not look.
func lookPath(command string) bool {
	if _, err := exec.LookPath(command); err == nil {
		return true
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if _, err := os.Stat(dir + "/" + command); err == nil {
			return true
		}
	}
	return false
}
