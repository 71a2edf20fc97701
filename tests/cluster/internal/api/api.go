// Package api asks a cluster's API server what the cluster itself must know; everything else is kubectl's business.
package api

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"culvert.dev/tests/cluster/internal/layout"
)

// Client asks as cluster-admin.
type Client struct {
	http *http.Client
	base string
}

// New reads the credentials that pki wrote.
func New(certificates string) (*Client, error) {
	authority, err := os.ReadFile(filepath.Join(certificates, "ca.crt"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(authority) {
		return nil, fmt.Errorf("%s/ca.crt holds no certificate", certificates)
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(certificates, "admin.crt"), filepath.Join(certificates, "admin.key"))
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}}}
	return &Client{
		http: &http.Client{Transport: transport, Timeout: 10 * time.Second},
		base: fmt.Sprintf("https://%s:%d", layout.ControlPlane, layout.ControlPort),
	}, nil
}

func (c *Client) get(ctx context.Context, path string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+path, nil)
	if err != nil {
		return nil, err
	}
	answer, err := c.http.Do(request)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return nil, err
	}
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answers %s: %.300s", path, answer.Status, body)
	}
	return body, nil
}

// Ready is nil when the API server is.
func (c *Client) Ready(ctx context.Context) error {
	_, err := c.get(ctx, "/readyz")
	return err
}

// Exists is nil when there is an object at path.
func (c *Client) Exists(ctx context.Context, path string) error {
	_, err := c.get(ctx, path)
	return err
}

type condition struct {
	Type    string `json:"type"`
	Status  string `json:"status"`
	Message string `json:"message"`
}

type object struct {
	Metadata struct {
		Name string `json:"name"`
	} `json:"metadata"`
	Status struct {
		Conditions []condition `json:"conditions"`
	} `json:"status"`
}

// NodeReady is nil when the node has said so itself: its condition is True.
func (c *Client) NodeReady(ctx context.Context, name string) error {
	return c.holds(ctx, "/api/v1/nodes/"+name, "Ready")
}

// NodeGone is nil when the control plane no longer takes the node for ready.
func (c *Client) NodeGone(ctx context.Context, name string) error {
	if err := c.NodeReady(ctx, name); err == nil {
		return fmt.Errorf("node %s is still taken for Ready", name)
	}
	return nil
}

// DeploymentAvailable is nil when a Deployment has its replicas.
func (c *Client) DeploymentAvailable(ctx context.Context, namespace, name string) error {
	return c.holds(ctx, "/apis/apps/v1/namespaces/"+namespace+"/deployments/"+name, "Available")
}

func (c *Client) holds(ctx context.Context, path, wanted string) error {
	body, err := c.get(ctx, path)
	if err != nil {
		return err
	}
	var o object
	if err := json.Unmarshal(body, &o); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	for _, held := range o.Status.Conditions {
		if held.Type != wanted {
			continue
		}
		if held.Status == "True" {
			return nil
		}
		return fmt.Errorf("%s is not %s: %s", o.Metadata.Name, wanted, held.Message)
	}
	return fmt.Errorf("%s has no condition %s yet", o.Metadata.Name, wanted)
}
