package apply_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	securityv2 "ambitmesh.dev/ambit/api/security/v2"
	"ambitmesh.dev/ambit/internal/apply"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/test/kubetest"
)

// istio installs Istio's own definitions of its policies.
func istio(t *testing.T, cfg *rest.Config) {
	t.Helper()
	kube := kubetest.Client(t, cfg)
	raw, err := os.ReadFile("testdata/security.istio.io.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for doc := range strings.SplitSeq(string(raw), "\n---\n") {
		var crd apiextensionsv1.CustomResourceDefinition
		if err := yaml.UnmarshalStrict([]byte(doc), &crd); err != nil {
			t.Fatal(err)
		}
		if err := kube.Create(t.Context(), &crd); err != nil && !apierrors.IsAlreadyExists(err) {
			t.Fatal(err)
		}
		within(t, 10*time.Second, func() bool {
			_ = kube.Get(t.Context(), client.ObjectKeyFromObject(&crd), &crd)
			return slices.ContainsFunc(crd.Status.Conditions, func(c apiextensionsv1.CustomResourceDefinitionCondition) bool {
				return c.Type == apiextensionsv1.Established && c.Status == apiextensionsv1.ConditionTrue
			})
		}, func() string { return "CRD " + crd.Name + " is not established" })
	}
}

// policy is a manifest from YAML, with our label.
func policy(t *testing.T, kind, namespace, name, spec string) map[string]any {
	t.Helper()
	m := map[string]any{
		"apiVersion": "security.istio.io/v1", "kind": kind,
		"metadata": map[string]any{"name": name, "namespace": namespace, "labels": map[string]any{apply.OwnerLabel: apply.OwnerValue}},
	}
	var s map[string]any
	if err := yaml.Unmarshal([]byte(spec), &s); err != nil {
		t.Fatal(err)
	}
	m["spec"] = s
	return m
}

const (
	denyAll  = "{action: ALLOW, selector: {matchLabels: {app: billing}}}"
	payments = "{action: ALLOW, selector: {matchLabels: {app: billing}}, rules: [{from: [{source: {principals: [cluster.local/ns/payments/sa/payments]}}]}]}"
	targeted = "{action: ALLOW, targetRefs: [{kind: Service, group: '', name: billing}], rules: [{from: [{source: {principals: [cluster.local/ns/payments/sa/payments]}}]}]}"
)

