package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
)

// etcdEndpoint is where the lab's only etcd serves all clusters, each by its own
// key prefix. It is a loopback address of the lab's network namespace: no Pod
// reaches it.
const etcdEndpoint = "http://127.0.0.1:2379"

// EtcdCommand is the lab's etcd, with its data in dir. bin is the "kube" binary.
// etcd stops on SIGTERM.
func EtcdCommand(bin, dir string) *exec.Cmd {
	cmd := command(bin, "etcd", dir,
		"--name=lab",
		"--data-dir="+filepath.Join(dir, "data"),
		"--listen-client-urls="+etcdEndpoint,
		"--advertise-client-urls="+etcdEndpoint,
		"--listen-peer-urls=http://127.0.0.1:2380",
		"--initial-advertise-peer-urls=http://127.0.0.1:2380",
		"--initial-cluster=lab=http://127.0.0.1:2380",
		"--log-level=warn",
		// Losing the last second at a power cut is fine for a lab; slow disks are not.
		"--unsafe-no-fsync",
		// Keep fewer old entries in memory.
		"--snapshot-count=5000",
	)
	return cmd
}

// clusterConfig mirrors lab/kube/config.go.
type clusterConfig struct {
	Name              string   `json:"name"`
	APIServer         []string `json:"apiserver"`
	ControllerManager []string `json:"controllerManager"`
	Scheduler         []string `json:"scheduler"`
}

// ClusterCommand is one process with the API server, the controller manager and the
// scheduler of all the clusters given: "kube cluster". It writes its configuration
// into the first cluster's folder. It needs etcd and the clusters' addresses, stops on
// SIGTERM with code 0, and ends with code 1 and the component's name on standard
// error when a component fails. bin is the "kube" binary.
func ClusterCommand(bin string, clusters ...Cluster) (*exec.Cmd, error) {
	if len(clusters) == 0 {
		return nil, errors.New("cluster command: no clusters")
	}
	var cfg struct {
		Clusters []clusterConfig `json:"clusters"`
	}
	for _, c := range clusters {
		if err := c.validate(); err != nil {
			return nil, err
		}
		cfg.Clusters = append(cfg.Clusters, clusterConfig{
			Name: c.Name, APIServer: c.apiServerFlags(), ControllerManager: c.controllerManagerFlags(), Scheduler: c.schedulerFlags(),
		})
	}
	raw, err := json.MarshalIndent(cfg, "", "  ")
	if err != nil {
		return nil, err
	}
	file := filepath.Join(clusters[0].Dir, "control-plane.json")
	if err := writeFile(file, append(raw, '\n'), 0o644); err != nil {
		return nil, fmt.Errorf("cluster command: %w", err)
	}
	return command(bin, "cluster", clusters[0].Dir, "--config", file), nil
}

// command calls a component of the multi-call binary by its name. The environment is
// built anew: a proxy for the host's network (HTTPS_PROXY) must not get the API
// server's calls to webhooks and kubelets.
func command(bin, name, dir string, args ...string) *exec.Cmd {
	cmd := exec.Command(bin)
	cmd.Args = append([]string{name}, args...)
	cmd.Dir = dir
	cmd.Env = []string{
		"PATH=/usr/local/bin:/usr/bin:/bin",
		"HOME=" + dir,
		// Memory is scarcer than processor time where several clusters share a laptop.
		"GOGC=50",
	}
	return cmd
}

func (c Cluster) apiServerFlags() []string {
	return []string{
		"--bind-address=" + c.NodeIP().String(),
		"--advertise-address=" + c.NodeIP().String(),
		fmt.Sprintf("--secure-port=%d", apiPort),
		"--etcd-servers=" + etcdEndpoint,
		"--etcd-prefix=/" + c.Name,
		"--tls-cert-file=" + c.pki("apiserver.crt"),
		"--tls-private-key-file=" + c.pki("apiserver.key"),
		"--client-ca-file=" + c.pki("client-ca.crt"),
		"--authorization-mode=Node,RBAC",
		"--allow-privileged=true",
		"--service-cluster-ip-range=" + c.ServiceCIDR().String(),
		"--service-account-issuer=" + Issuer,
		"--service-account-key-file=" + c.pki("service-account.pub"),
		"--service-account-signing-key-file=" + c.pki("service-account.key"),
		"--kubelet-preferred-address-types=InternalIP",
		"--kubelet-certificate-authority=" + c.CAFile(),
		"--kubelet-client-certificate=" + c.pki("kubelet-client.crt"),
		"--kubelet-client-key=" + c.pki("kubelet-client.key"),
		"--requestheader-client-ca-file=" + c.pki("front-proxy-ca.crt"),
		"--requestheader-allowed-names=front-proxy-client",
		"--requestheader-username-headers=X-Remote-User",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--proxy-client-cert-file=" + c.pki("front-proxy-client.crt"),
		"--proxy-client-key-file=" + c.pki("front-proxy-client.key"),
		// Webhooks named by Service are called at a Pod's address, without the detour
		// through the lab's service proxy.
		"--enable-aggregator-routing=true",
		// It taints each new node until a kubelet has reported its conditions.
		"--disable-admission-plugins=TaintNodesByCondition",
		"--profiling=false",
	}
}

func (c Cluster) controllerManagerFlags() []string {
	return []string{
		"--kubeconfig=" + c.controllerManagerKubeconfig(),
		"--secure-port=0",
		"--leader-elect=false",
		"--use-service-account-credentials=true",
		"--service-account-private-key-file=" + c.pki("service-account.key"),
		"--root-ca-file=" + c.CAFile(),
		"--controllers=*," + strings.Join(leftOutControllers(), ","),
		"--kube-api-qps=100",
		"--kube-api-burst=200",
		"--profiling=false",
	}
}

// leftOutControllers serve what the lab has not: a cloud, disks, devices, a metrics
// server, certificate requests of kubelets. The controllers that take finalizers off
// claims and volumes stay, since admission puts them on.
func leftOutControllers() []string {
	return []string{
		"-node-ipam-controller",
		"-persistentvolume-attach-detach-controller",
		"-persistentvolume-expander-controller",
		"-volumeattributesclass-protection-controller",
		"-selinux-warning-controller",
		"-resourceclaim-controller",
		"-device-taint-eviction-controller",
		"-resourcepoolstatusrequest-controller",
		"-podgroup-protection-controller",
		"-horizontal-pod-autoscaler-controller",
		"-certificatesigningrequest-signing-controller",
		"-certificatesigningrequest-approving-controller",
		"-certificatesigningrequest-cleaner-controller",
		"-podcertificaterequest-cleaner-controller",
		"-kube-apiserver-serving-clustertrustbundle-publisher-controller",
		"-storageversion-garbage-collector-controller",
		"-storage-version-migrator-controller",
		"-legacy-serviceaccount-token-cleaner-controller",
	}
}

func (c Cluster) schedulerFlags() []string {
	return []string{
		"--kubeconfig=" + c.schedulerKubeconfig(),
		"--secure-port=0",
		"--leader-elect=false",
		"--kube-api-qps=100",
		"--kube-api-burst=200",
		"--profiling=false",
	}
}
