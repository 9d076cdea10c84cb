package cacerts

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"ambitmesh.dev/ambit/internal/mesh"
)

// stage is a part of the mesh that is restarted as one.
type stage string

const (
	stageIstiod   stage = "istiod"
	stageZtunnel  stage = "ztunnel"
	stageGateway  stage = "gateway"
	stageWaypoint stage = "waypoint"
)

const (
	// restartAnnotation on a Pod template holds the token of its last restart: that is what makes a rollout, and what remembers it.
	restartAnnotation = "admin.gloo.solo.io/restarted-for"
	managedLabel      = "gateway.istio.io/managed"
	// rolling bounds the rollouts of one stage at a time: each new proxy asks istiod for a certificate.
	rolling = 5
)

// workload is a Deployment or DaemonSet that may be restarted.
type workload struct {
	stage     stage
	resource  string // "deployments", "daemonsets"
	namespace string
	name      string
	token     string // of its last restart
	rolled    bool   // every Pod is of the present template, and available
	progress  string // "1/2"
	stuck     string // why its rollout can't end by itself
}

func (w workload) ref() string { return w.resource + "/" + w.namespace + "/" + w.name }

// workloadOf reads a Deployment or DaemonSet; ok is false for one that is none of Istio's.
func workloadOf(u *unstructured.Unstructured, resource, istioNamespace string) (w workload, ok bool) {
	template, _, _ := unstructured.NestedMap(u.Object, "spec", "template", "metadata")
	t := &unstructured.Unstructured{Object: map[string]any{"metadata": template}}
	w = workload{resource: resource, namespace: u.GetNamespace(), name: u.GetName(), token: t.GetAnnotations()[restartAnnotation]}
	managed := cmp.Or(t.GetLabels()[managedLabel], u.GetLabels()[managedLabel])
	switch {
	case resource == "deployments" && t.GetLabels()["app"] == "istiod" && w.namespace == istioNamespace:
		w.stage = stageIstiod
	case resource == "daemonsets" && t.GetLabels()["app"] == "ztunnel":
		w.stage = stageZtunnel
	case managed == "istio.io-mesh-controller":
		w.stage = stageWaypoint
	case managed != "", strings.Contains(t.GetAnnotations()["inject.istio.io/templates"], "gateway"):
		w.stage = stageGateway
	default:
		return workload{}, false
	}
	w.rollout(u)
	return w, true
}

// rollout reads how far the rollout of the present template is, as `kubectl rollout status` does.
func (w *workload) rollout(u *unstructured.Unstructured) {
	number := func(otherwise int64, path ...string) int64 {
		if n, ok, _ := unstructured.NestedInt64(u.Object, path...); ok {
			return n
		}
		return otherwise
	}
	seen := number(0, "status", "observedGeneration") >= u.GetGeneration()
	var want, updated, available, all int64
	if w.resource == "daemonsets" {
		want = number(0, "status", "desiredNumberScheduled")
		updated, available, all = number(0, "status", "updatedNumberScheduled"), number(0, "status", "numberAvailable"), want
		if kind, _, _ := unstructured.NestedString(u.Object, "spec", "updateStrategy", "type"); kind == "OnDelete" && updated < want {
			w.stuck = "its update strategy is OnDelete: delete its Pods, node by node"
		}
	} else {
		want = number(1, "spec", "replicas")
		updated, available, all = number(0, "status", "updatedReplicas"), number(0, "status", "availableReplicas"), number(0, "status", "replicas")
		if paused, _, _ := unstructured.NestedBool(u.Object, "spec", "paused"); paused && updated < want {
			w.stuck = "it is paused: run kubectl rollout resume"
		}
	}
	w.rolled = seen && updated >= want && available >= want && all <= updated
	w.progress = fmt.Sprintf("%d/%d", min(updated, available), want)
}

// evidence is what probes say that restarts hang on.
type evidence struct {
	// began is when the round began that found it; zero: there is none for the directive in force.
	began time.Time
	// istiods and maps say what is not as directed; empty: all is.
	istiods, maps string
}

