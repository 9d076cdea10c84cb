package admission_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	securityv2 "ambitmesh.dev/ambit/api/security/v2"
	"ambitmesh.dev/ambit/test/kubetest"
)

func object(t *testing.T, manifest string) *unstructured.Unstructured {
	t.Helper()
	u := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(manifest), &u.Object); err != nil {
		t.Fatal(err)
	}
	return u
}

// warnings records what kubectl would print.
type warnings struct {
	mu    sync.Mutex
	lines []string
}

func (w *warnings) HandleWarningHeader(_ int, _, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lines = append(w.lines, text)
}

func (w *warnings) HandleWarningHeaderWithContext(_ context.Context, code int, agent, text string) {
	w.HandleWarningHeader(code, agent, text)
}

func (w *warnings) take() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.lines
	w.lines = nil
	return out
}

// listening is a client whose warnings are recorded.
func (w *webhook) listening(t *testing.T) (client.Client, *warnings) {
	heard := &warnings{}
	cfg := kubetest.As(w.cfg, "jane", "system:masters")
	cfg.WarningHandlerWithContext = heard
	return kubetest.Client(t, cfg), heard
}

const (
	policyHead    = "apiVersion: security.policy.gloo.solo.io/v2\nkind: AccessPolicy\nmetadata: {name: billing-allow-payments, namespace: gloo-mesh}\n"
	overrideHead  = "apiVersion: security.policy.gloo.solo.io/v2\nkind: PolicyOverride\nmetadata: {name: incident, namespace: gloo-mesh}\n"
	workspaceHead = "apiVersion: admin.gloo.solo.io/v2\nkind: Workspace\nmetadata: {name: payments, namespace: gloo-mesh}\n"
	settingsHead  = "apiVersion: admin.gloo.solo.io/v2\nkind: WorkspaceSettings\nmetadata: {name: payments, namespace: gloo-mesh}\n"
)

