// Package cgroup makes and removes the control groups below which a cluster's pods run, in every hierarchy that the
// machine has: several (version 1), one (version 2) or both.
package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const mountPoint = "/sys/fs/cgroup"

// controllers are those that kubelet and runc need delegated in version 2.
var controllers = []string{"cpuset", "cpu", "io", "memory", "pids"}

// removal bounds the wait for groups whose last process is just being reaped.
const removal = 20 * time.Second

// hierarchies are the roots of all hierarchies.
func hierarchies() ([]string, error) {
	if unified(mountPoint) {
		return []string{mountPoint}, nil
	}
	entries, err := os.ReadDir(mountPoint)
	if err != nil {
		return nil, fmt.Errorf("control groups are not mounted: %w", err)
	}
	var roots []string
	for _, entry := range entries {
		// Symbolic links are further names of a hierarchy ("cpu,cpuacct").
		if root := filepath.Join(mountPoint, entry.Name()); entry.IsDir() && isHierarchy(root) {
			roots = append(roots, root)
		}
	}
	if len(roots) == 0 {
		return nil, fmt.Errorf("no control group hierarchy is mounted below %s", mountPoint)
	}
	return roots, nil
}

func isHierarchy(root string) bool {
	_, err := os.Stat(filepath.Join(root, "cgroup.procs"))
	return err == nil
}

func unified(root string) bool {
	_, err := os.Stat(filepath.Join(root, "cgroup.controllers"))
	return err == nil
}

// Create makes the group NAME (a path such as cluster/n1) everywhere.
func Create(name string) error {
	roots, err := hierarchies()
	if err != nil {
		return err
	}
	for _, root := range roots {
		parent := root
		for _, part := range strings.Split(name, "/") {
			if unified(root) {
				delegate(parent)
			}
			group := filepath.Join(parent, part)
			if err := os.Mkdir(group, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("control group %s: %w", group, err)
			}
			if err := inheritCpuset(parent, group); err != nil {
				return err
			}
			parent = group
		}
		if unified(root) {
			delegate(parent)
		}
	}
	return nil
}

// delegate hands the controllers that there are to a group's children. One that is missing shows when kubelet says so.
func delegate(group string) {
	for _, controller := range controllers {
		_ = os.WriteFile(filepath.Join(group, "cgroup.subtree_control"), []byte("+"+controller), 0o644)
	}
}

// inheritCpuset fills a version 1 cpuset, which is born empty and then takes no process.
func inheritCpuset(parent, group string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		if unified(group) {
			return nil
		}
		value, err := os.ReadFile(filepath.Join(parent, file))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(group, file), value, 0o644); err != nil {
			return fmt.Errorf("control group %s: %w", group, err)
		}
	}
	return nil
}

// Empty removes everything below the group NAME.
func Empty(name string) error { return remove(name, 1) }

// Remove removes the group NAME and everything below it.
func Remove(name string) error { return remove(name, 0) }

func remove(name string, depth int) error {
	roots, err := hierarchies()
	if err != nil {
		return err
	}
	deadline := time.Now().Add(removal)
	for _, root := range roots {
		top := filepath.Join(root, name)
		for {
			err := removeBelow(top, depth)
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("control group %s is still in use after %s: %w", top, removal, err)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	return nil
}

// removeBelow removes the groups at and below top, children first; those nearer to top than depth stay.
func removeBelow(top string, depth int) error {
	entries, err := os.ReadDir(top)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if !entry.IsDir() {
			continue
		}
		if err := removeBelow(filepath.Join(top, entry.Name()), depth-1); err != nil {
			return err
		}
	}
	if depth > 0 {
		return nil
	}
	if err := os.Remove(top); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
