package build

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func module(t *testing.T, source string) (Builder, Program) {
	t.Helper()
	repository := t.TempDir()
	put(t, filepath.Join(repository, "app", "go.mod"), "module example.test/app\n\ngo 1.26\n")
	put(t, filepath.Join(repository, "app", "main.go"), source)
	b := Builder{Repository: repository, Output: filepath.Join(repository, "bin"), Say: func(line string) { t.Log(line) }}
	return b, Program{Name: "app", Directory: "app", Package: ".", Links: []string{"alias"}}
}

func put(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func fresh(t *testing.T, b Builder, p Program) bool {
	t.Helper()
	is, err := b.Fresh(p)
	if err != nil {
		t.Fatal(err)
	}
	return is
}

func TestAProgramIsStaleWhenSourcesFlagsOrFilesChange(t *testing.T) {
	b, p := module(t, "package main\n\nfunc main() {}\n")
	if fresh(t, b, p) {
		t.Fatal("fresh before it is built")
	}
	if err := b.Build(p); err != nil {
		t.Fatal(err)
	}
	if !fresh(t, b, p) {
		t.Fatal("stale after it was built")
	}
	flagged := p
	flagged.Variables = map[string]string{"main.version": "2"}
	if fresh(t, b, flagged) {
		t.Error("fresh though it is linked otherwise")
	}
	if err := os.Remove(filepath.Join(b.Output, "alias")); err != nil {
		t.Fatal(err)
	}
	if fresh(t, b, p) {
		t.Error("fresh though one of its names is missing")
	}
	if err := b.Build(p); err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(b.Repository, "app", "main.go"), "package main\n\nfunc main() { println(1) }\n")
	if fresh(t, b, p) {
		t.Error("fresh though its source changed")
	}
}

func TestABuildThatFailsShowsTheCompilersMessage(t *testing.T) {
	b, p := module(t, "package main\n\nfunc main() { undefinedFunction() }\n")
	err := b.Build(p)
	if err == nil || !strings.Contains(err.Error(), "undefined: undefinedFunction") {
		t.Fatal(err)
	}
	if entries, _ := os.ReadDir(b.Output); len(entries) > 0 {
		t.Errorf("it left %v", entries)
	}
}

func TestAMisspeltFieldInAListIsAnError(t *testing.T) {
	list := filepath.Join(t.TempDir(), "programs.json")
	put(t, list, `[{"name": "x", "pakcage": "."}]`)
	if _, err := Read(list); err == nil || !strings.Contains(err.Error(), "pakcage") {
		t.Fatal(err)
	}
}
