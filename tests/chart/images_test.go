package chart

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// recipe is an image of deploy/images/images.json.
type recipe struct {
	Names      []string
	Files      map[string]string
	Entrypoint []string
	User       string
}

func recipes(t *testing.T) []recipe {
	t.Helper()
	var all []recipe
	if err := json.Unmarshal([]byte(read(t, "deploy/images/images.json")), &all); err != nil {
		t.Fatal(err)
	}
	return all
}

// The list says what images hold; how they are run is said once more in the Dockerfile.
func TestTheDockerfileMakesTheImagesOfTheList(t *testing.T) {
	stages := strings.Split(read(t, "deploy/images/Dockerfile"), "\nFROM ")
	for _, one := range recipes(t) {
		name, _, _ := strings.Cut(filepath.Base(one.Names[0]), ":")
		entrypoint, err := json.Marshal(one.Entrypoint)
		if err != nil {
			t.Fatal(err)
		}
		want := "scratch AS " + name + "\nCOPY --from=build /images/" + name + " /\nUSER " + one.User + "\nENTRYPOINT " + string(entrypoint)
		made := slices.ContainsFunc(stages, func(stage string) bool {
			comments := regexp.MustCompile(`(?m)\n*^#.*$`)
			return strings.TrimSpace(comments.ReplaceAllString(stage, "")) == want
		})
		if !made {
			t.Errorf("the Dockerfile has no stage\nFROM %s", want)
		}
		if one.User == "0" && name != "node-proxy" {
			t.Errorf("%s runs as root", name)
		}
		for _, from := range one.Files {
			if program := strings.TrimPrefix(from, "$BIN/"); program != from && !strings.Contains(stages[2], strings.TrimPrefix(program, "culvert-")) {
				t.Errorf("the Dockerfile does not build %s", program)
			}
		}
	}
}

// What the Dockerfile's stages copy is what the archive's layers hold, file by file.
func TestUnpackedImagesAreThoseOfTheArchive(t *testing.T) {
	scratch := t.TempDir()
	programs := filepath.Join(scratch, "bin")
	if err := os.Mkdir(programs, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, one := range recipes(t) {
		for _, from := range one.Files {
			if name := strings.TrimPrefix(from, "$BIN/"); name != from {
				// Any program serves; this one brings libraries along.
				if err := os.Symlink("/usr/bin/sort", filepath.Join(programs, name)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	archive := filepath.Join(scratch, "images.tar")
	list, err := filepath.Abs(repository + "/deploy/images/images.json")
	if err != nil {
		t.Fatal(err)
	}
	run(t, []string{"CULVERT_BIN_DIR=" + programs}, repository+"/tests/cluster/image", list, archive)
	folder := filepath.Join(scratch, "unpacked")
	run(t, nil, repository+"/deploy/images/unpack", archive, folder)

	blobs := untar(t, archive)
	var manifest []struct{ RepoTags, Layers []string }
	if err := json.Unmarshal(blobs["manifest.json"], &manifest); err != nil {
		t.Fatal(err)
	}
	if len(manifest) != len(recipes(t)) {
		t.Fatalf("%d images", len(manifest))
	}
	for _, image := range manifest {
		name, _, _ := strings.Cut(filepath.Base(image.RepoTags[0]), ":")
		files := entries(t, blobs[image.Layers[0]])
		seen := 0
		err := filepath.WalkDir(filepath.Join(folder, name), func(path string, entry os.DirEntry, err error) error {
			if err != nil || path == filepath.Join(folder, name) {
				return err
			}
			relative, _ := filepath.Rel(filepath.Join(folder, name), path)
			info, err := entry.Info()
			if err != nil {
				return err
			}
			want, there := files[relative]
			if !there || want.FileInfo().Mode() != info.Mode() {
				t.Errorf("%s: %s is %v, in the archive %v", name, relative, info.Mode(), want)
			}
			seen++
			return nil
		})
		if err != nil || seen != len(files) {
			t.Errorf("%s: %d of %d files: %v", name, seen, len(files), err)
		}
	}
}

func run(t *testing.T, environment []string, program string, arguments ...string) {
	t.Helper()
	command := exec.Command(program, arguments...)
	command.Env = append(os.Environ(), environment...)
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", program, err, out)
	}
}

func untar(t *testing.T, path string) map[string][]byte {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for reader := tar.NewReader(bytes.NewReader(content)); ; {
		header, err := reader.Next()
		if err == io.EOF {
			return files
		} else if err != nil {
			t.Fatal(err)
		}
		if files[header.Name], err = io.ReadAll(reader); err != nil {
			t.Fatal(err)
		}
	}
}

func entries(t *testing.T, layer []byte) map[string]*tar.Header {
	t.Helper()
	files := map[string]*tar.Header{}
	for reader := tar.NewReader(bytes.NewReader(layer)); ; {
		header, err := reader.Next()
		if err == io.EOF {
			return files
		} else if err != nil {
			t.Fatal(err)
		}
		files[strings.TrimSuffix(header.Name, "/")] = header
	}
}

// Whoever starts at the README runs the same commands as whoever starts at the page on installing.
func TestTheREADMEInstallsAsTheManualDoes(t *testing.T) {
	_, block, found := strings.Cut(read(t, "docs/install.md"), "```sh\n")
	block, _, ended := strings.Cut(block, "```")
	if !found || !ended || strings.Count(block, "\n") > 6 {
		t.Fatalf("docs/install.md does not begin with six commands at most: %s", block)
	}
	// What is marked sh there is run in the sandbox.
	if !strings.Contains(read(t, "README.md"), "```bash\n"+block+"```") {
		t.Errorf("README.md does not have the commands\n%s", block)
	}
}
