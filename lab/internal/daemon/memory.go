package daemon

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Process is one process of the lab with its memory. RSS counts pages shared
// with other processes in full, PSS its share of them.
type Process struct {
	Component string `json:"component"` // kube/NAME, etcd, daemon, or pod/NAMESPACE-less Pod name
	Cluster   string `json:"cluster,omitempty"`
	PID       int    `json:"pid"` // in the lab's pid namespace
	RSS       int64  `json:"rssBytes"`
	PSS       int64  `json:"pssBytes"`
	Command   string `json:"command"`
}

// processes looks at everything in this pid namespace. What is no unit is a
// container: its environment, set as a kubelet sets it, names Pod and cluster.
func processes(units []*unit, clusterOf func(apiServer string) string) []Process {
	known := map[int]*unit{}
	for _, u := range units {
		u.mu.Lock()
		if u.pid > 0 {
			known[u.pid] = u
		}
		u.mu.Unlock()
	}
	var out []Process
	for _, pid := range pids() {
		p := Process{PID: pid}
		p.RSS, p.PSS = memory(pid)
		if p.RSS == 0 {
			continue // ended meanwhile, or a kernel thread
		}
		if exe, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/exe"); err == nil {
			p.Command = filepath.Base(exe)
		}
		switch u := known[pid]; {
		case pid == os.Getpid():
			p.Component = "daemon"
		case u != nil:
			p.Component, p.Cluster = u.name, u.cluster
		default:
			env := environ(pid)
			p.Component = "pod/" + env["HOSTNAME"]
			p.Cluster = clusterOf(env["KUBERNETES_SERVICE_HOST"])
		}
		out = append(out, p)
	}
	return out
}

// memory returns resident and proportional set size in bytes.
func memory(pid int) (rss, pss int64) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/smaps_rollup")
	if err != nil {
		return 0, 0
	}
	for line := range bytes.Lines(data) {
		f := bytes.Fields(line)
		if len(f) < 2 {
			continue
		}
		kib, _ := strconv.ParseInt(string(f[1]), 10, 64)
		switch string(f[0]) {
		case "Rss:":
			rss = kib << 10
		case "Pss:":
			pss = kib << 10
		}
	}
	return rss, pss
}

func environ(pid int) map[string]string {
	data, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
	out := map[string]string{}
	for kv := range strings.SplitSeq(string(data), "\x00") {
		if k, v, ok := strings.Cut(kv, "="); ok {
			out[k] = v
		}
	}
	return out
}
