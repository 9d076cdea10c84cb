package cacerts

import (
	"encoding/json"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"ambitmesh.dev/ambit/internal/mesh"
)

// Annotations of the Secret of keys: the tokens of the last restarts done, so that an agent that starts does not restart anything twice.
const (
	doneIstiod    = "admin.gloo.solo.io/restarted-istiod"
	doneDataPlane = "admin.gloo.solo.io/restarted-data-plane"
)

func doneOf(keys *secret) mesh.RestartOrder {
	if keys == nil {
		return mesh.RestartOrder{}
	}
	return mesh.RestartOrder{Istiod: keys.annotations[doneIstiod], DataPlane: keys.annotations[doneDataPlane]}
}

func setDone(u *unstructured.Unstructured, done mesh.RestartOrder) {
	a := u.GetAnnotations()
	if a == nil {
		a = map[string]string{}
	}
	for k, v := range map[string]string{doneIstiod: done.Istiod, doneDataPlane: done.DataPlane} {
		if v != "" {
			a[k] = v
		}
	}
	u.SetAnnotations(a)
}

// restart takes the next step of the restarts that are asked for. cacerts is as directed.
func (p *pass) restart() {
	order, done := p.d.Restart, p.state.Restarted.Done
	if (order.Istiod == "" || order.Istiod == done.Istiod) && (order.DataPlane == "" || order.DataPlane == done.DataPlane) {
		return
	}
	p.wait = min(p.wait, pollRestart)
	all, err := p.workloads()
	listed := time.Now() // not when the pass began: a probe that began meanwhile may have met a replica from before
	if err != nil {
		p.problem(err)
		p.state.Restarted.Doing = "can't see what there is to restart"
		return
	}
	m := p.k.memory
	s := next(order, done, all, evidenceOf(p.observed, p.began, p.d, p.state.Signer), m)
	if _, seen := m.rolled[order.Istiod]; s.rolled && !seen {
		clear(m.rolled) // of earlier tokens
		m.rolled[order.Istiod] = listed
		p.k.cfg.Changed() // have it looked at
	}
	p.state.Restarted.Doing = s.doing
	if s.problem != "" {
		p.state.Problems = append(p.state.Problems, s.problem)
	}
	for _, w := range s.restart {
		if err := p.bounce(w, s.token); err != nil {
			text := fmt.Errorf("restart %s %s/%s: %w", w.stage, w.namespace, w.name, err)
			if apierrors.IsForbidden(err) {
				if w.stage == stageGateway || w.stage == stageWaypoint {
					// A restart only hastens what its own renewal does, at half of its certificate's life; what counts is seen by probes.
					m.restarted[w.ref()] = s.token
				}
				text = fmt.Errorf("the agent may not restart %s %s/%s: name its namespace in glooAgent.trust.restartNamespaces of the chart, or restart it by hand (kubectl rollout restart); a gateway or waypoint goes on by itself when it renews its certificate", w.stage, w.namespace, w.name)
			}
			p.problem(text)
			continue
		}
		m.restarted[w.ref()] = s.token
		p.k.cfg.Log.Info("restarted", "stage", string(w.stage), "namespace", w.namespace, "name", w.name, "token", s.token)
	}
	if s.done != done {
		if p.saveKeys(p.keys.data, s.done) {
			p.state.Restarted.Done = s.done
			p.k.cfg.Log.Info("restarts done", "istiod", s.done.Istiod, "dataPlane", s.done.DataPlane)
		}
	}
}

// workloads lists what may be restarted, in pages: only Istio's own is kept.
func (p *pass) workloads() ([]workload, error) {
	var out []workload
	for _, resource := range []string{"deployments", "daemonsets"} {
		client := p.k.cfg.Client.Resource(schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: resource})
		opts := metav1.ListOptions{Limit: 100}
		for {
			list, err := client.List(p.ctx, opts)
			if err != nil {
				return nil, fmt.Errorf("list %s: %w", resource, err)
			}
			for i := range list.Items {
				if w, ok := workloadOf(&list.Items[i], resource, p.k.cfg.IstioNamespace); ok {
					out = append(out, w)
				}
			}
			if opts.Continue = list.GetContinue(); opts.Continue == "" {
				break
			}
		}
	}
	return out, nil
}

// bounce makes a workload roll out, as `kubectl rollout restart` does.
func (p *pass) bounce(w workload, token string) error {
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{"template": map[string]any{"metadata": map[string]any{"annotations": map[string]any{restartAnnotation: token}}}}})
	if err != nil {
		return err
	}
	client := p.k.cfg.Client.Resource(schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: w.resource}).Namespace(w.namespace)
	_, err = client.Patch(p.ctx, w.name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: mesh.FieldManager})
	return err
}
