package pki

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"

	"culvert.dev/tests/cluster/internal/layout"
)

func TestEveryCertificateIsTheClustersAndForItsUse(t *testing.T) {
	dir := t.TempDir()
	if err := Write(dir, layout.Nodes(2)); err != nil {
		t.Fatal(err)
	}
	authority, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(authority)
	for _, c := range []struct {
		file, user, group, name string
		usage                   x509.ExtKeyUsage
	}{
		{"apiserver", "kube-apiserver", "", "kubernetes.default.svc", x509.ExtKeyUsageServerAuth},
		{"apiserver", "kube-apiserver", "", layout.ControlPlane, x509.ExtKeyUsageServerAuth},
		{"kubelet-server-n2", "system:node:n2", "system:nodes", "10.123.0.12", x509.ExtKeyUsageServerAuth},
		{"kubelet-n2", "system:node:n2", "system:nodes", "", x509.ExtKeyUsageClientAuth},
		{"admin", "admin", "system:masters", "", x509.ExtKeyUsageClientAuth},
	} {
		pair, err := tls.LoadX509KeyPair(filepath.Join(dir, c.file+".crt"), filepath.Join(dir, c.file+".key"))
		if err != nil {
			t.Fatal(err)
		}
		_, err = pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: c.name, KeyUsages: []x509.ExtKeyUsage{c.usage}})
		if err != nil {
			t.Errorf("%s: %v", c.file, err)
		}
		subject := pair.Leaf.Subject
		if subject.CommonName != c.user || (c.group != "" && subject.Organization[0] != c.group) {
			t.Errorf("%s is %s", c.file, subject)
		}
	}
	for _, private := range []string{"ca.key", "sa.key", "admin.key", "admin.conf"} {
		info, err := os.Stat(filepath.Join(dir, private))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s is %o", private, info.Mode().Perm())
		}
	}
}
