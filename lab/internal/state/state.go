// Package state is the lab's state directory: which clusters there are, which
// ports of 127.0.0.1 they have, and where the files are.
//
// In goes a directory and what the person asked for; out come a Lab value, its
// file lab.json, and opened listeners. It must not start processes and must
// remove nothing that the lab did not make.
package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Mgmt is the management cluster; it is always there and has index 0.
const Mgmt = "mgmt"

// Unregistered is the cluster that starts without an agent, for people to
// register themselves.
const Unregistered = "prod-eu-west-3"

// MaxClusters is what the address plan (10.x, x = 10 + index) has room for.
const MaxClusters = 240

// Cluster is one cluster of a lab.
type Cluster struct {
	Name       string `json:"name"`
	Index      int    `json:"index"`
	Port       int    `json:"port"`       // of the API server on 127.0.0.1, as people reach it
	Registered bool   `json:"registered"` // the lab registers it with the management plane
}

// Lab is what lab.json holds: a lab that runs, or ran until its daemon died.
type Lab struct {
	Clusters   []Cluster `json:"clusters"`
	UIPort     int       `json:"uiPort"`
	OneProcess bool      `json:"oneProcess"` // all control planes in one process
	NoMgmt     bool      `json:"noMgmt"`     // without the management plane
	// Trust says where the istiods have their CA from.
	Trust     Trust         `json:"trust"`
	SecretTTL time.Duration `json:"secretTTL,omitempty"` // life of workload certificates; 24 h when zero
	Traffic   bool          `json:"traffic,omitempty"`   // namespace shop, whose applications never rest

	Kube       string    `json:"kube"` // binary with the control planes
	IstioDir   string    `json:"istioDir"`
	GatewayDir string    `json:"gatewayAPIDir"`
	Daemon     Process   `json:"daemon"`
	Started    time.Time `json:"started"`
}

// Trust is where istiods have their certificate authority from.
type Trust string

// The kinds of trust.
const (
	TrustShared   Trust = "shared"   // intermediates under one root of the lab, plugged in by hand
	TrustSeparate Trust = "separate" // each istiod makes a root of its own
	TrustPolicy   Trust = "policy"   // the management plane issues intermediates, as a RootTrustPolicy says
)

// Process identifies a process beyond the life of its number.
type Process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks since boot, /proc/PID/stat field 22
}

var clusterName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// Clusters reads the value of --clusters: a number of workload clusters, of
// which the last is the unregistered one, or a comma-separated list of names.
func Clusters(spec string) ([]Cluster, error) {
	var names []string
	if n, err := strconv.Atoi(spec); err == nil {
		if n < 0 || n >= MaxClusters {
			return nil, fmt.Errorf("--clusters %d: want 0 to %d workload clusters", n, MaxClusters-1)
		}
		for i := 1; i <= n; i++ {
			names = append(names, "cluster-"+strconv.Itoa(i))
		}
		if n > 1 {
			names[n-1] = Unregistered
		}
	} else {
		names = strings.Split(spec, ",")
	}
	out := []Cluster{{Name: Mgmt}}
	for _, name := range names {
		name = strings.TrimSpace(name)
		switch {
		case name == Mgmt:
			continue // always there
		case !clusterName.MatchString(name):
			return nil, fmt.Errorf("--clusters: %q is no cluster name: lower case letters, digits and '-', at most 63", name)
		case slices.ContainsFunc(out, func(c Cluster) bool { return c.Name == name }):
			return nil, fmt.Errorf("--clusters: %q is listed twice", name)
		}
		out = append(out, Cluster{Name: name, Index: len(out), Registered: name != Unregistered})
	}
	if len(out) > MaxClusters {
		return nil, fmt.Errorf("--clusters: %d clusters, at most %d fit the address plan", len(out), MaxClusters)
	}
	return out, nil
}

// Names are the clusters' names, mgmt first.
func (l *Lab) Names() []string {
	names := make([]string, len(l.Clusters))
	for i, c := range l.Clusters {
		names[i] = c.Name
	}
	return names
}

// Cluster finds a cluster by name.
func (l *Lab) Cluster(name string) (Cluster, error) {
	for _, c := range l.Clusters {
		if c.Name == name {
			return c, nil
		}
	}
	return Cluster{}, fmt.Errorf("no cluster %q in this lab; there are %s", name, strings.Join(l.Names(), ", "))
}