// evidenceOf judges an observation by what istiod should sign with and hand out.
func evidenceOf(o mesh.TrustObservation, began time.Time, d *directive, signer mesh.Fingerprint) evidence {
	if o.Applied != d.applied {
		return evidence{istiods: "istiod has not been asked yet", maps: "not looked at yet"}
	}
	e := evidence{began: began}
	want := fingerprints(d.roots)
	if len(o.Istiods) == 0 {
		e.istiods = "no istiod answers"
	}
	for _, i := range o.Istiods {
		switch {
		case i.Error != "":
			e.istiods = i.Pod + ": " + i.Error
		case i.Signer != signer:
			e.istiods = i.Pod + " signs with another certificate"
		case !sameRoots(i.Roots, want):
			e.istiods = i.Pod + " hands out another bundle"
		default:
			continue
		}
		break
	}
	wrong := 0
	for _, g := range o.ConfigMaps {
		if !sameRoots(g.Roots, want) {
			if wrong == 0 && len(g.Examples) > 0 {
				e.maps = g.Examples[0]
			}
			wrong += g.Count
		}
	}
	if wrong > 0 {
		e.maps = fmt.Sprintf("the root ConfigMaps of %d namespaces hold another bundle, e.g. that of %s", wrong, e.maps)
	} else if len(o.ConfigMaps) == 0 {
		e.maps = "there is no root ConfigMap"
	}
	return e
}

func sameRoots(a, b []mesh.Fingerprint) bool {
	in := func(x, y []mesh.Fingerprint) bool {
		return !slices.ContainsFunc(x, func(f mesh.Fingerprint) bool { return !slices.Contains(y, f) })
	}
	return in(a, b) && in(b, a)
}

// step is what to do next about restarts.
type step struct {
	restart []workload // set the token on these
	token   string
	done    mesh.RestartOrder // tokens that are done now
	rolled  bool              // istiod has rolled out for its token
	doing   string            // for people; empty: nothing is under way
	problem string
}

// memory is what a restart has to remember beyond the cluster: it may be lost, and then only costs time.
type memory struct {
	// rolled is when istiod was first seen to have rolled out for a token; a probe that began before proves nothing of it.
	rolled map[string]time.Time
	// restarted are workloads that were given a token: whoever takes it off does not get a second restart.
	restarted map[string]string
}

// next decides about restarts: istiod first, then, when every replica has answered a probe with the new bundle and every namespace has it, ztunnel, gateways and waypoints, stage by
// stage. order, done: tokens wanted, and those of the last restarts done.
func next(order, done mesh.RestartOrder, all []workload, e evidence, m memory) step {
	s := step{done: done}
	if order.Istiod != "" && order.Istiod != done.Istiod {
		if s = roll(s, stageIstiod, order.Istiod, all, m); s.doing != "" {
			return s
		}
		s.rolled = true
		at, ok := m.rolled[order.Istiod]
		switch {
		case !ok || !e.began.After(at):
			s.doing = "istiod has restarted; waiting for every replica to be asked"
			return s
		case e.istiods != "":
			s.doing = "istiod has restarted; " + e.istiods
			return s
		}
		s.done.Istiod = order.Istiod
	}
	if order.DataPlane == "" || order.DataPlane == done.DataPlane {
		return s
	}
	switch {
	case e.istiods != "":
		s.doing = "before ztunnel: " + e.istiods
		return s
	case e.maps != "":
		s.doing = "before ztunnel: " + e.maps
		return s
	}
	for _, st := range []stage{stageZtunnel, stageGateway, stageWaypoint} {
		if s = roll(s, st, order.DataPlane, all, m); s.doing != "" {
			return s
		}
	}
	s.done.DataPlane = order.DataPlane
	return s
}

// roll restarts one stage; doing is empty when all of it has been restarted and is available.
func roll(s step, st stage, token string, all []workload, m memory) step {
	var under, waiting []workload
	count := 0
	for _, w := range all {
		if w.stage != st {
			continue
		}
		count++
		switch {
		case w.token != token && m.restarted[w.ref()] != token:
			waiting = append(waiting, w)
		case !w.rolled:
			under = append(under, w)
		}
	}
	if count == 0 && st == stageIstiod {
		s.doing = "istiod: none found"
		s.problem = "istiod can't be restarted: there is no Deployment with Pods labelled app=istiod in its namespace; restart it by hand where it runs"
		return s
	}
	room := rolling
	if st == stageIstiod { // one revision after the other
		room = 1
	}
	if free := room - len(under); free > 0 {
		s.restart, s.token = waiting[:min(free, len(waiting))], token
	}
	if len(under)+len(waiting) == 0 {
		return s
	}
	s.doing = fmt.Sprintf("%s: %d of %d restarted", st, count-len(under)-len(waiting), count)
	if len(under) > 0 {
		s.doing += fmt.Sprintf(", %s/%s %s ready", under[0].namespace, under[0].name, under[0].progress)
	}
	for _, w := range under {
		if w.stuck != "" {
			s.problem = fmt.Sprintf("the restart of %s %s/%s does not go on: %s", strings.TrimSuffix(w.resource, "s"), w.namespace, w.name, w.stuck)
		}
	}
	return s
}
