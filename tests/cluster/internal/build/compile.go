package build

import (
	"bufio"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// every is how often a running build says how far it is.
const every = 15 * time.Second

// keptLines of a failed build's output are shown.
const keptLines = 30

// compile runs `go` and tells its progress; what was compiled before is not compiled again.
func (b Builder) compile(p Program, output string) error {
	directory := filepath.Join(b.Repository, p.Directory)
	args := append(p.arguments(), "-v", "-o", output, p.Package)
	command := exec.Command("go", args...)
	command.Dir = directory
	command.Env = p.environment()
	messages, err := command.StderrPipe()
	if err != nil {
		return err
	}
	// A build whose caller is killed ends, too.
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := command.Start(); err != nil {
		return fmt.Errorf("%s: %w", p.Name, err)
	}
	tail := b.follow(p, messages)
	if err := command.Wait(); err != nil {
		return fmt.Errorf("%s could not be built (%w): cd %s && go %s\n%s",
			p.Name, err, directory, strings.Join(args, " "), strings.Join(tail, "\n"))
	}
	return nil
}

// follow counts what `go` prints: a line per downloaded module and per compiled package. It returns the last lines.
func (b Builder) follow(p Program, messages io.Reader) []string {
	lines := make(chan string)
	go func() {
		defer close(lines)
		scanner := bufio.NewScanner(messages)
		scanner.Buffer(nil, 1<<20)
		for scanner.Scan() {
			lines <- scanner.Text()
		}
		// A line too long to scan must not block the build.
		_, _ = io.Copy(io.Discard, messages)
	}()
	began := time.Now()
	tick := time.NewTicker(every)
	defer tick.Stop()
	var tail []string
	downloaded, compiled := 0, 0
	for {
		select {
		case line, more := <-lines:
			switch {
			case !more:
				return tail
			case strings.HasPrefix(line, "go: downloading "):
				downloaded++
			case !strings.ContainsAny(line, " \t:"):
				compiled++
			default:
				tail = append(tail, line)
				if len(tail) > keptLines {
					tail = tail[1:]
				}
			}
		case <-tick.C:
			b.Say(fmt.Sprintf("%s: %d modules fetched, %d packages compiled in %s",
				p.Name, downloaded, compiled, time.Since(began).Round(time.Second)))
		}
	}
}