// kubectl runs the real one.
func (a *agent) kubectl(stdin string, args ...string) {
	a.t.Helper()
	cmd := exec.Command(filepath.Join(os.Getenv("KUBEBUILDER_ASSETS"), "kubectl"), append([]string{"--kubeconfig", kubetest.Kubeconfig(a.t, kubetest.Start(a.t))}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		a.t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// patch is a JSON merge patch by a manager.
func (a *agent) patch(ref mesh.Ref, manager, text string) {
	a.t.Helper()
	raw, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		a.t.Fatal(err)
	}
	if err := a.kube.Patch(context.Background(), a.get(ref), client.RawPatch("application/merge-patch+json", raw), client.FieldOwner(manager)); err != nil {
		a.t.Fatal(err)
	}
}

func spec(u *unstructured.Unstructured) any {
	if u == nil {
		return "<gone>"
	}
	raw, _ := json.Marshal(u.Object["spec"])
	var out any
	_ = json.Unmarshal(raw, &out)
	return out
}

// until waits for an outcome.
func (a *agent) until(ref mesh.Ref, what string, ok func(mesh.Outcome) bool) mesh.Outcome {
	a.t.Helper()
	var got mesh.Outcome
	within(a.t, 10*time.Second, func() bool { got, _ = a.outcome(ref); return ok(got) }, func() string { return fmt.Sprintf("%s: outcome %+v, drift %+v", what, got, got.Drift) })
	return got
}

func (a *agent) events(ref mesh.Ref) []corev1.Event {
	a.t.Helper()
	var list corev1.EventList
	if err := a.kube.List(context.Background(), &list, client.InNamespace(ref.Namespace)); err != nil {
		a.t.Fatal(err)
	}
	return slices.DeleteFunc(list.Items, func(e corev1.Event) bool {
		return e.InvolvedObject.Name != ref.Name || e.InvolvedObject.Kind != ref.Kind
	})
}

// What people do to a policy by hand, and what becomes of it: it is put back, and said who did what.
func TestPolicyDriftIsPutBackAndAttributed(t *testing.T) {
	cfg := kubetest.Start(t)
	istio(t, cfg)
	a := start(t, cfg)
	rulesAdded := `{"spec":{"rules":[{"from":[{"source":{"principals":["*"]}}]}]}}`
	manifest := func(ns, name, spec string) string {
		return fmt.Sprintf("{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: %s, namespace: %s}, spec: %s}", name, ns, spec)
	}
	for i, tc := range []struct {
		name, spec string
		do         func(a *agent, ref mesh.Ref)
		manager    string
		operation  string
		what       string
	}{
		{
			"rules added to the deny-all", denyAll, func(a *agent, r mesh.Ref) { a.patch(r, "kubectl-edit", rulesAdded) }, "kubectl-edit", "Update",
			`spec.rules: [{"from":[{"source":{"principals":["*"]}}]}] added`,
		},
		{
			"rules added to the deny-all by server-side apply", denyAll, func(a *agent, r mesh.Ref) {
				a.kubectl(manifest(r.Namespace, r.Name, "{rules: [{}]}"), "apply", "--server-side", "--force-conflicts", "-f", "-")
			}, "kubectl", "Apply", `spec.rules: [{}] added`,
		},
		{"action changed to DENY", payments, func(a *agent, r mesh.Ref) { a.patch(r, "kubectl-edit", "spec: {action: DENY}") }, "kubectl-edit", "Update", `spec.action: "DENY" instead of "ALLOW"`},
		{
			"action changed, by the real kubectl edit", payments, func(a *agent, r mesh.Ref) {
				t.Setenv("KUBE_EDITOR", "sed -i s/ALLOW/DENY/")
				a.kubectl("", "-n", r.Namespace, "edit", "authorizationpolicy", r.Name)
			}, "kubectl-edit", "Update", `spec.action: "DENY" instead of "ALLOW"`,
		},
		{"action changed to AUDIT", payments, func(a *agent, r mesh.Ref) { a.patch(r, "kubectl-edit", "spec: {action: AUDIT}") }, "kubectl-edit", "Update", `spec.action: "AUDIT" instead of "ALLOW"`},
		{
			"selector narrowed by one more label", denyAll, func(a *agent, r mesh.Ref) {
				a.patch(r, "kubectl-edit", "spec: {selector: {matchLabels: {version: v9}}}")
			}, "kubectl-edit", "Update",
			`spec.selector.matchLabels.version: "v9" added`,
		},
		{
			"selector widened", denyAll, func(a *agent, r mesh.Ref) { a.patch(r, "kubectl-patch", "spec: {selector: null}") }, "", "",
			`spec.selector: {"matchLabels":{"app":"billing"}} removed`,
		},
		{
			"selector exchanged for targetRefs", payments, func(a *agent, r mesh.Ref) {
				a.patch(r, "kubectl-edit", "spec: {selector: null, targetRefs: [{kind: Service, group: '', name: other}]}")
			}, "kubectl-edit", "Update", `spec.selector: {"matchLabels":{"app":"billing"}} removed; spec.targetRefs: [{"group":"","kind":"Service","name":"other"}] added`,
		},
		{
			"one more targetRef", targeted, func(a *agent, r mesh.Ref) {
				a.patch(r, "kubectl-edit", "spec: {targetRefs: [{kind: Service, group: '', name: billing}, {kind: Service, group: '', name: other}]}")
			}, "kubectl-edit", "Update", `spec.targetRefs[1]: {"group":"","kind":"Service","name":"other"} added`,
		},
		{
			"any principal, by kubectl edit", payments, func(a *agent, r mesh.Ref) { a.patch(r, "kubectl-edit", rulesAdded) }, "kubectl-edit", "Update",
			`spec.rules[0].from[0].source.principals: ["*"] instead of ["cluster.local/ns/payments/sa/payments"]`,
		},
		{
			"any principal, by kubectl apply --server-side --force-conflicts", payments, func(a *agent, r mesh.Ref) {
				a.kubectl(manifest(r.Namespace, r.Name, `{rules: [{from: [{source: {principals: ["*"]}}]}]}`), "apply", "--server-side", "--force-conflicts", "-f", "-")
			}, "kubectl", "Apply", `spec.rules[0].from[0].source.principals: ["*"] instead of ["cluster.local/ns/payments/sa/payments"]`,
		},
		{
			"any principal, by kubectl patch", payments, func(a *agent, r mesh.Ref) {
				a.kubectl("", "-n", r.Namespace, "patch", "authorizationpolicy", r.Name, "--type=merge", "-p", rulesAdded)
			}, "kubectl-patch", "Update", `spec.rules[0].from[0].source.principals: ["*"] instead of ["cluster.local/ns/payments/sa/payments"]`,
		},
		{
			"one more rule", payments, func(a *agent, r mesh.Ref) {
				a.patch(r, "argocd-controller", "spec: {rules: [{from: [{source: {principals: [cluster.local/ns/payments/sa/payments]}}]}, {}]}")
			}, "argocd-controller", "Update", `spec.rules[1]: {} added`,
		},
		{
			"switched off as a dry run", denyAll, func(a *agent, r mesh.Ref) {
				a.kubectl("", "-n", r.Namespace, "annotate", "authorizationpolicy", r.Name, "istio.io/dry-run=true")
			}, "kubectl-annotate", "Update", `metadata.annotations["istio.io/dry-run"]: "true" added`,
		},
		{
			"switched off by a revision", denyAll, func(a *agent, r mesh.Ref) {
				a.kubectl("", "-n", r.Namespace, "label", "authorizationpolicy", r.Name, "istio.io/rev=none")
			}, "kubectl-label", "Update", `metadata.labels["istio.io/rev"]: "none" added`,
		},
		{"deleted", payments, func(a *agent, r mesh.Ref) {
			a.kubectl("", "-n", r.Namespace, "delete", "authorizationpolicy", r.Name, "--wait=false")
		}, "", "Delete", "deleted"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a.t = t
			ns := kubetest.Namespace(t, a.kube)
			m := policy(t, "AuthorizationPolicy", ns, fmt.Sprintf("accesspolicy-%d", i), tc.spec)
			a.want(true, m)
			a.acked(m)
			uid, desired := a.get(refOf(m)).GetUID(), m["spec"]
			edited := time.Now()
			tc.do(a, refOf(m))
			var now *unstructured.Unstructured
			within(t, 10*time.Second, func() bool {
				now = a.get(refOf(m))
				return now != nil && (now.GetUID() != uid || tc.operation != "Delete") && cmp.Equal(desired, spec(now)) && now.GetAnnotations()["istio.io/dry-run"] == "" && now.GetLabels()["istio.io/rev"] == ""
			}, func() string { return "not put back:\n" + cmp.Diff(desired, spec(now)) })
			took := time.Since(edited)
			t.Logf("put back %s after the edit began", took.Round(time.Millisecond))
			if took > 2*time.Second {
				t.Errorf("put back after %s: want less than 2 s", took)
			}
			o := a.until(refOf(m), "corrected", func(o mesh.Outcome) bool { return o.OK && !o.Drifted && o.Drift != nil && o.Drift.Corrected })
			if age := o.Drift.At.Sub(edited); age < -5*time.Second || age > 5*time.Second {
				t.Errorf("drift at %s: edited at %s", o.Drift.At, edited)
			}
			want := mesh.Drift{Manager: tc.manager, Operation: tc.operation, At: o.Drift.At, What: tc.what, Corrected: true}
			if diff := cmp.Diff(want, *o.Drift); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			within(t, 5*time.Second, func() bool {
				return slices.ContainsFunc(a.events(refOf(m)), func(e corev1.Event) bool {
					return e.Reason == apply.EventDriftCorrected && strings.Contains(e.Message, tc.what) && strings.Contains(e.Message, tc.manager) && e.InvolvedObject.UID == now.GetUID()
				})
			}, func() string { return fmt.Sprintf("no Event says it: %+v", a.events(refOf(m))) })

			// Our applies own every field again: what the hub takes out goes.
			next := policy(t, "AuthorizationPolicy", ns, fmt.Sprintf("accesspolicy-%d", i), "{action: ALLOW, selector: {matchLabels: {app: other}}}")
			a.want(true, next)
			within(t, 10*time.Second, func() bool { return cmp.Equal(next["spec"], spec(a.get(refOf(next)))) }, func() string { return cmp.Diff(next["spec"], spec(a.get(refOf(next)))) })
			o = a.until(refOf(m), "the drift is remembered", func(o mesh.Outcome) bool {
				raw, _ := json.Marshal(next)
				return o.OK && o.Hash == mesh.FingerprintOf(raw)
			})
			if diff := cmp.Diff(&want, o.Drift); diff != "" {
				t.Errorf("a change by the hub changed the drift (-want +got):\n%s", diff)
			}
			if n := len(a.events(refOf(m))); n != 1 {
				t.Errorf("%d Events, want one", n)
			}
		})
	}
}

// Whoever keeps opening a policy has it open for a moment each time, and the Events say so without flooding.
func TestPolicyFight(t *testing.T) {
	cfg := kubetest.Start(t)
	istio(t, cfg)
	a := start(t, cfg)
	m := policy(t, "AuthorizationPolicy", kubetest.Namespace(t, a.kube), "accesspolicy-one", denyAll)
	a.want(true, m)
	a.acked(m)
	for range 6 {
		a.patch(refOf(m), "argocd-controller", "spec: {rules: [{}]}")
		within(t, 2*time.Second, func() bool { return cmp.Equal(m["spec"], spec(a.get(refOf(m)))) }, func() string { return "left open" })
	}
	if got := a.applier.Stats().PutBack; got < 5 { // the last one may be counted in a moment
		t.Errorf("%d corrections counted", got)
	}
	time.Sleep(300 * time.Millisecond)
	if n := len(a.events(refOf(m))); n != 1 {
		t.Errorf("%d Events within seconds, want one", n)
	}
}

// What somebody takes over on purpose is not fought about.
func TestTakenOver(t *testing.T) {
	cfg := kubetest.Start(t)
	istio(t, cfg)
	a := start(t, cfg)
	ns := kubetest.Namespace(t, a.kube)
	m := policy(t, "AuthorizationPolicy", ns, "accesspolicy-one", payments)
	a.want(true, m)
	a.acked(m)
	a.kubectl("", "-n", ns, "label", "authorizationpolicy", "accesspolicy-one", "team=payments", apply.OwnerLabel+"-")
	o := a.until(refOf(m), "taken over", func(o mesh.Outcome) bool { return o.TakenOver })
	if o.OK || !o.Drifted || !strings.Contains(o.Error, "kubectl-label") || o.Drift == nil || o.Drift.Manager != "kubectl-label" {
		t.Errorf("outcome %+v, drift %+v", o, o.Drift)
	}
	a.patch(refOf(m), "kubectl-edit", "spec: {rules: [{}]}")
	version := a.get(refOf(m)).GetResourceVersion()
	time.Sleep(time.Second)
	if a.get(refOf(m)).GetResourceVersion() != version {
		t.Error("fought over an object that was taken over")
	}
	a.restart()
	a.want(true, m)
	a.until(refOf(m), "taken over, another life of the agent knows", func(o mesh.Outcome) bool { return o.TakenOver && !o.OK && o.Drifted })
	a.kubectl("", "-n", ns, "label", "authorizationpolicy", "accesspolicy-one", apply.OwnerLabel+"="+apply.OwnerValue)
	within(t, 5*time.Second, func() bool { return cmp.Equal(m["spec"], spec(a.get(refOf(m)))) }, func() string { return "ours again, and not corrected" })
	o = a.until(refOf(m), "ours again", func(o mesh.Outcome) bool { return o.OK && !o.TakenOver && !o.Drifted })
	if o.Drift == nil || !o.Drift.Corrected || o.Drift.Manager != "kubectl-edit" {
		t.Errorf("drift %+v", o.Drift)
	}
}

// What happened while the agent was away is put back and attributed just the same.
func TestDriftWhileAway(t *testing.T) {
	cfg := kubetest.Start(t)
	istio(t, cfg)
	a := start(t, cfg)
	m := policy(t, "AuthorizationPolicy", kubetest.Namespace(t, a.kube), "accesspolicy-one", denyAll)
	a.want(true, m)
	a.acked(m)
	a.stop()
	a.patch(refOf(m), "kubectl-edit", "spec: {rules: [{}]}")
	a.run()
	a.want(true, m)
	o := a.until(refOf(m), "corrected", func(o mesh.Outcome) bool { return o.OK && o.Drift != nil })
	want := &mesh.Drift{Manager: "kubectl-edit", Operation: "Update", At: o.Drift.At, What: "spec.rules: [{}] added", Corrected: true}
	if diff := cmp.Diff(want, o.Drift); diff != "" || !cmp.Equal(m["spec"], spec(a.get(refOf(m)))) {
		t.Errorf("(-want +got):\n%s%v", diff, spec(a.get(refOf(m))))
	}

	// A change of the desired state meanwhile is nobody's drift.
	a.stop()
	a.run()
	m = policy(t, "AuthorizationPolicy", refOf(m).Namespace, "accesspolicy-one", payments)
	a.want(true, m)
	a.acked(m)
}

// istiod says in status what it can't use.
func TestRefusedByIstiod(t *testing.T) {
	cfg := kubetest.Start(t)
	istio(t, cfg)
	a := start(t, cfg)
	m := policy(t, "AuthorizationPolicy", kubetest.Namespace(t, a.kube), "accesspolicy-one", targeted)
	a.want(true, m)
	a.acked(m)
	say := func(status, reason, message string) {
		live := a.get(refOf(m))
		live.Object["status"] = map[string]any{"conditions": []any{map[string]any{
			"type": "WaypointAccepted", "status": status, "reason": reason, "message": message, "observedGeneration": fmt.Sprint(live.GetGeneration()),
		}}}
		if err := a.kube.Status().Update(t.Context(), live, client.FieldOwner("pilot-discovery")); err != nil {
			t.Fatal(err)
		}
	}
	version := func() int64 { return a.get(refOf(m)).GetGeneration() }
	before := version()
	say("False", "TargetNotFound", "Service billing was not found")
	o := a.until(refOf(m), "refused", func(o mesh.Outcome) bool { return o.Refused != "" })
	raw, _ := json.Marshal(m)
	if diff := cmp.Diff(mesh.Outcome{Hash: mesh.FingerprintOf(raw), OK: true, Refused: "WaypointAccepted: Service billing was not found"}, o); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	say("True", "Accepted", "bound to waypoint")
	a.acked(m)
	if version() != before {
		t.Error("a change of status made us write the spec")
	}
}

func held(t *testing.T, m map[string]any, until time.Time) map[string]any {
	t.Helper()
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var out map[string]any
	if err := json.Unmarshal(raw, &out); err != nil {
		t.Fatal(err)
	}
	out["metadata"].(map[string]any)["annotations"] = map[string]any{securityv2.AnnotationHoldUntil: until.UTC().Format(time.RFC3339), securityv2.AnnotationHoldReason: "INC-4711, by jane.doe@bank.example.com"}
	return out
}

// An override suspends a policy: it stays as people make it, shows that, and is put back when the override ends, by itself.
func TestHold(t *testing.T) {
	cfg := kubetest.Start(t)
	istio(t, cfg)
	for name, away := range map[string]func(a *agent){
		"the agent runs on":                         func(*agent) {},
		"the agent restarts, no server in sight":    func(a *agent) { a.restart() },
		"the agent is down until the override ends": func(a *agent) { a.stop(); time.Sleep(4 * time.Second); a.run() },
	} {
		t.Run(name, func(t *testing.T) {
			a := start(t, cfg)
			ns := kubetest.Namespace(t, a.kube)
			edited, deleted := policy(t, "AuthorizationPolicy", ns, "accesspolicy-edited", denyAll), policy(t, "AuthorizationPolicy", ns, "accesspolicy-deleted", payments)
			a.want(true, edited, deleted)
			a.acked(edited)
			a.acked(deleted)

			until := time.Now().Add(4 * time.Second)
			a.want(true, held(t, edited, until), held(t, deleted, until))
			for _, m := range []map[string]any{edited, deleted} {
				a.until(refOf(m), "held", func(o mesh.Outcome) bool { return o.OK && o.Held && !o.Drifted })
				if at := a.get(refOf(m)).GetAnnotations()[securityv2.AnnotationHoldUntil]; at != until.UTC().Format(time.RFC3339) {
					t.Errorf("the object does not show its hold: %q", at)
				}
			}
			a.patch(refOf(edited), "kubectl-edit", "spec: {rules: [{}]}")
			if err := a.kube.Delete(t.Context(), a.get(refOf(deleted))); err != nil {
				t.Fatal(err)
			}
			o := a.until(refOf(edited), "held, and changed", func(o mesh.Outcome) bool { return o.Held && o.Drifted && o.Drift != nil })
			if !o.OK || o.Drift.Manager != "kubectl-edit" || o.Drift.Corrected {
				t.Errorf("outcome %+v, drift %+v", o, o.Drift)
			}
			a.until(refOf(deleted), "held, and deleted", func(o mesh.Outcome) bool { return o.OK && o.Held && o.Drifted })
			away(a)
			if time.Now().Before(until.Add(-time.Second)) && (a.get(refOf(deleted)) != nil || cmp.Equal(edited["spec"], spec(a.get(refOf(edited))))) {
				t.Error("put back though it is held")
			}
			within(t, 15*time.Second, func() bool {
				e, d := a.get(refOf(edited)), a.get(refOf(deleted))
				return cmp.Equal(edited["spec"], spec(e)) && cmp.Equal(deleted["spec"], spec(d)) && len(e.GetAnnotations()) == 0 && len(d.GetAnnotations()) == 0
			}, func() string { return fmt.Sprint("not put back: ", a.get(refOf(edited)), a.get(refOf(deleted))) })
			if time.Now().Before(until.Truncate(time.Second)) {
				t.Error("put back before the override ended")
			}
			o = a.until(refOf(edited), "in force", func(o mesh.Outcome) bool { return o.OK && !o.Held && !o.Drifted })
			if o.Drift == nil || o.Drift.Manager != "kubectl-edit" || !o.Drift.Corrected {
				t.Errorf("drift %+v", o.Drift)
			}
			within(t, 5*time.Second, func() bool {
				return a.get(mesh.Ref{Version: "v1", Kind: "ConfigMap", Namespace: a.namespace, Name: apply.HeldName}) == nil
			}, func() string { return "the note of what is held is still there" })
		})
	}
}

// A policy that is new is applied though its policy is suspended: there has to be something to hold; and the server may end an override early.
func TestHoldOfWhatIsNew(t *testing.T) {
	cfg := kubetest.Start(t)
	istio(t, cfg)
	a := start(t, cfg)
	m := policy(t, "AuthorizationPolicy", kubetest.Namespace(t, a.kube), "accesspolicy-new", payments)
	a.want(true, held(t, m, time.Now().Add(time.Hour)))
	a.until(refOf(m), "applied, then held", func(o mesh.Outcome) bool { return o.OK && o.Held && !o.Drifted })
	if diff := cmp.Diff(m["spec"], spec(a.get(refOf(m)))); diff != "" {
		t.Error(diff)
	}
	a.patch(refOf(m), "kubectl-edit", "spec: {action: DENY}")
	a.until(refOf(m), "changed", func(o mesh.Outcome) bool { return o.Held && o.Drifted })
	changed := policy(t, "AuthorizationPolicy", refOf(m).Namespace, "accesspolicy-new", denyAll)
	a.want(true, held(t, changed, time.Now().Add(time.Hour))) // what the hub wants meanwhile waits, too
	time.Sleep(300 * time.Millisecond)
	if s := spec(a.get(refOf(m))); cmp.Equal(s, changed["spec"]) || cmp.Equal(s, m["spec"]) {
		t.Errorf("written though it is held: %v", s)
	}
	a.want(true, changed)
	within(t, 5*time.Second, func() bool {
		u := a.get(refOf(m))
		return cmp.Equal(changed["spec"], spec(u)) && len(u.GetAnnotations()) == 0
	}, func() string { return fmt.Sprint("an override that was ended still holds: ", a.get(refOf(m))) })
	a.until(refOf(m), "in force", func(o mesh.Outcome) bool { return o.OK && !o.Held && !o.Drifted })
}
