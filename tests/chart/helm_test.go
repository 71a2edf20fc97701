// Package chart tests the chart deploy/helm/culvert with the real helm, without a cluster: tests/kubernetes installs it.
package chart

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

const (
	repository = "../.."
	chart      = repository + "/deploy/helm/culvert"
	// namespace is that of every object, wherever the release is recorded.
	namespace = "culvert-system"
)

// helm runs the real program and gives what it prints.
func helm(t *testing.T, arguments ...string) (string, error) {
	t.Helper()
	program, err := filepath.Abs(repository + "/target/cluster/bin/helm")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(program); err != nil {
		t.Fatalf("%v; tests/chart/run builds it", err)
	}
	command := exec.Command(program, arguments...)
	// No settings of whoever runs the tests.
	home := t.TempDir()
	command.Env = []string{"HOME=" + home, "HELM_CACHE_HOME=" + home, "HELM_CONFIG_HOME=" + home, "HELM_DATA_HOME=" + home}
	var out, problems bytes.Buffer
	command.Stdout, command.Stderr = &out, &problems
	if err := command.Run(); err != nil {
		return out.String(), errors.New(problems.String() + out.String())
	}
	return out.String(), nil
}

// object is any Kubernetes object.
type object map[string]any

func (o object) at(path ...string) any {
	var value any = map[string]any(o)
	for _, name := range path {
		fields, is := value.(map[string]any)
		if !is {
			return nil
		}
		value = fields[name]
	}
	return value
}

func (o object) text(path ...string) string {
	text, _ := o.at(path...).(string)
	return text
}

func (o object) list(path ...string) []any {
	list, _ := o.at(path...).([]any)
	return list
}

func (o object) name() string { return o.text("kind") + " " + o.text("metadata", "name") }

// rendered are the chart's objects, its hooks among them.
func rendered(t *testing.T, arguments ...string) []object {
	t.Helper()
	text, err := helm(t, append([]string{"template", "culvert", chart, "--namespace", namespace}, arguments...)...)
	if err != nil {
		t.Fatalf("%v: %v", arguments, err)
	}
	return documents(t, text)
}

func documents(t *testing.T, text string) []object {
	t.Helper()
	var all []object
	for decoder := yaml.NewDecoder(strings.NewReader(text)); ; {
		var one map[string]any
		if err := decoder.Decode(&one); err == io.EOF {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		if one != nil {
			all = append(all, object(one))
		}
	}
}

func find(t *testing.T, objects []object, name string) object {
	t.Helper()
	for _, one := range objects {
		if one.name() == name {
			return one
		}
	}
	t.Fatalf("there is no %s", name)
	return nil
}

// containers of an object that makes pods; init containers among them.
func (o object) containers() []object {
	var all []object
	for _, kind := range []string{"initContainers", "containers"} {
		for _, one := range o.list("spec", "template", "spec", kind) {
			all = append(all, object(one.(map[string]any)))
		}
	}
	return all
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(repository, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
