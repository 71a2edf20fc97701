package supervisor

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"culvert.dev/tests/cluster/internal/layout"
	"culvert.dev/tests/cluster/internal/process"
)

// Deadlines are generous: a busy machine is slow, and what fails, fails by ending.
const (
	startOfAPI   = 5 * time.Minute
	startOfNodes = 5 * time.Minute
	startOfDNS   = 5 * time.Minute
)

const (
	etcd              = "etcd"
	apiServer         = "kube-apiserver"
	controllerManager = "kube-controller-manager"
	scheduler         = "kube-scheduler"
)

// arguments of the control plane's programs.
func (s *supervisor) arguments(component string) ([]string, error) {
	pki := s.layout.Certificates()
	in := func(file string) string { return filepath.Join(pki, file) }
	config := in(component + ".conf")
	switch component {
	case etcd:
		return []string{
			"--data-dir=" + s.layout.State("etcd"), "--unsafe-no-fsync", "--log-level=warn",
			"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
			"--listen-peer-urls=http://127.0.0.1:2380",
		}, nil
	case apiServer:
		return []string{
			"--etcd-servers=http://127.0.0.1:2379",
			// There is no default route to guess the address from.
			"--advertise-address=" + layout.ControlPlane, "--bind-address=0.0.0.0",
			"--secure-port=" + strconv.Itoa(layout.ControlPort),
			"--tls-cert-file=" + in("apiserver.crt"), "--tls-private-key-file=" + in("apiserver.key"),
			"--client-ca-file=" + in("ca.crt"),
			"--kubelet-client-certificate=" + in("apiserver-kubelet.crt"), "--kubelet-client-key=" + in("apiserver-kubelet.key"),
			"--kubelet-certificate-authority=" + in("ca.crt"), "--kubelet-preferred-address-types=InternalIP",
			"--service-cluster-ip-range=" + strings.Join(layout.ServiceNetworks(), ","),
			"--service-account-issuer=https://kubernetes.default.svc." + layout.DNSDomain,
			"--service-account-signing-key-file=" + in("sa.key"), "--service-account-key-file=" + in("sa.pub"),
			"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
			// There is no kube-proxy here: webhooks are called at their endpoints.
			"--enable-aggregator-routing=true",
			"--endpoint-reconciler-type=lease", "--profiling=false",
		}, nil
	case controllerManager:
		return append(inControlPlane(config),
			"--use-service-account-credentials=true", "--root-ca-file="+in("ca.crt"),
			"--service-account-private-key-file="+in("sa.key"),
			"--cluster-signing-cert-file="+in("ca.crt"), "--cluster-signing-key-file="+in("ca.key"),
			"--allocate-node-cidrs=false", "--cluster-cidr="+strings.Join(layout.PodNetworks(), ","),
			"--service-cluster-ip-range="+strings.Join(layout.ServiceNetworks(), ","),
			// A node that is stopped is to be noticed within a test's patience.
			"--node-monitor-period=1s", "--node-monitor-grace-period=16s",
		), nil
	case scheduler:
		return inControlPlane(config), nil
	}
	return nil, fmt.Errorf("there is no component %q; there are %s, %s, %s and %s",
		component, etcd, apiServer, controllerManager, scheduler)
}

// inControlPlane are the flags that the clients of the API server in the control plane share.
func inControlPlane(config string) []string {
	return []string{
		"--kubeconfig=" + config, "--authentication-kubeconfig=" + config, "--authorization-kubeconfig=" + config,
		"--authentication-skip-lookup=true", "--leader-elect=false", "--bind-address=127.0.0.1", "--profiling=false",
		// The default of 20 requests per second delays controllers by seconds at their start.
		"--kube-api-qps=300", "--kube-api-burst=600",
	}
}

// startComponent starts one; the mutex is held.
func (s *supervisor) startComponent(name string) error {
	if running := s.components[name]; running != nil && running.Failure() == nil {
		return fmt.Errorf("%s runs already", name)
	}
	args, err := s.arguments(name)
	if err != nil {
		return err
	}
	d, err := process.Start(name, s.layout.Log(name+".log"), exec.Command(s.layout.Bin(name), args...))
	if err != nil {
		return err
	}
	s.components[name] = d
	return nil
}