// Dir is a state directory (an absolute path).
type Dir string

// Open makes path absolute; it creates nothing.
func Open(path string) (Dir, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("state directory %s: %w", path, err)
	}
	return Dir(abs), nil
}

// The entries of a state directory. Everything the lab makes is in one of them.

func (d Dir) file() string { return d.join("lab.json") }
func (d Dir) lock() string { return d.join("lock") }

// Socket is the control socket of the daemon.
func (d Dir) Socket() string { return d.join("lab.sock") }

// Kubeconfig is for people: API servers at their ports of 127.0.0.1.
func (d Dir) Kubeconfig() string { return d.join("kubeconfig") }

// InnerKubeconfig has the same contexts and user, with addresses inside the lab.
func (d Dir) InnerKubeconfig() string { return d.join("clusters", "kubeconfig") }

// Clusters has a folder for each cluster.
func (d Dir) Clusters() string { return d.join("clusters") }

// Cluster is the folder of one cluster.
func (d Dir) Cluster(name string) string { return d.join("clusters", name) }

// People has the certificates of people.
func (d Dir) People() string { return d.join("people") }

// Etcd is etcd's data folder.
func (d Dir) Etcd() string { return d.join("etcd") }

// Images has the programs that stand for images.
func (d Dir) Images() string { return d.join("images") }

// Bin has programs for people (kubectl, meshctl) and those that Images links to.
func (d Dir) Bin() string { return d.join("bin") }

// Logs has a file for each component.
func (d Dir) Logs() string { return d.join("logs") }

// LogOf is the log of a component, e.g. kube/mgmt.
func (d Dir) LogOf(component string) string {
	return d.join("logs", strings.ReplaceAll(component, "/", "-")+".log")
}

// DaemonLog is the log of the daemon itself.
func (d Dir) DaemonLog() string { return d.LogOf("daemon") }

func (d Dir) join(elem ...string) string {
	return filepath.Join(append([]string{string(d)}, elem...)...)
}

// ErrNoLab says that a state directory has no lab.
var ErrNoLab = errors.New("no lab here")

// Load reads lab.json; the error is ErrNoLab when there is none.
func (d Dir) Load() (*Lab, error) {
	data, err := os.ReadFile(d.file())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", d, ErrNoLab)
	}
	if err != nil {
		return nil, fmt.Errorf("read lab state: %w", err)
	}
	var l Lab
	if err := json.Unmarshal(data, &l); err != nil {
		return nil, fmt.Errorf("%s is damaged (%w); `lab down --state %s` clears it", d.file(), err, d)
	}
	return &l, nil
}

// Save writes lab.json whole or not at all.
func (d Dir) Save(l *Lab) error {
	data, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return fmt.Errorf("encode lab state: %w", err)
	}
	tmp := d.file() + ".tmp"
	if err := os.WriteFile(tmp, append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("write lab state: %w", err)
	}
	if err := os.Rename(tmp, d.file()); err != nil {
		return fmt.Errorf("write lab state: %w", err)
	}
	return nil
}

// Make creates the directory and those below it.
func (d Dir) Make() error {
	for _, p := range []string{string(d), d.Logs(), d.Images(), d.Bin(), d.Etcd(), d.Clusters()} {
		if err := os.MkdirAll(p, 0o755); err != nil {
			return fmt.Errorf("state directory: %w", err)
		}
	}
	return nil
}

// Clear removes what a lab leaves: everything but its logs and lab.json, so
// that the next start is fresh but has the same ports.
func (d Dir) Clear() error {
	return remove(d.Socket(), d.Kubeconfig(), d.Etcd(), d.Clusters(), d.People(), d.Images())
}

// Remove removes all that a lab made, and the directory if nothing else is in it.
func (d Dir) Remove() error {
	err := remove(d.Socket(), d.Kubeconfig(), d.Etcd(), d.Clusters(), d.People(), d.Images(), d.Bin(), d.Logs(), d.file(), d.lock())
	if err != nil {
		return err
	}
	_ = os.Remove(string(d)) // fails when people keep files of their own there: then it stays
	return nil
}

func remove(paths ...string) error {
	for _, p := range paths {
		if err := os.RemoveAll(p); err != nil {
			return fmt.Errorf("remove lab state: %w", err)
		}
	}
	return nil
}
