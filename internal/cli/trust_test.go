package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/trust"
)

func end(d time.Duration) *metav1.Time { return &metav1.Time{Time: now.Add(d)} }

// trustWorld is a policy in the middle of a rotation, with a cluster that is ready, one that is away and one that never reported.
func trustWorld() *trustFacts {
	const day = 24 * time.Hour
	old, next := strings.Repeat("a1", 32), strings.Repeat("b2", 32)
	p := adminv2.RootTrustPolicy{ObjectMeta: metav1.ObjectMeta{Name: "root", Generation: 2}}
	p.Status = adminv2.RootTrustPolicyStatus{
		ObservedGeneration: 2, State: adminv2.ApprovalWarning, Phase: adminv2.PhaseAddingRoot, Message: "m",
		Conditions: []metav1.Condition{{Type: adminv2.ConditionRotating, Status: "True", Reason: adminv2.ReasonBlocked, Message: "to CN=r2, waits for cluster c2, its agent: it is not connected; until 2026-05-15T15:30:00Z at the latest"}},
		Roots: []adminv2.RootStatus{
			{Generation: 1, Role: adminv2.RootActive, Fingerprint: old, Subject: "CN=r1", Issuer: "generated RSA-4096", NotAfter: end(400 * day)},
			{Generation: 2, Role: adminv2.RootNext, Fingerprint: next, Subject: "CN=r2", Issuer: "generated RSA-4096", NotAfter: end(3650 * day)},
		},
		Clusters: []adminv2.ClusterTrustStatus{
			{Name: "c1", Phase: adminv2.PhaseAddingRoot, State: adminv2.ApprovalAccepted, Message: "as the phase wants it"},
			{Name: "c2", Phase: adminv2.PhaseAddingRoot, State: adminv2.ApprovalPending, Message: "waits for its agent: it is not connected"},
		},
	}
	ca := func(cn, f string, left time.Duration) adminv2.CACertificate {
		return adminv2.CACertificate{Fingerprint: f, Generation: 1, Subject: cn, Issuer: "CN=r1", Serial: "1f", Key: "RSA-4096", NotAfter: end(left)}
	}
	i1, i2 := ca("CN=c1 g1", strings.Repeat("c3", 32), 300*day), ca("CN=c2 g1", strings.Repeat("d4", 32), 5*day)
	cluster := func(name string, s *adminv2.ClusterCAStatus) adminv2.KubernetesCluster {
		return adminv2.KubernetesCluster{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: adminv2.KubernetesClusterStatus{CaStatus: s, Connection: adminv2.ConnectionConnected}}
	}
	roots := []adminv2.CACertificate{ca("CN=r1", old, 400*day), ca("CN=r2", next, 3650*day)}
	return &trustFacts{
		Now: now, Policies: []adminv2.RootTrustPolicy{p},
		Clusters: []adminv2.KubernetesCluster{
			cluster("c1", &adminv2.ClusterCAStatus{
				Phase: adminv2.PhaseAddingRoot, Owner: mesh.OwnerValue, Intermediate: &i1, Roots: roots,
				Istiods:   []adminv2.IstiodCAStatus{{Pod: "istiod-a", Signer: i1.Fingerprint, Current: true}, {Pod: "istiod-b", Signer: strings.Repeat("e5", 32)}},
				Verifiers: []adminv2.VerifierCAStatus{{Kind: "ztunnel", Total: 3, Trusting: 3, Presenting: 3, LeafUntil: end(23 * time.Hour)}, {Kind: "gateway", Total: 1, Unknown: 1}},
			}),
			cluster("c2", &adminv2.ClusterCAStatus{
				Phase: adminv2.PhaseAddingRoot, Rotation: adminv2.RotationBlocked, Message: "its agent is not connected", Owner: "cert-manager", Intermediate: &i2,
				Roots:     append(roots[:1:1], ca("CN=someone else", strings.Repeat("f6", 32), -2*time.Hour)),
				Verifiers: []adminv2.VerifierCAStatus{{Kind: "ztunnel", Total: 2, Trusting: 1, Presenting: 2, LeafUntil: end(3 * time.Hour)}},
			}),
			cluster("c3", nil),
		},
	}
}

func TestTrustStatus(t *testing.T) {
	for name, only := range map[string]string{"trust-status": "", "trust-status-cluster": "c1"} {
		f := trustWorld()
		r := trustReportOf(f, only)
		var out bytes.Buffer
		r.print(&out, now, only != "")
		golden(t, name, out.String())
	}
}

