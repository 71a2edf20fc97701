package kubernetes

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

// The token of one node's node proxy gives nobody the identity of pods that run on other nodes, and the CA says who asked.
func TestTokenOfAnotherNode(t *testing.T) {
	namespace(t, "stolen", "enabled")
	apply(t, "apiVersion: v1\nkind: ServiceAccount\nmetadata: {namespace: stolen, name: treasurer}",
		pod("stolen", "treasurer", ", nodeName: n2, serviceAccountName: treasurer"),
		pod("stolen", "other", ", nodeName: n1"))
	ready(t, "stolen")
	const identity = "spiffe://cluster.local/ns/stolen/sa/treasurer"
	stolen := nodeProxyToken(t, "n1")

	// What the node has a pod of, and what its own node may have, are given: the way of asking is right.
	for token, own := range map[string]string{stolen: "spiffe://cluster.local/ns/stolen/sa/default", nodeProxyToken(t, "n2"): identity} {
		eventually(t, "a node proxy gets the identity of a pod that it runs", func() error {
			if answer := ask(t, token, own); !strings.HasPrefix(answer, "status 0:") {
				return fmt.Errorf("%s: %s", own, answer)
			}
			return nil
		})
	}
	since := time.Now().UTC().Format(time.RFC3339)
	answer := ask(t, stolen, identity)
	if !strings.HasPrefix(answer, "status 7:") || !strings.Contains(answer, "NoPodOnNode") || !strings.Contains(answer, "n1") {
		t.Fatalf("asked with the token of n1 for what runs on n2: %s", answer)
	}
	log := kubectl(t, "-n", mesh, "logs", "-l", "app.kubernetes.io/component=ca", "--tail=-1", "--since-time="+since)
	for _, line := range strings.Split(log, "\n") {
		if strings.Contains(line, "NoPodOnNode") && strings.Contains(line, identity) && strings.Contains(line, nodeProxy(t, "n1")) {
			return
		}
	}
	t.Errorf("the CA's log does not say that the node proxy of n1 asked for %s:\n%s", identity, log)
}

// nodeProxyToken is what a node proxy proves itself with, bound to its pod and node.
func nodeProxyToken(t *testing.T, node string) string {
	t.Helper()
	return kubectl(t, "-n", mesh, "create", "token", "culvert-node-proxy", "--audience=culvert.dev",
		"--bound-object-kind=Pod", "--bound-object-name="+nodeProxy(t, node))
}

// ask is askForCertificate in the cluster's network.
func ask(t *testing.T, token, identity string) string {
	t.Helper()
	address := kubectl(t, "-n", mesh, "get", "service", "culvert-ca", "-o", "jsonpath={.spec.clusterIP}") + ":15012"
	output, err := inside("ask", address, token, identity)
	if err != nil {
		t.Fatal(err)
	}
	return output
}

// askForCertificate is one call of istio.v1.auth.IstioCertificateService/CreateCertificate, by hand: a gRPC status and its message.
func askForCertificate(address, token, identity string) (string, error) {
	request, err := certificateRequest(identity)
	if err != nil {
		return "", err
	}
	// A Struct with one string of the name that node proxies use.
	entry := append(field(1, []byte("ImpersonatedIdentity")), field(2, field(3, []byte(identity)))...)
	message := append(field(1, request), field(4, field(1, entry))...)
	body := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message)))
	call, err := http.NewRequest(http.MethodPost, "https://"+address+"/istio.v1.auth.IstioCertificateService/CreateCertificate",
		bytes.NewReader(append(body, message...)))
	if err != nil {
		return "", err
	}
	call.Header = http.Header{"Content-Type": {"application/grpc"}, "Te": {"trailers"}, "Authorization": {"Bearer " + token}}
	// A thief does not care whether it is the right CA.
	transport := &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	answer, err := (&http.Client{Transport: transport, Timeout: 30 * time.Second}).Do(call)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	if _, err := io.Copy(io.Discard, answer.Body); err != nil {
		return "", err
	}
	// A refusal has its status in the head.
	status, text := answer.Trailer.Get("Grpc-Status"), answer.Trailer.Get("Grpc-Message")
	if status == "" {
		status, text = answer.Header.Get("Grpc-Status"), answer.Header.Get("Grpc-Message")
	}
	text, err = url.PathUnescape(text)
	return "status " + status + ": " + text, err
}

// field is a field of a protobuf message with a length.
func field(number byte, content []byte) []byte {
	return append(binary.AppendUvarint([]byte{number<<3 | 2}, uint64(len(content))), content...)
}

// certificateRequest is a PEM-encoded PKCS#10 request of a new key for an identity.
func certificateRequest(identity string) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	name, err := url.Parse(identity)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{name}}, key)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), err
}
