package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func unpack(t *testing.T, archive []byte) map[string]string {
	t.Helper()
	files := map[string]string{}
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		header, err := r.Next()
		if err == io.EOF {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if header.Typeflag == tar.TypeSymlink {
			content = []byte("-> " + header.Linkname)
		}
		if _, twice := files[header.Name]; twice {
			t.Fatalf("%s is in the archive twice", header.Name)
		}
		files[header.Name] = string(content)
	}
}

func write(t *testing.T, images ...Image) []byte {
	t.Helper()
	var buffer bytes.Buffer
	if err := writeTo(&buffer, images); err != nil {
		t.Fatal(err)
	}
	return buffer.Bytes()
}

func TestAnArchiveNamesItsLayersByContentAndSharesThem(t *testing.T) {
	files := map[string]File{
		"/usr/bin/app": {Text: "program", Mode: 0o755},
		"/bin/app":     {Link: "../usr/bin/app"},
		"/tmp":         {Dir: true, Mode: 0o1777},
	}
	one := Image{Names: []string{"example.test/one:1"}, Files: files, Config: Config{User: "1"}}
	two := Image{Names: []string{"example.test/two:1"}, Files: files, Config: Config{User: "2"}}
	archive := write(t, one, two)
	if !bytes.Equal(archive, write(t, one, two)) {
		t.Error("the same images make another archive")
	}
	blobs := unpack(t, archive)
	var manifest []manifestEntry
	if err := json.Unmarshal([]byte(blobs["manifest.json"]), &manifest); err != nil {
		t.Fatal(err)
	}
	if len(manifest) != 2 || manifest[0].Layers[0] != manifest[1].Layers[0] || manifest[0].Config == manifest[1].Config {
		t.Fatalf("%+v", manifest)
	}
	layer := blobs[manifest[0].Layers[0]]
	var config configFile
	if err := json.Unmarshal([]byte(blobs[manifest[1].Config]), &config); err != nil {
		t.Fatal(err)
	}
	if config.Config.User != "2" || config.RootFS.DiffIDs[0] != "sha256:"+digest([]byte(layer)) {
		t.Errorf("%+v", config)
	}
	content := unpack(t, []byte(layer))
	for name, want := range map[string]string{"usr/bin/app": "program", "bin/app": "-> ../usr/bin/app", "tmp/": "", "usr/": "", "usr/bin/": ""} {
		if got, there := content[name]; !there || got != want {
			t.Errorf("%s is %q, not %q", name, got, want)
		}
	}
}

func TestAPathThatIsNotPlainIsRefused(t *testing.T) {
	for _, path := range []string{"relative", "/a/../b", "/a/"} {
		if err := writeTo(io.Discard, []Image{{Names: []string{"x"}, Files: map[string]File{path: {Text: "x"}}}}); err == nil {
			t.Errorf("%q is taken", path)
		}
	}
}

func recipe(t *testing.T, text string) ([]Image, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "recipe.json")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return ReadRecipes(path, Places{Repository: filepath.Dir(path), Cluster: "/nowhere"})
}

func TestAProgramBringsItsLibrariesAndItsLinker(t *testing.T) {
	images, err := recipe(t, `[{"names": ["example.test/sort:1"], "files": {"/bin/sort": "/usr/bin/sort"}}]`)
	if err != nil {
		t.Fatal(err)
	}
	var libc, linker bool
	for path, file := range images[0].Files {
		libc = libc || strings.HasSuffix(path, "/libc.so.6")
		linker = linker || strings.HasPrefix(filepath.Base(path), "ld-linux")
		if strings.Contains(path, ".so") && file.Mode != 0o755 {
			t.Errorf("%s: %o", path, file.Mode)
		}
	}
	if !libc || !linker {
		t.Errorf("%v", images[0].Files)
	}
	if images[0].Files["/bin/sort"].Mode != 0o755 || images[0].Files["/tmp"].Mode != 0o1777 {
		t.Errorf("%v", images[0].Files)
	}
}

func TestARecipeThatCannotBeFollowedSaysWhy(t *testing.T) {
	for text, want := range map[string]string{
		`[{"names": ["x"], "filse": {}}]`:                       "filse",
		`[{"files": {}}]`:                                       "no name",
		`[{"names": ["x"], "files": {"/a": "missing"}}]`:        "missing",
		`[{"names": ["x"], "folders": {"/a": "rwx"}}]`:          "rwx",
		`[{"names": ["x"], "files": {"/a": "$CLUSTER_BIN/a"}}]`: "/nowhere/a",
	} {
		if _, err := recipe(t, text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}
