package node

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	securejoin "github.com/cyphar/filepath-securejoin"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"

	"ambitmesh.dev/ambit/lab/internal/node/sandbox"
)

// status is the Pod's status now.
func (p *pod) status() corev1.PodStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.state
	s.api = p.api
	s.hostIP = p.node.cfg.NodeIP.String()
	s.init, s.main = statuses(p.init), statuses(p.main)
	if len(p.init) == 0 {
		s.initOK = true
	}
	st := podStatus(s, time.Now())
	p.state.previous = st.Conditions
	return st
}

func statuses(list []*container) []corev1.ContainerStatus {
	out := make([]corev1.ContainerStatus, len(list))
	for i, c := range list {
		c.status.DeepCopyInto(&out[i])
	}
	return out
}

// withStatus is the Pod with its present status, as virtual-kubelet wants to be told.
func (p *pod) withStatus() *corev1.Pod {
	st := p.status()
	out := p.current().DeepCopy()
	out.Status = st
	return out
}

// reportLoop reports the status whenever it has changed, until ctx ends.
func (p *pod) reportLoop(ctx context.Context) {
	var last *corev1.PodStatus
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.dirty:
		}
		now := p.withStatus()
		if last != nil && apiequality.Semantic.DeepEqual(*last, now.Status) {
			continue
		}
		last = &now.Status
		p.node.report(now)
	}
}

// references names the Secrets and ConfigMaps of a Pod, as "Secret/name" and "ConfigMap/name".
func references(p *corev1.Pod) map[string]bool {
	refs := map[string]bool{}
	for i := range p.Spec.Volumes {
		v := &p.Spec.Volumes[i]
		switch {
		case v.Secret != nil:
			refs["Secret/"+v.Secret.SecretName] = true
		case v.ConfigMap != nil:
			refs["ConfigMap/"+v.ConfigMap.Name] = true
		case v.Projected != nil:
			for _, s := range v.Projected.Sources {
				if s.Secret != nil {
					refs["Secret/"+s.Secret.Name] = true
				}
				if s.ConfigMap != nil {
					refs["ConfigMap/"+s.ConfigMap.Name] = true
				}
			}
		}
	}
	for _, c := range slices.Concat(p.Spec.InitContainers, p.Spec.Containers) {
		for _, f := range c.EnvFrom {
			if f.SecretRef != nil {
				refs["Secret/"+f.SecretRef.Name] = true
			}
			if f.ConfigMapRef != nil {
				refs["ConfigMap/"+f.ConfigMapRef.Name] = true
			}
		}
		for _, e := range c.Env {
			if e.ValueFrom == nil {
				continue
			}
			if r := e.ValueFrom.SecretKeyRef; r != nil {
				refs["Secret/"+r.Name] = true
			}
			if r := e.ValueFrom.ConfigMapKeyRef; r != nil {
				refs["ConfigMap/"+r.Name] = true
			}
		}
	}
	return refs
}

// volumeMounts lists the mounts of a container's volumes, parents before children.
func (p *pod) volumeMounts(api *corev1.Pod, c *corev1.Container, expand func(string) string) ([]sandbox.Mount, error) {
	var out []sandbox.Mount
	for _, m := range c.VolumeMounts {
		i := slices.IndexFunc(api.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name })
		if i < 0 {
			continue // refused by the API server
		}
		v := &api.Spec.Volumes[i]
		source := p.volumes.Path(v)
		sub := m.SubPath
		if m.SubPathExpr != "" {
			sub = expand(m.SubPathExpr)
		}
		if sub != "" {
			var err error
			if source, err = securejoin.SecureJoin(source, sub); err != nil {
				return nil, err
			}
			if v.EmptyDir != nil || v.HostPath != nil {
				if _, err := os.Stat(source); err != nil {
					if err := os.MkdirAll(source, 0o777); err != nil {
						return nil, err
					}
				}
			}
		}
		writable := v.EmptyDir != nil || v.HostPath != nil
		out = append(out, sandbox.Mount{Source: source, Target: filepath.Clean(m.MountPath), ReadOnly: m.ReadOnly || !writable})
	}
	slices.SortStableFunc(out, func(a, b sandbox.Mount) int {
		return strings.Count(a.Target, "/") - strings.Count(b.Target, "/")
	})
	return out, nil
}

// broadcast wakes all that wait: wait returns a channel that the next fire closes. The zero value works.
type broadcast struct {
	mu sync.Mutex
	c  chan struct{}
}

func (s *broadcast) wait() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.c == nil {
		s.c = make(chan struct{})
	}
	return s.c
}

func (s *broadcast) fire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.c != nil {
		close(s.c)
		s.c = nil
	}
}