// The author errors of public YAML, as kubectl sends them: each answer says the mistake and the fix, also where the CRD alone would refuse.
func TestAuthorErrorsAreAnswered(t *testing.T) {
	w := start(t)
	kubetest.Ensure(t, w.admin, "elsewhere")
	for name, tc := range map[string]struct{ object, want string }{
		"exportTpo":              {settingsHead + `spec: {exportTpo: []}`, `WorkspaceSettings "payments": spec.exportTpo: Forbidden: unknown field: did you mean "exportTo"?`},
		"map for a list":         {settingsHead + `spec: {exportTo: {}}`, `spec.exportTo: Invalid value: {}: want a list: begin each entry with '- '`},
		"serviceIsolation: true": {settingsHead + `spec: {options: {serviceIsolation: true}}`, `write serviceIsolation: {enabled: true}`},
		"settings: nested":       {settingsHead + `spec: {exportTo: [{workspace: [{name: a}]}]}`, `did you mean "workspaces"?`},
		"global elsewhere":       {strings.ReplaceAll(strings.Replace(settingsHead, "gloo-mesh", "elsewhere", 1), "payments", "global"), `in namespace "gloo-mesh"`},
		"misindented namespaces": {workspaceHead + "spec:\n  workloadClusters:\n  - name: a\n  namespaces:\n  - name: b\n", `did you mean "namespaces" inside an entry of "workloadClusters"? (indent it further)`},
		"no namespaces":          {workspaceHead + `spec: {workloadClusters: [{name: a}]}`, `write namespaces: [{name: ...}]`},
		"workspace elsewhere":    {strings.Replace(workspaceHead, "gloo-mesh", "elsewhere", 1), `create it in namespace "gloo-mesh"`},
		"placeholder of Helm":    {policyHead + `spec: {applyToDestinations: [{selector: {labels: {app: "{{ .Values.app }}"}}}]}`, `the placeholder "{{ .Values.app }}" was left in`},
		"placeholder of a shell": {workspaceHead + `spec: {workloadClusters: [{name: $CLUSTER1, namespaces: [{name: "${NS}"}]}]}`, `the placeholder "$CLUSTER1" was left in`},
		"placeholder as name":    {strings.Replace(policyHead, "billing-allow-payments", `"${NAME}"`, 1), `the placeholder "${NAME}" was left in`},
		"policy: misspelt":       {policyHead + `spec: {config: {authz: {allowedCleints: []}}}`, `AccessPolicy "billing-allow-payments": spec.config.authz.allowedCleints: Forbidden: unknown field: did you mean "allowedClients"?`},
		"policy: deep":           {policyHead + `spec: {config: {authz: {allowedClients: [{serviceAccountSelector: {lables: {}}}]}}}`, `did you mean "labels"?`},
		"policy: enum":           {policyHead + `spec: {config: {authn: {tlsMode: strict}}}`, `did you mean STRICT?`},
		"policy: port":           {policyHead + `spec: {applyToDestinations: [{port: {number: 65536}}]}`, `ports are 1 to 65535`},
		"policy: two ports":      {policyHead + `spec: {applyToDestinations: [{port: {number: 80, name: http}}]}`, `write number or name, not both`},
		"policy: principal":      {policyHead + `spec: {config: {authz: {allowedClients: [{serviceAccountSelector: {name: cluster.local/ns/a/sa/b}}]}}}`, `write serviceAccountSelector: {name: b, namespace: a}`},
		"policy: method":         {policyHead + `spec: {config: {authz: {allowedClients: [{}], allowedMethods: [get]}}}`, `did you mean GET?`},
		"policy: without TLS":    {policyHead + `spec: {config: {authn: {tlsMode: DISABLE}, authz: {allowedClients: [{}]}}}`, `tlsMode: DISABLE asks for none`},
		"policy: required false": {policyHead + `spec: {config: {authn: {tlsMode: STRICT, mtls: {required: false}}}}`, `tlsMode and mtls contradict each other`},
		"lease: no reason":       {overrideHead + `spec: {policyRef: {name: p}, for: 2h}`, `spec.reason: Required value: why?`},
		"lease: days":            {overrideHead + `spec: {policyRef: {name: p}, reason: x, for: 1d}`, `write "24h" for a day`},
		"lease: too long":        {overrideHead + `spec: {policyRef: {name: p}, reason: x, for: 25h}`, `too long: at most 24h`},
		"lease: policy":          {overrideHead + `spec: {reason: x, for: 2h}`, `which AccessPolicy?`},
	} {
		t.Run(name, func(t *testing.T) {
			err := w.admin.Create(t.Context(), object(t, tc.object), client.FieldValidation("Strict"))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got  %v\nwant %s", err, tc.want)
			}
		})
	}
}

// Published forms go through, and nothing is said about them.
func TestPublishedFormsAreAccepted(t *testing.T) {
	w := start(t)
	c, heard := w.listening(t)
	for name, manifest := range map[string]string{
		"page":           policyHead + `spec: {applyToDestinations: [{selector: {labels: {app: billing}}}], config: {authn: {mtls: {required: true}}, authz: {allowedClients: [{serviceAccountSelector: {labels: {app: payments}}}]}}}`,
		"strict":         policyHead + `spec: {config: {authn: {tlsMode: STRICT}}}`,
		"no clients":     policyHead + `spec: {applyToWorkloads: [{}], config: {authz: {}}}`,
		"any identity":   policyHead + `spec: {config: {authz: {allowedClients: [{}]}}}`,
		"only selectors": workspaceHead + `spec: {workloadClusters: [{selector: {region: eu}, namespaces: [{name: "*"}]}]}`,
		"settings":       settingsHead + `spec: {exportTo: [{workspaces: [{name: "*"}]}], options: {serviceIsolation: {enabled: true, trimProxyConfig: false}}}`,
		"lease":          overrideHead + `spec: {policyRef: {name: billing-allow-payments}, clusters: [cluster-2], reason: INC-4711, for: 2h}`,
	} {
		if err := c.Create(t.Context(), object(t, manifest), client.FieldValidation("Strict"), client.DryRunAll); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if lines := heard.take(); len(lines) > 0 {
			t.Errorf("%s: warnings %q", name, lines)
		}
	}
	doubtful := policyHead + `spec: {config: {authz: {allowedMethods: [GET]}, enforcementLayers: {cni: true}}}`
	if err := c.Create(t.Context(), object(t, doubtful), client.DryRunAll); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{
		`spec.config.enforcementLayers.cni: not supported: no NetworkPolicy is made`,
		`spec.config.authz: it allows nobody, because it has no allowedClients: for any authenticated identity write allowedClients: [{}]`,
	}, heard.take()); diff != "" {
		t.Errorf("warnings, each once: %s", diff)
	}
}

