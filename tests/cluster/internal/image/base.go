package image

import (
	"fmt"
	"os/exec"
	"path"
	"strings"
)

// Names of the images that every cluster has. Nothing answers for the domain "test" (RFC 6761), so that a name that is
// missing cannot be fetched from anywhere.
const (
	Pause   = "cluster.test/pause:1"
	CoreDNS = "cluster.test/coredns:1"
	// Tools has the probe and busybox's commands.
	Tools = "cluster.test/tools:1"
)

// busybox is Debian's, linked statically.
const busybox = "/bin/busybox"

const searchPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// users are those that images run as.
var users = map[string]File{
	"/etc/passwd": {Text: "root:x:0:0:root:/:/bin/sh\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n", Mode: 0o644},
	"/etc/group":  {Text: "root:x:0:\nnonroot:x:65532:\n", Mode: 0o644},
	"/tmp":        {Dir: true, Mode: 0o1777},
}

// Base are the images of every cluster; bin says where a program was built.
func Base(bin func(string) string) ([]Image, error) {
	commands, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("%s does not run: %w; as root: apt-get install -y busybox-static", busybox, err)
	}
	tools := with(users, map[string]File{
		"/bin/probe":   {From: bin("probe"), Mode: 0o755},
		"/bin/busybox": {From: busybox, Mode: 0o755},
	})
	for _, command := range strings.Fields(string(commands)) {
		if target := path.Join("/bin", command); tools[target] == (File{}) {
			tools[target] = File{Link: "busybox"}
		}
	}
	return []Image{
		{
			Names:  []string{Pause},
			Files:  map[string]File{"/pause": {From: bin("pause"), Mode: 0o755}},
			Config: Config{Entrypoint: []string{"/pause"}, User: "65535:65535"},
		},
		{
			Names:  []string{CoreDNS},
			Files:  with(users, map[string]File{"/coredns": {From: bin("coredns"), Mode: 0o755}}),
			Config: Config{Entrypoint: []string{"/coredns"}, Env: []string{searchPath}},
		},
		{
			Names:  []string{Tools},
			Files:  tools,
			Config: Config{Cmd: []string{"/bin/sh"}, Env: []string{searchPath}},
		},
	}, nil
}

func with(sets ...map[string]File) map[string]File {
	all := map[string]File{}
	for _, set := range sets {
		for name, file := range set {
			all[name] = file
		}
	}
	return all
}