// TestTrustStatusOfAGoodFleet: nothing wrong, nothing unknown; each thing that is spoiled shows.
func TestTrustStatusOfAGoodFleet(t *testing.T) {
	good := func() *trustFacts {
		f := trustWorld()
		p := &f.Policies[0]
		p.Status.Phase, p.Status.State, p.Status.Conditions, p.Status.Clusters = adminv2.PhaseSteady, adminv2.ApprovalAccepted, nil, p.Status.Clusters[:1]
		f.Clusters = f.Clusters[:1]
		f.Clusters[0].Status.CaStatus.Phase = adminv2.PhaseSteady
		return f
	}
	if r := trustReportOf(good(), ""); len(r.Problems)+len(r.Unknown) > 0 {
		t.Fatal(r.Problems, r.Unknown)
	}
	for name, spoil := range map[string]func(*trustFacts){
		"policy":       func(f *trustFacts) { f.Policies[0].Status.State = adminv2.ApprovalFailed },
		"cluster":      func(f *trustFacts) { f.Policies[0].Status.Clusters[0].State = adminv2.ApprovalWarning },
		"problem":      func(f *trustFacts) { f.Clusters[0].Status.CaStatus.Problems = []string{"cacerts can't be read"} },
		"istiod":       func(f *trustFacts) { f.Clusters[0].Status.CaStatus.Istiods[0].Problem = "timeout" },
		"verifier":     func(f *trustFacts) { f.Clusters[0].Status.CaStatus.Verifiers[0].Trusting = 2 },
		"expired leaf": func(f *trustFacts) { f.Clusters[0].Status.CaStatus.Verifiers[0].LeafUntil = end(-time.Second) },
		"root ends":    func(f *trustFacts) { f.Policies[0].Status.Roots[0].NotAfter = end(6 * 24 * time.Hour) },
		"issuing": func(f *trustFacts) {
			f.Policies[0].Status.Conditions = []metav1.Condition{{Type: adminv2.ConditionIssuing, Status: "False", Message: "Vault answers 403"}}
		},
	} {
		f := good()
		spoil(f)
		if r := trustReportOf(f, ""); len(r.Problems) != 1 {
			t.Errorf("%s: %q", name, r.Problems)
		}
	}
}

func TestFollowerTellsChangesOnce(t *testing.T) {
	var said []string
	f := &follower{say: func(level, text string) { said = append(said, level+" "+text) }}
	p := &trustWorld().Policies[0]
	f.look(p, now)
	f.look(p, now.Add(time.Minute))
	p.Status.Clusters[1].State, p.Status.Clusters[1].Message = adminv2.ApprovalAccepted, "as the phase wants it"
	p.Status.Conditions = nil
	p.Status.Phase, p.Status.State, p.Status.Message = adminv2.PhaseSteady, adminv2.ApprovalAccepted, "all good"
	f.look(p, now)
	want := []string{
		"warning AddingRoot (2 of 5): to CN=r2, waits for cluster c2, its agent: it is not connected; until 2026-05-15T15:30:00Z at the latest (in 3h30m)",
		"note   c2: waits for its agent: it is not connected",
		"ok Steady: all good",
		"ok   c2: as the phase wants it",
	}
	if diff := cmp.Diff(want, said); diff != "" {
		t.Error(diff)
	}
}

// trustFleet writes a policy and clusters to the API server.
func trustFleet(w *world) {
	f := trustWorld()
	ctx := w.t.Context()
	p := f.Policies[0]
	status := p.Status
	p.Namespace, p.Generation = w.ns, 0
	w.must(w.mgmt.Create(ctx, &p))
	status.ObservedGeneration = p.Generation
	status.Conditions[0].LastTransitionTime = metav1.Now()
	p.Status = status
	w.must(w.mgmt.Status().Update(ctx, &p))
	for _, k := range f.Clusters {
		status := k.Status
		k.Namespace = w.ns
		w.must(w.mgmt.Create(ctx, &k))
		k.Status = status
		w.must(w.mgmt.Status().Update(ctx, &k))
	}
	w.t.Cleanup(func() {
		_ = w.mgmt.DeleteAllOf(context.Background(), &adminv2.RootTrustPolicy{}, client.InNamespace(w.ns))
		_ = w.mgmt.DeleteAllOf(context.Background(), &adminv2.RotationRequest{}, client.InNamespace(w.ns))
	})
}

