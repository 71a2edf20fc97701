package image

import (
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// libraryFolders is where the dynamic linker looks on Debian, by the path that it uses itself.
func libraryFolders() []string {
	folders := []string{"/lib", "/usr/lib", "/lib64", "/usr/lib64"}
	multiarch, _ := filepath.Glob("/usr/lib/*-linux-gnu") // The only error is a malformed pattern.
	return append(multiarch, folders...)
}

// libraries collects the shared libraries that programs need, and those that these need, and the dynamic linker.
type libraries struct {
	folders []string
	found   map[string]File
}

func newLibraries() *libraries {
	return &libraries{folders: libraryFolders(), found: map[string]File{}}
}

// addNeededBy adds what a program or library needs; what is no ELF file needs nothing.
func (l *libraries) addNeededBy(path string) error {
	program, err := elf.Open(path)
	if notELF := (*elf.FormatError)(nil); errors.As(err, &notELF) {
		return nil
	}
	if err != nil {
		return nil // Too short to be one.
	}
	defer program.Close()
	for _, segment := range program.Progs {
		if segment.Type != elf.PT_INTERP {
			continue
		}
		name := make([]byte, segment.Filesz)
		if _, err := segment.ReadAt(name, 0); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if err := l.add(strings.TrimRight(string(name), "\x00")); err != nil {
			return err
		}
	}
	names, err := program.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	for _, name := range names {
		if err := l.addNamed(path, name); err != nil {
			return err
		}
	}
	return nil
}

func (l *libraries) addNamed(needer, name string) error {
	for _, folder := range l.folders {
		path := filepath.Join(folder, name)
		if _, err := os.Stat(path); err == nil {
			return l.add(path)
		}
	}
	return fmt.Errorf("%s needs the shared library %s, which is in none of %s", needer, name, strings.Join(l.folders, ", "))
}

// add adds one library by the path under which it is looked for, whatever links lead to it here.
func (l *libraries) add(path string) error {
	if _, known := l.found[path]; known {
		return nil
	}
	l.found[path] = File{From: path, Mode: 0o755}
	return l.addNeededBy(path)
}
