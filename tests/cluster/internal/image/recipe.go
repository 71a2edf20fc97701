package image

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Recipe describes an image by the files that go into it. What programs among them need of shared libraries goes in by
// itself, and so do /tmp and the users root and nonroot (65532).
type Recipe struct {
	Names []string `json:"names"`
	// Files by their path in the image: where they are now. $BIN is where Culvert's programs are (CULVERT_BIN_DIR, else
	// target/release), $CLUSTER_BIN where the cluster's are; other relative paths start at the repository.
	Files map[string]string `json:"files"`
	// Folders by their path in the image, with their mode in octal.
	Folders map[string]string `json:"folders,omitempty"`
	// Links by their path in the image, with their target.
	Links      map[string]string `json:"links,omitempty"`
	User       string            `json:"user,omitempty"`
	Env        []string          `json:"env,omitempty"`
	Entrypoint []string          `json:"entrypoint,omitempty"`
	Command    []string          `json:"command,omitempty"`
}

// Places are what the sources of a recipe's files are relative to.
type Places struct{ Repository, Cluster string }

// ReadRecipes reads a file of recipes into images.
func ReadRecipes(path string, places Places) ([]Image, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	decoder := json.NewDecoder(file)
	decoder.DisallowUnknownFields()
	var recipes []Recipe
	if err := decoder.Decode(&recipes); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	images := make([]Image, 0, len(recipes))
	for _, r := range recipes {
		image, err := r.image(places)
		if err != nil {
			return nil, fmt.Errorf("%s: image %s: %w", path, strings.Join(r.Names, ", "), err)
		}
		images = append(images, image)
	}
	return images, nil
}

func (r Recipe) image(places Places) (Image, error) {
	if len(r.Names) == 0 {
		return Image{}, fmt.Errorf("it has no name")
	}
	files := with(users)
	libraries := newLibraries()
	for target, source := range r.Files {
		file, err := copied(places.resolve(source))
		if err != nil {
			return Image{}, err
		}
		files[target] = file
		if err := libraries.addNeededBy(file.From); err != nil {
			return Image{}, err
		}
	}
	for target, mode := range r.Folders {
		parsed, err := strconv.ParseInt(mode, 8, 32)
		if err != nil {
			return Image{}, fmt.Errorf("folder %s: mode %q is not octal", target, mode)
		}
		files[target] = File{Dir: true, Mode: parsed}
	}
	for target, to := range r.Links {
		files[target] = File{Link: to}
	}
	return Image{
		Names: r.Names,
		Files: with(files, libraries.found),
		Config: Config{
			User: r.User, Env: append([]string{searchPath}, r.Env...), Entrypoint: r.Entrypoint, Cmd: r.Command,
		},
	}, nil
}

func (p Places) resolve(source string) string {
	programs := os.Getenv("CULVERT_BIN_DIR")
	if programs == "" {
		programs = filepath.Join(p.Repository, "target", "release")
	}
	source = strings.NewReplacer("$CLUSTER_BIN", strings.TrimRight(p.Cluster, "/"), "$BIN", programs).Replace(source)
	if filepath.IsAbs(source) {
		return source
	}
	return filepath.Join(p.Repository, source)
}

// copied is a file as it is, executable if it is that here.
func copied(source string) (File, error) {
	info, err := os.Stat(source)
	if err != nil {
		return File{}, err
	}
	mode := int64(0o644)
	if info.Mode()&0o111 != 0 {
		mode = 0o755
	}
	return File{From: source, Mode: mode}, nil
}
