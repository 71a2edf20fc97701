// Package image assembles container images without a registry and without a container runtime: archives in the format of
// `docker save`, which every runtime imports.
package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"sort"
	"strings"
)

// Image is one layer and how it is run.
type Image struct {
	// Names are references, such as example.test/app:1.
	Names []string
	// Files by their absolute path in the image.
	Files  map[string]File
	Config Config
}

// File is what is at a path: content from a file of this machine, given text, a symbolic link or a folder.
type File struct {
	From string
	Text string
	Link string
	Dir  bool
	Mode int64
}

// Config is what a runtime needs to start a container, as the image specification names it.
type Config struct {
	User       string   `json:"User,omitempty"`
	Env        []string `json:"Env,omitempty"`
	Entrypoint []string `json:"Entrypoint,omitempty"`
	Cmd        []string `json:"Cmd,omitempty"`
	WorkingDir string   `json:"WorkingDir,omitempty"`
}

// created is the same in every image, so that equal files make equal images.
const created = "2026-01-01T00:00:00Z"

type rootFS struct {
	Type    string   `json:"type"`
	DiffIDs []string `json:"diff_ids"`
}

type configFile struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
	Created      string `json:"created"`
	Config       Config `json:"config"`
	RootFS       rootFS `json:"rootfs"`
}

type manifestEntry struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// Write writes an archive of images to path, or nothing when it fails.
func Write(path string, images []Image) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	file, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	defer file.Close()
	if err := file.Chmod(0o644); err != nil {
		return err
	}
	if err := writeTo(file, images); err != nil {
		return err
	}
	if err := file.Close(); err != nil {
		return err
	}
	return os.Rename(file.Name(), path)
}

func writeTo(w io.Writer, images []Image) error {
	archive := &blobs{tar: tar.NewWriter(w), known: map[string]bool{}}
	var manifest []manifestEntry
	for _, i := range images {
		entry, err := archive.image(i)
		if err != nil {
			return fmt.Errorf("image %s: %w", strings.Join(i.Names, ", "), err)
		}
		manifest = append(manifest, entry)
	}
	encoded, err := json.Marshal(manifest)
	if err != nil {
		return err
	}
	if err := archive.add("manifest.json", encoded); err != nil {
		return err
	}
	return archive.tar.Close()
}

// blobs writes every file of an archive once, however many images have it.
type blobs struct {
	tar   *tar.Writer
	known map[string]bool
}

func (b *blobs) add(name string, content []byte) error {
	if b.known[name] {
		return nil
	}
	b.known[name] = true
	header := &tar.Header{Name: name, Mode: 0o644, Size: int64(len(content)), Typeflag: tar.TypeReg}
	if err := b.tar.WriteHeader(header); err != nil {
		return err
	}
	_, err := b.tar.Write(content)
	return err
}

func (b *blobs) image(i Image) (manifestEntry, error) {
	layer, err := layer(i.Files)
	if err != nil {
		return manifestEntry{}, err
	}
	digest := digest(layer)
	config, err := json.Marshal(configFile{
		Architecture: runtime.GOARCH,
		OS:           "linux",
		Created:      created,
		Config:       i.Config,
		RootFS:       rootFS{Type: "layers", DiffIDs: []string{"sha256:" + digest}},
	})
	if err != nil {
		return manifestEntry{}, err
	}
	entry := manifestEntry{Config: hexDigestName(config, ".json"), RepoTags: i.Names, Layers: []string{digest + ".tar"}}
	if err := b.add(entry.Layers[0], layer); err != nil {
		return manifestEntry{}, err
	}
	return entry, b.add(entry.Config, config)
}

func digest(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}

func hexDigestName(content []byte, suffix string) string { return digest(content) + suffix }

// layer is a tar of files with all their parent folders, in a fixed order.
func layer(files map[string]File) ([]byte, error) {
	all := map[string]File{}
	for name, file := range files {
		if !path.IsAbs(name) || path.Clean(name) != name {
			return nil, fmt.Errorf("%q is no plain absolute path", name)
		}
		all[name] = file
		for dir := path.Dir(name); dir != "/"; dir = path.Dir(dir) {
			if _, given := files[dir]; !given {
				all[dir] = File{Dir: true, Mode: 0o755}
			}
		}
	}
	names := make([]string, 0, len(all))
	for name := range all {
		names = append(names, name)
	}
	sort.Strings(names)
	var buffer bytes.Buffer
	w := tar.NewWriter(&buffer)
	for _, name := range names {
		if err := writeFile(w, strings.TrimPrefix(name, "/"), all[name]); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return buffer.Bytes(), nil
}

func writeFile(w *tar.Writer, name string, f File) error {
	switch {
	case f.Dir:
		return w.WriteHeader(&tar.Header{Name: name + "/", Mode: f.Mode, Typeflag: tar.TypeDir})
	case f.Link != "":
		return w.WriteHeader(&tar.Header{Name: name, Mode: 0o777, Typeflag: tar.TypeSymlink, Linkname: f.Link})
	}
	content := []byte(f.Text)
	if f.From != "" {
		var err error
		if content, err = os.ReadFile(f.From); err != nil {
			return err
		}
	}
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: f.Mode, Size: int64(len(content)), Typeflag: tar.TypeReg}); err != nil {
		return err
	}
	_, err := w.Write(content)
	return err
}
