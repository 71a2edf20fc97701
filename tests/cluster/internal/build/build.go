// Package build makes the programs of a cluster out of Go modules.
package build

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"time"
)

// Program is one binary, as a list of programs names it.
type Program struct {
	// Name is the file's name in the folder of programs.
	Name string `json:"name"`
	// Directory is the module that pins its versions, below the repository.
	Directory string `json:"directory"`
	// Package is what is built there.
	Package string `json:"package"`
	// Test makes a test binary of the package instead.
	Test bool `json:"test,omitempty"`
	// Variables are set when it is linked.
	Variables map[string]string `json:"variables,omitempty"`
	Tags      []string          `json:"tags,omitempty"`
	// Cgo names the C libraries, as pkg-config knows them, that it needs; without any it is linked statically.
	Cgo []string `json:"cgo,omitempty"`
	// Links are further names of it.
	Links []string `json:"links,omitempty"`
}

// Read reads a list of programs.
func Read(path string) ([]Program, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	decoder := json.NewDecoder(file)
	decoder.DisallowUnknownFields()
	var programs []Program
	if err := decoder.Decode(&programs); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return programs, nil
}

// Builder builds into one folder.
type Builder struct {
	// Repository is the folder that programs' directories are relative to.
	Repository string
	// Output is the folder of programs.
	Output string
	// Say prints a line of progress.
	Say func(string)
}

// Fresh says whether a program is there that was made of what there is now.
func (b Builder) Fresh(p Program) (bool, error) {
	fingerprint, err := b.fingerprint(p)
	if err != nil {
		return false, err
	}
	output := filepath.Join(b.Output, p.Name)
	known, err := os.ReadFile(stamp(output))
	if err != nil || string(known) != fingerprint {
		return false, nil
	}
	for _, name := range append([]string{p.Name}, p.Links...) {
		if _, err := os.Stat(filepath.Join(b.Output, name)); err != nil {
			return false, nil
		}
	}
	return true, nil
}

// stamp is the file that says what a program was made of.
func stamp(output string) string { return output + ".stamp" }

// Build makes one program, unless what it was made of is unchanged.
func (b Builder) Build(p Program) error {
	if fresh, err := b.Fresh(p); err != nil || fresh {
		return err
	}
	fingerprint, err := b.fingerprint(p)
	if err != nil {
		return err
	}
	output := filepath.Join(b.Output, p.Name)
	if err := p.prerequisites(); err != nil {
		return err
	}
	if err := os.MkdirAll(b.Output, 0o755); err != nil {
		return err
	}
	began := time.Now()
	b.Say(p.Name + ": building ...")
	// Built beside its place: a program that runs must not be written to, and a build that is cut short leaves nothing.
	unfinished := output + ".unfinished"
	defer os.Remove(unfinished)
	if err := b.compile(p, unfinished); err != nil {
		return err
	}
	if err := os.Rename(unfinished, output); err != nil {
		return err
	}
	b.Say(fmt.Sprintf("%s: built in %s", p.Name, time.Since(began).Round(time.Second)))
	if err := b.link(p); err != nil {
		return err
	}
	return os.WriteFile(stamp(output), []byte(fingerprint), 0o644)
}

func (b Builder) link(p Program) error {
	for _, name := range p.Links {
		link := filepath.Join(b.Output, name)
		if target, err := os.Readlink(link); err == nil && target == p.Name {
			continue
		}
		if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.Symlink(p.Name, link); err != nil {
			return err
		}
	}
	return nil
}

// environment is one that the caller's settings do not reach into: a proxy or a cache is kept, a build flag is not.
func (p Program) environment() []string {
	cgo := "0"
	if len(p.Cgo) > 0 {
		cgo = "1"
	}
	return append(os.Environ(), "CGO_ENABLED="+cgo, "GOFLAGS=", "GOWORK=off")
}

// arguments are those of `go`, without the output.
func (p Program) arguments() []string {
	verb := []string{"build"}
	if p.Test {
		verb = []string{"test", "-c"}
	}
	linker := []string{"-s", "-w"}
	names := make([]string, 0, len(p.Variables))
	for name := range p.Variables {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		linker = append(linker, "-X", name+"="+p.Variables[name])
	}
	return append(verb, "-trimpath", "-buildvcs=false", "-mod=readonly",
		"-tags", strings.Join(p.Tags, ","), "-ldflags", strings.Join(linker, " "))
}

func (p Program) prerequisites() error {
	if len(p.Cgo) == 0 {
		return nil
	}
	for command, packages := range map[string]string{"gcc": "gcc libc6-dev", "pkg-config": "pkg-config"} {
		if _, err := exec.LookPath(command); err != nil {
			return fmt.Errorf("%s cannot be built: there is no %s; as root: apt-get install -y %s", p.Name, command, packages)
		}
	}
	for _, library := range p.Cgo {
		if err := exec.Command("pkg-config", "--exists", library).Run(); err != nil {
			return fmt.Errorf("%s cannot be built: there are no headers of %s; as root: apt-get install -y %s-dev", p.Name, library, library)
		}
	}
	return nil
}

// fingerprint changes with the compiler, the flags and every file of ours that goes into the program: its go.mod and
// go.sum name the rest by content.
func (b Builder) fingerprint(p Program) (string, error) {
	sum := sha256.New()
	version, err := exec.Command("go", "env", "GOVERSION", "GOARCH").Output()
	if err != nil {
		return "", fmt.Errorf("the Go toolchain does not run: %w", err)
	}
	fmt.Fprintf(sum, "%s%q%q%q\n", version, p.Package, p.arguments(), p.Cgo)
	root := filepath.Join(b.Repository, p.Directory)
	err = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			return ignoreOtherModules(root, path)
		}
		if name := entry.Name(); !strings.HasSuffix(name, ".go") && name != "go.mod" && name != "go.sum" {
			return nil
		}
		content, err := os.ReadFile(path)
		fmt.Fprintf(sum, "%s %d\n%s", strings.TrimPrefix(path, root), len(content), content)
		return err
	})
	return hex.EncodeToString(sum.Sum(nil)), err
}

func ignoreOtherModules(root, path string) error {
	if path == root {
		return nil
	}
	if _, err := os.Stat(filepath.Join(path, "go.mod")); err == nil {
		return filepath.SkipDir
	}
	return nil
}
