// Package pki writes the certificates, keys and kubeconfigs of a cluster.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"culvert.dev/tests/cluster/internal/layout"
)

// validity is longer than any cluster lives; it starts an hour ago for clocks that were set back.
const validity = 365 * 24 * time.Hour

// clients are the kubeconfigs that every cluster has: file name, user and groups.
var clients = []struct{ file, user, group string }{
	{"admin", "admin", "system:masters"},
	{"kube-controller-manager", "system:kube-controller-manager", ""},
	{"kube-scheduler", "system:kube-scheduler", ""},
	{"kube-proxy", "system:kube-proxy", ""},
	{"apiserver-kubelet", "kube-apiserver-kubelet-client", "system:masters"},
}

// Write fills dir with everything that the nodes and the control plane need: NAME.crt, NAME.key and, for clients,
// NAME.conf; ca.crt and ca.key; sa.key and sa.pub, which sign and verify service account tokens.
func Write(dir string, nodes []layout.Node) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	authority, err := newAuthority(dir)
	if err != nil {
		return err
	}
	if err := authority.server("apiserver", "kube-apiserver", "",
		layout.ControlPlane, layout.KubernetesService, "127.0.0.1", "localhost",
		"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc."+layout.DNSDomain); err != nil {
		return err
	}
	for _, c := range clients {
		if err := authority.client(c.file, c.user, c.group); err != nil {
			return err
		}
	}
	for _, node := range nodes {
		user := "system:node:" + node.Name
		if err := authority.client("kubelet-"+node.Name, user, "system:nodes"); err != nil {
			return err
		}
		if err := authority.server("kubelet-server-"+node.Name, user, "system:nodes",
			node.Name, node.Address().String(), "127.0.0.1"); err != nil {
			return err
		}
	}
	return writeTokenKeys(dir)
}

type authority struct {
	dir         string
	key         *ecdsa.PrivateKey
	certificate *x509.Certificate
	pem         []byte
}

func newAuthority(dir string) (*authority, error) {
	key, _, err := newKey(dir, "ca")
	if err != nil {
		return nil, err
	}
	template, err := template("kube-ca", "")
	if err != nil {
		return nil, err
	}
	template.IsCA = true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	encoded, err := writePEM(dir, "ca.crt", "CERTIFICATE", der, 0o644)
	return &authority{dir: dir, key: key, certificate: template, pem: encoded}, err
}

// server issues a serving certificate for addresses and names.
func (a *authority) server(file, user, group string, names ...string) error {
	c, err := template(user, group)
	if err != nil {
		return err
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			c.IPAddresses = append(c.IPAddresses, ip)
		} else {
			c.DNSNames = append(c.DNSNames, name)
		}
	}
	_, _, err = a.issue(file, c, x509.ExtKeyUsageServerAuth)
	return err
}

// client issues a client certificate and writes a kubeconfig that holds it.
func (a *authority) client(file, user, group string) error {
	c, err := template(user, group)
	if err != nil {
		return err
	}
	certificate, key, err := a.issue(file, c, x509.ExtKeyUsageClientAuth)
	if err != nil {
		return err
	}
	encode := base64.StdEncoding.EncodeToString
	config := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters:
- name: test
  cluster: {server: "https://%s:%d", certificate-authority-data: %s}
users:
- name: %q
  user: {client-certificate-data: %s, client-key-data: %s}
contexts:
- name: test
  context: {cluster: test, user: %q}
current-context: test
`, layout.ControlPlane, layout.ControlPort, encode(a.pem), user, encode(certificate), encode(key), user)
	return os.WriteFile(filepath.Join(a.dir, file+".conf"), []byte(config), 0o600)
}

func (a *authority) issue(file string, c *x509.Certificate, usage x509.ExtKeyUsage) (certificate, key []byte, err error) {
	c.KeyUsage = x509.KeyUsageDigitalSignature
	c.ExtKeyUsage = []x509.ExtKeyUsage{usage}
	private, key, err := newKey(a.dir, file)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, c, a.certificate, &private.PublicKey, a.key)
	if err != nil {
		return nil, nil, err
	}
	certificate, err = writePEM(a.dir, file+".crt", "CERTIFICATE", der, 0o644)
	return certificate, key, err
}

func template(user, group string) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	subject := pkix.Name{CommonName: user}
	if group != "" {
		subject.Organization = []string{group}
	}
	now := time.Now()
	return &x509.Certificate{
		SerialNumber:          serial,
		Subject:               subject,
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(validity),
		BasicConstraintsValid: true,
	}, nil
}

func newKey(dir, file string) (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	encoded, err := writePEM(dir, file+".key", "EC PRIVATE KEY", der, 0o600)
	return key, encoded, err
}

// writeTokenKeys makes the RSA pair of service account tokens: verifiers commonly expect RS256.
func writeTokenKeys(dir string) error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	if _, err := writePEM(dir, "sa.key", "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key), 0o600); err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return err
	}
	_, err = writePEM(dir, "sa.pub", "PUBLIC KEY", public, 0o644)
	return err
}

func writePEM(dir, file, kind string, der []byte, mode os.FileMode) ([]byte, error) {
	encoded := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	return encoded, os.WriteFile(filepath.Join(dir, file), encoded, mode)
}