// answer plays the server: it answers every request.
func answer(w *world, state adminv2.RotationRequestState, message string) {
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ; ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
			var all adminv2.RotationRequestList
			if w.mgmt.List(ctx, &all, client.InNamespace(w.ns)) != nil {
				continue
			}
			for i := range all.Items {
				if r := &all.Items[i]; r.Status.State == "" {
					r.Status = adminv2.RotationRequestStatus{State: state, Message: message, By: "jane.doe@bank.example.com", Generation: 3}
					_ = w.mgmt.Status().Update(ctx, r)
				}
			}
		}
	}()
	w.t.Cleanup(func() { cancel(); <-done })
}

func TestTrustVerbs(t *testing.T) {
	w := newWorld(t)
	if r := w.meshctl("trust", "status", "--mgmt-context", "mgmt"); r.code != ExitOK || !strings.Contains(r.out, "there is no RootTrustPolicy") {
		t.Fatal("an empty fleet")
	}
	trustFleet(w)
	if r := w.meshctl("trust", "status", "--mgmt-context", "mgmt"); r.code != ExitFailed || !strings.Contains(r.out, "Policy root: AddingRoot (2 of 5), blocked; 1 of 2 clusters") {
		t.Fatal("a blocked rotation")
	}
	if r := w.meshctl("trust", "status", "--mgmt-context", "mgmt", "--cluster", "c9"); r.code != ExitUsage || !strings.Contains(r.err, "did you mean") {
		t.Fatal("no such cluster")
	}
	var report trustReport
	if r := w.meshctl("trust", "status", "--mgmt-context", "mgmt", "-o", "json"); json.Unmarshal([]byte(r.out), &report) != nil || len(report.Certificates) != 9 {
		t.Fatal("JSON", len(report.Certificates))
	}
	if r := w.meshctl("__complete", "trust", "fence", "--mgmt-context", "mgmt", "c1", "c"); !strings.HasPrefix(r.out, "c2\nc3\n:") {
		t.Fatal("completion", r.out)
	}
	for name, tc := range map[string]struct {
		args []string
		err  string
	}{
		"no reason":   {[]string{"rotate"}, "--reason is required"},
		"no cluster":  {[]string{"fence", "--reason", "r"}, "which cluster?"},
		"strange":     {[]string{"fence", "c9", "--reason", "r", "--yes"}, "no such cluster"},
		"not asked":   {[]string{"fence", "c2", "--reason", "r"}, "--yes"},
		"emergency":   {[]string{"rotate", "--emergency", "--reason", "r"}, "--yes"},
		"policy":      {[]string{"pause", "--policy", "roto", "--reason", "r"}, `did you mean "root"`},
		"no argument": {[]string{"pause", "c2", "--reason", "r"}, "unexpected argument"},
	} {
		if r := w.meshctl(append([]string{"trust", "--mgmt-context", "mgmt"}[:1:1], append(tc.args, "--mgmt-context", "mgmt")...)...); r.code != ExitUsage || !strings.Contains(r.err, tc.err) {
			t.Errorf("%s: exit %d %q", name, r.code, r.err)
		}
	}
	var none adminv2.RotationRequestList
	if w.must(w.mgmt.List(t.Context(), &none, client.InNamespace(w.ns))); len(none.Items) != 0 {
		t.Fatalf("%d requests were made by refused commands", len(none.Items))
	}
	answer(w, adminv2.RequestDone, "done so")
	r := w.meshctl("trust", "fence", "c2", "c3", "c2", "--reason", "flood", "--yes", "--mgmt-context", "mgmt")
	var all adminv2.RotationRequestList
	w.must(w.mgmt.List(t.Context(), &all, client.InNamespace(w.ns)))
	want := adminv2.RotationRequestSpec{Policy: "root", Action: adminv2.ActionFence, Clusters: []string{"c2", "c3"}, Reason: "flood"}
	if len(all.Items) != 1 || r.code != ExitOK || !strings.Contains(r.out, "Recorded as jane.doe@bank.example.com: flood\ndone so\n") || !strings.Contains(r.err, "refuse each other") {
		t.Fatal(r.code, len(all.Items))
	}
	if diff := cmp.Diff(want, all.Items[0].Spec); diff != "" {
		t.Error(diff)
	}
}