// Who changed a policy last is what the API server says, whatever anybody writes.
func TestWhoChangedIsRecordedAndCantBeForged(t *testing.T) {
	w := start(t)
	jane, mallory := w.as(t, "jane"), w.as(t, "mallory")
	server := w.as(t, "system:serviceaccount:gloo-mesh:gloo-mesh-mgmt-server")
	is := func(what, by, at string) {
		t.Helper()
		got := object(t, policyHead)
		if err := w.admin.Get(t.Context(), client.ObjectKeyFromObject(got), got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(map[string]string{securityv2.AnnotationChangedBy: by, securityv2.AnnotationChangedAt: at}, got.GetAnnotations()); diff != "" {
			t.Errorf("%s: %s", what, diff)
		}
	}
	forge := func(u *unstructured.Unstructured, by string) {
		u.SetAnnotations(map[string]string{securityv2.AnnotationChangedBy: by, securityv2.AnnotationChangedAt: "1999-01-01T00:00:00Z"})
	}
	do := func(c client.Client, change func(*unstructured.Unstructured), write func(client.Client, *unstructured.Unstructured) error) {
		t.Helper()
		u := object(t, policyHead)
		if err := w.admin.Get(t.Context(), client.ObjectKeyFromObject(u), u); err != nil {
			t.Fatal(err)
		}
		change(u)
		if err := write(c, u); err != nil {
			t.Fatal(err)
		}
	}
	update := func(c client.Client, u *unstructured.Unstructured) error { return c.Update(t.Context(), u) }
	clients := func(u *unstructured.Unstructured, namespace string) {
		if err := unstructured.SetNestedSlice(u.Object, []any{map[string]any{"serviceAccountSelector": map[string]any{"namespace": namespace}}}, "spec", "config", "authz", "allowedClients"); err != nil {
			t.Fatal(err)
		}
	}

	u := object(t, policyHead+`spec: {config: {authz: {allowedClients: [{}]}}}`)
	forge(u, "somebody.else")
	if err := jane.Create(t.Context(), u); err != nil {
		t.Fatal(err)
	}
	is("created, forged", "jane", "2026-02-12T10:14:00Z")

	w.later(time.Hour)
	do(mallory, func(u *unstructured.Unstructured) { u.SetLabels(map[string]string{"a": "b"}); forge(u, "mallory") }, update)
	is("a label, forged", "jane", "2026-02-12T10:14:00Z")
	do(mallory, func(u *unstructured.Unstructured) { u.SetLabels(nil); u.SetAnnotations(nil) }, update)
	is("left out", "jane", "2026-02-12T10:14:00Z")
	do(server, func(u *unstructured.Unstructured) {
		forge(u, "server")
		u.Object["status"] = map[string]any{"inForce": "1/1"}
	}, func(c client.Client, u *unstructured.Unstructured) error { return c.Status().Update(t.Context(), u) })
	is("status", "jane", "2026-02-12T10:14:00Z")
	do(server, func(u *unstructured.Unstructured) { forge(u, "jane.again"); u.SetLabels(map[string]string{"x": "y"}) }, update)
	is("the server's own account", "jane", "2026-02-12T10:14:00Z")

	do(mallory, func(u *unstructured.Unstructured) { clients(u, "mallory"); forge(u, "jane") }, update)
	is("changed, forged", "mallory", "2026-02-12T11:14:00Z")
	w.later(time.Hour)
	do(server, func(u *unstructured.Unstructured) { clients(u, "payments") }, update)
	is("changed by the server's own account", "system:serviceaccount:gloo-mesh:gloo-mesh-mgmt-server", "2026-02-12T12:14:00Z")

	applied := object(t, policyHead+`spec: {config: {authz: {allowedClients: [{serviceAccountSelector: {namespace: billing}}]}}}`)
	for range 2 { // the second time it changes nothing
		if err := jane.Apply(t.Context(), client.ApplyConfigurationFromUnstructured(applied.DeepCopy()), client.FieldOwner("gitops"), client.ForceOwnership); err != nil {
			t.Fatal(err)
		}
		is("applied from git", "jane", "2026-02-12T12:14:00Z")
		w.later(time.Hour)
	}
	if err := mallory.Delete(t.Context(), applied, client.DryRunAll); err != nil {
		t.Fatal(err)
	}
	if err := mallory.Delete(t.Context(), applied); err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if diff := cmp.Diff([]string{"mallory billing-allow-payments"}, w.deleted); diff != "" {
		t.Errorf("recorded deletions: %s", diff)
	}
}

// The other kinds are recorded as policies are. A lease can't be changed, not even by who made it.
func TestWhoChangedOtherKinds(t *testing.T) {
	w := start(t)
	jane := w.as(t, "jane")
	for _, manifest := range []string{
		workspaceHead + `spec: {workloadClusters: [{name: a, namespaces: [{name: b}]}]}`,
		settingsHead + `spec: {options: {serviceIsolation: {enabled: true}}}`,
		trustHead + `spec: {config: {mgmtServerCa: {generated: {}}}}`,
		requestHead + `spec: {policy: root-trust, action: Rotate, reason: age}`,
		overrideHead + `spec: {policyRef: {name: p}, clusters: [a], reason: x, for: 1h}`,
	} {
		u := object(t, manifest)
		if err := jane.Create(t.Context(), u); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(map[string]string{securityv2.AnnotationChangedBy: "jane", securityv2.AnnotationChangedAt: "2026-02-12T10:14:00Z"}, u.GetAnnotations()); diff != "" {
			t.Errorf("%s: %s", u.GetKind(), diff)
		}
	}
	lease := object(t, overrideHead)
	if err := jane.Get(t.Context(), client.ObjectKeyFromObject(lease), lease); err != nil {
		t.Fatal(err)
	}
	longer := lease.DeepCopy()
	if err := unstructured.SetNestedField(longer.Object, "24h", "spec", "for"); err != nil {
		t.Fatal(err)
	}
	if err := jane.Update(t.Context(), longer); err == nil || !strings.Contains(err.Error(), "delete it and create another") {
		t.Errorf("a lease was made longer: %v", err)
	}
	lease.SetFinalizers([]string{"example.com/keep"})
	if err := jane.Update(t.Context(), lease); err != nil {
		t.Errorf("metadata of a lease: %v", err)
	}
	lease.SetFinalizers(nil)
	if err := jane.Update(t.Context(), lease); err != nil {
		t.Error(err)
	}
}

// Nothing is written while the webhook is away: it would be neither checked nor recorded.
func TestWebhookDownRefusesPolicies(t *testing.T) {
	w := start(t)
	stored := object(t, policyHead+`spec: {config: {authz: {}}}`)
	if err := w.admin.Create(t.Context(), stored); err != nil {
		t.Fatal(err)
	}
	w.stop()
	for _, manifest := range []string{
		strings.Replace(policyHead, "billing-allow-payments", "other", 1) + `spec: {config: {authz: {}}}`,
		workspaceHead + `spec: {}`, settingsHead + `spec: {}`, trustHead + `spec: {}`, requestHead + `spec: {policy: p, action: Pause, reason: x}`, overrideHead + `spec: {policyRef: {name: p}, reason: x, for: 1h}`,
	} {
		u := object(t, manifest)
		if err := w.admin.Create(t.Context(), u); err == nil {
			t.Errorf("%s: written, with nobody there to check and record it", u.GetKind())
		}
	}
	stored.Object["spec"] = map[string]any{}
	if err := w.admin.Update(t.Context(), stored); err == nil {
		t.Error("a policy was changed, with nobody there to record it")
	}
	if err := w.admin.Delete(t.Context(), stored); err == nil {
		t.Error("a policy was deleted, with nobody there to record it")
	}
}

// Past the webhook the CRDs still refuse what opens more than it says.
func TestSchemasRefuseWithoutTheWebhook(t *testing.T) {
	cfg := kubetest.Start(t)
	c := kubetest.Client(t, cfg)
	kubetest.Ensure(t, c, "gloo-mesh")
	eventually(t, func() error { return c.Create(t.Context(), object(t, policyHead), client.DryRunAll) }) // the webhook of the test before is forgotten
	for name, tc := range map[string]struct{ object, want string }{
		"tls":             {policyHead + `spec: {config: {authn: {tlsMode: PERMISSIVE, mtls: {required: true}}}}`, "contradict"},
		"without TLS":     {policyHead + `spec: {config: {authn: {tlsMode: DISABLE}, authz: {allowedClients: [{}]}}}`, "DISABLE asks for none"},
		"list, no TLS":    {policyHead + `spec: {config: {authn: {tlsMode: DISABLE}, authzList: [{}, {allowedClients: [{}]}]}}`, "DISABLE asks for none"},
		"two ports":       {policyHead + `spec: {applyToDestinations: [{port: {number: 80, name: http}}]}`, "write number or name"},
		"no port":         {policyHead + `spec: {applyToDestinations: [{port: {}}]}`, "write number or name"},
		"no namespaces":   {workspaceHead + `spec: {workloadClusters: [{name: a}]}`, "selects nothing"},
		"with nobody":     {settingsHead + `spec: {exportTo: [{}]}`, "which workspaces?"},
		"with anybody":    {settingsHead + `spec: {exportTo: [{workspaces: [{}]}]}`, "which workspace?"},
		"modes":           {settingsHead + `spec: {options: {virtualDestClientMode: {auto: {}, sniRouting: {}}}}`, "write one of"},
		"lease: too long": {overrideHead + `spec: {policyRef: {name: p}, reason: x, for: 25h}`, "want 1m to 24h"},
		"lease: blank":    {overrideHead + `spec: {policyRef: {name: p}, reason: " ", for: 2h}`, "spec.reason"},
		"lease: cluster":  {overrideHead + `spec: {policyRef: {name: p}, clusters: ["*"], reason: x, for: 2h}`, "spec.clusters[0]"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := c.Create(t.Context(), object(t, tc.object), client.DryRunAll); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got  %v\nwant %s", err, tc.want)
			}
		})
	}
	lease := object(t, overrideHead+`spec: {policyRef: {name: p}, reason: x, for: 2h}`)
	if err := c.Create(t.Context(), lease); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Delete(t.Context(), lease); err != nil {
			t.Error(err)
		}
	}()
	changed := lease.DeepCopy()
	if err := unstructured.SetNestedField(changed.Object, "3h", "spec", "for"); err != nil {
		t.Fatal(err)
	}
	if err := c.Update(t.Context(), changed); err == nil || !strings.Contains(err.Error(), "delete it and create another") {
		t.Errorf("a lease was made longer: %v", err)
	}
}