func TestTrustRequestRefused(t *testing.T) {
	w := newWorld(t)
	trustFleet(w)
	answer(w, adminv2.RequestRefused, "nothing is paused")
	if r := w.meshctl("trust", "resume", "--reason", "r", "--mgmt-context", "mgmt"); r.code != ExitFailed || !strings.Contains(r.err, "refused it: nothing is paused") {
		t.Fatal(r.code)
	}
}

// TestTrustWait follows a rotation to its end, and stops at its time.
func TestTrustWait(t *testing.T) {
	w := newWorld(t)
	trustFleet(w)
	answer(w, adminv2.RequestDone, "")
	if r := w.meshctl("trust", "rotate", "--reason", "r", "--wait", "--timeout", "1500ms", "--mgmt-context", "mgmt"); r.code != ExitNotReached || !strings.Contains(r.err, "it goes on") {
		t.Fatal(r.code)
	}
	finished := make(chan error, 1)
	go func() {
		time.Sleep(500 * time.Millisecond)
		var p adminv2.RootTrustPolicy
		err := w.mgmt.Get(t.Context(), client.ObjectKey{Namespace: w.ns, Name: "root"}, &p)
		p.Status.Phase, p.Status.State, p.Status.Message, p.Status.Conditions = adminv2.PhaseSteady, adminv2.ApprovalAccepted, "all good", nil
		p.Status.Roots = p.Status.Roots[1:]
		p.Status.Roots[0].Role, p.Status.Roots[0].Generation = adminv2.RootActive, 3
		if err == nil {
			err = w.mgmt.Status().Update(t.Context(), &p)
		}
		finished <- err
	}()
	r := w.meshctl("trust", "rotate", "--reason", "r", "--wait", "--timeout", "30s", "--mgmt-context", "mgmt")
	w.must(<-finished)
	if r.code != ExitOK || !strings.Contains(r.out, "Done: all good") {
		t.Fatal(r.code)
	}
}

func TestConfirm(t *testing.T) {
	for answer, want := range map[string]bool{"yes\n": true, "y\n": false, "": false} {
		v := &trustVerbs{app: &app{streams: Streams{Out: &bytes.Buffer{}, Err: &bytes.Buffer{}, Terminal: true}}}
		if err := v.confirm("it breaks", &requestOptions{}, strings.NewReader(answer)); (err == nil) != want {
			t.Errorf("%q: %v", answer, err)
		}
	}
}

// trustInput is a fleet of two under one root, with real certificates.
func trustInput(t *testing.T) trust.Input {
	t.Helper()
	root, err := standIn(1, now)
	if err != nil {
		t.Fatal(err)
	}
	in := trust.Input{At: now, Rotation: trust.Rotation{Phase: trust.Steady, Current: *root, Generation: 1, Members: map[mesh.ClusterName]trust.Member{}}, Want: trust.Want{Policy: "gloo-mesh/root"}}
	for _, name := range []mesh.ClusterName{"c1", "c2"} {
		in.Rotation.Members[name] = trust.Member{Admitted: true}
		in.Fleet = append(in.Fleet, trust.Cluster{Name: name, TrustDomain: "cluster.local"})
	}
	return in
}

func TestTrustPlan(t *testing.T) {
	raw, err := json.Marshal(map[string]trust.Input{"root": trustInput(t)})
	if err != nil {
		t.Fatal(err)
	}
	s := newPodServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/trust" {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(raw)
	})
	file := filepath.Join(t.TempDir(), "trust.json")
	online := s.meshctl("trust", "plan", "--save", file)
	offline := s.meshctl("trust", "plan", "--snapshot", file)
	if online.out != offline.out || online.code != ExitFailed || offline.code != ExitFailed {
		t.Fatalf("exit %d and %d", online.code, offline.code)
	}
	golden(t, "trust-plan", online.out)
	if r := s.meshctl("trust", "plan", "--snapshot", file, "--policy", "rot"); r.code != ExitUsage || !strings.Contains(r.err, `did you mean "root"`) {
		t.Fatal("a wrong policy")
	}
	if err := os.WriteFile(file, []byte(`{"root":{}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := s.meshctl("trust", "plan", "--snapshot", file); r.code != ExitUsage || !strings.Contains(r.err, "--save") {
		t.Fatal("a wrong file")
	}
}
