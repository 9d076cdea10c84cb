package rotation

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509/pkix"
	"encoding/json"
	"log/slog"
	"maps"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/audit"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/pki"
	"ambitmesh.dev/ambit/internal/trust"
	"ambitmesh.dev/ambit/test/kubetest"
)

func TestMain(m *testing.M) { os.Exit(kubetest.Main(m)) }

// limit is a safety net: everything here takes seconds.
const limit = 3 * time.Minute

// testMesh is a Keeper on a real API server, and clusters that do at once what they are told, with keys of their own.
type testMesh struct {
	t         testing.TB
	client    client.Client
	namespace string
	board     *Board
	keeper    *Keeper
	ctx       context.Context //nolint:containedctx // of the agents, which join at any time
	wg        sync.WaitGroup

	die      func()          // ends the server
	over     <-chan struct{} // it has ended
	log      lockedBuffer
	mu       sync.Mutex
	records  []audit.Record
	policies map[string]*mesh.RootTrustPolicy
	clusters []mesh.Cluster
	signers  map[mesh.ClusterName]mesh.Fingerprint // intermediates in use
	observed map[mesh.ClusterName]*mesh.TrustObservation
	csrs     map[mesh.ClusterName]map[string][]byte // requests made, by slot
}

// newMesh starts a Keeper with clusters that have a label "mesh": the part of their name before '-'.
func newMesh(t testing.TB, clusters ...mesh.ClusterName) *testMesh {
	t.Helper()
	m := &testMesh{
		t: t, client: kubetest.Client(t, kubetest.Start(t)), policies: map[string]*mesh.RootTrustPolicy{}, signers: map[mesh.ClusterName]mesh.Fingerprint{},
		observed: map[mesh.ClusterName]*mesh.TrustObservation{}, csrs: map[mesh.ClusterName]map[string][]byte{},
	}
	m.namespace = kubetest.Namespace(t, m.client)
	ctx, stop := context.WithCancel(context.Background())
	m.ctx = ctx
	m.serve(m.client)
	t.Cleanup(func() { stop(); m.wg.Wait() })
	m.join(clusters...)
	return m
}

// serve ends the server there is, and starts one that knows nothing but what is stored; agents report to it from then on. The context returned ends with it; die ends it.
func (m *testMesh) serve(c client.Client) (life context.Context, die func()) {
	if m.die != nil {
		m.die()
		<-m.over
	}
	life, m.die = context.WithCancel(m.ctx)
	over := make(chan struct{})
	m.over = over
	board := NewBoard(func() {})
	k := New(Config{
		Client: c, Namespace: m.namespace, Board: board, Snapshot: m.snapshot, Sessions: m.sessions, Issuers: NewIssuers(c, m.namespace), GoneGrace: time.Second,
		Record: m.note, Changed: func() {}, Log: slog.New(slog.NewTextHandler(&m.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	m.mu.Lock()
	m.board, m.keeper = board, k
	m.mu.Unlock()
	m.wg.Go(func() { defer close(over); _ = k.Run(life) })
	return life, m.die
}

// note keeps an audit record.
func (m *testMesh) note(r audit.Record) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.records = append(m.records, r)
}

// server is the Board and the Keeper of the moment.
func (m *testMesh) server() (*Board, *Keeper) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.board, m.keeper
}

// lockedBuffer is a log that may be written to from everywhere.
type lockedBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// join adds clusters.
func (m *testMesh) join(clusters ...mesh.ClusterName) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range clusters {
		group, _, _ := strings.Cut(string(c), "-")
		m.clusters = append(m.clusters, mesh.Cluster{
			Name: c, Labels: map[string]string{"mesh": group}, Inventory: &mesh.Inventory{Complete: true, Info: mesh.ClusterInfo{TrustDomain: "cluster.local"}},
		})
		m.wg.Go(func() { m.agent(m.ctx, c) })
	}
	slices.SortFunc(m.clusters, func(a, b mesh.Cluster) int { return strings.Compare(string(a.Name), string(b.Name)) }) // as a Snapshot has them
}

// leave deregisters a cluster.
func (m *testMesh) leave(c mesh.ClusterName) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.clusters = slices.DeleteFunc(m.clusters, func(o mesh.Cluster) bool { return o.Name == c })
	m.keeper.Ring()
}

func (m *testMesh) sessions() map[mesh.ClusterName]mesh.Session {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[mesh.ClusterName]mesh.Session{}
	for i := range m.clusters {
		out[m.clusters[i].Name] = mesh.Session{Connected: true}
	}
	return out
}

func (m *testMesh) snapshot() *mesh.Snapshot {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := &mesh.Snapshot{AdminNamespace: m.namespace, Clusters: slices.Clone(m.clusters), RotationRequests: m.asked()}
	for _, p := range m.policies {
		s.RootPolicies = append(s.RootPolicies, p)
	}
	slices.SortFunc(s.RootPolicies, func(a, b *mesh.RootTrustPolicy) int { return a.Source.Compare(b.Source) })
	return s
}

// apply makes a policy of this name, for clusters of the group of this name, say this.
func (m *testMesh) apply(name string, config adminv2.RootTrustConfig) {
	m.t.Helper()
	if config.IntermediateCertOptions == nil { // quickly made
		config.IntermediateCertOptions = &adminv2.CommonCertOptions{KeyAlgorithm: adminv2.KeyECDSAP256}
	}
	obj := &adminv2.RootTrustPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: m.namespace, Name: name}}
	spec := adminv2.RootTrustPolicySpec{
		Config: &config, ApplyToMeshes: []adminv2.MeshSelector{{Istio: &adminv2.IstioMeshSelector{ClusterSelector: map[string]string{"mesh": name}}}},
	}
	if m.policies[name] == nil {
		obj.Spec = spec
		if err := m.client.Create(m.t.Context(), obj); err != nil {
			m.t.Fatal(err)
		}
	} else {
		m.change(obj, func() { obj.Spec = spec })
	}
	p := &mesh.RootTrustPolicy{
		Source: mesh.Ref{Namespace: m.namespace, Name: name}, UID: string(obj.UID), Generation: obj.Generation, Created: obj.CreationTimestamp.Time, Trust: mesh.TrustOf(&obj.Spec),
	}
	p.FileLag = -1
	m.mu.Lock()
	m.policies[name] = p
	m.mu.Unlock()
	_, k := m.server()
	k.Ring()
}

// ask makes a request, as meshctl does.
func (m *testMesh) ask(policy string, action adminv2.RotationAction, clusters ...string) *adminv2.RotationRequest {
	m.t.Helper()
	q := &adminv2.RotationRequest{
		ObjectMeta: metav1.ObjectMeta{Namespace: m.namespace, GenerateName: "q-"},
		Spec:       adminv2.RotationRequestSpec{Policy: policy, Action: action, Clusters: clusters, Reason: "drill"},
	}
	if err := m.client.Create(m.t.Context(), q); err != nil {
		m.t.Fatal(err)
	}
	_, k := m.server()
	k.Ring()
	return q
}

// asked are the requests, as the server's cache has them.
func (m *testMesh) asked() []*mesh.RotationRequest {
	var list adminv2.RotationRequestList
	if err := m.client.List(m.ctx, &list, client.InNamespace(m.namespace)); err != nil {
		if m.ctx.Err() == nil {
			m.t.Error(err)
		}
		return nil
	}
	var out []*mesh.RotationRequest
	for i := range list.Items {
		q := &list.Items[i]
		r := &mesh.RotationRequest{
			Source: mesh.Ref{Namespace: q.Namespace, Name: q.Name}, UID: string(q.UID), Policy: mesh.Ref{Namespace: q.Namespace, Name: q.Spec.Policy}, Action: q.Spec.Action,
			Emergency: q.Spec.Emergency, By: "jane", Reason: q.Spec.Reason, Created: q.CreationTimestamp.Time, State: q.Status.State, Root: mesh.Generation(q.Status.Generation),
		}
		if q.Status.At != nil {
			r.Answered = q.Status.At.Time
		}
		for _, c := range q.Spec.Clusters {
			r.Clusters = append(r.Clusters, mesh.ClusterName(c))
		}
		out = append(out, r)
	}
	return out
}

// change updates an object, whoever else writes it meanwhile.
func (m *testMesh) change(obj client.Object, how func()) {
	m.t.Helper()
	for {
		err := m.client.Get(m.t.Context(), client.ObjectKeyFromObject(obj), obj)
		if err == nil {
			how()
			err = m.client.Update(m.t.Context(), obj)
		}
		if err == nil {
			return
		}
		if client.IgnoreNotFound(err) == nil || !strings.Contains(err.Error(), "the object has been modified") {
			m.t.Fatal(err)
		}
	}
}

func (m *testMesh) status(policy string) adminv2.RootTrustPolicyStatus {
	m.t.Helper()
	var obj adminv2.RootTrustPolicy
	if err := m.client.Get(m.t.Context(), client.ObjectKey{Namespace: m.namespace, Name: policy}, &obj); err != nil {
		m.t.Fatal(err)
	}
	return obj.Status
}

// until waits until the policy's status is as wanted.
func (m *testMesh) until(policy, what string, is func(adminv2.RootTrustPolicyStatus) bool) adminv2.RootTrustPolicyStatus {
	m.t.Helper()
	var s adminv2.RootTrustPolicyStatus
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if s = m.status(policy); is(s) {
			return s
		}
	}
	s.Rotation = nil
	m.t.Fatalf("policy %s: not %s: %+v", policy, what, s)
	return s
}

// steady waits until the policy stands under one root that comes from an issuer of this name, other than the one before.
func (m *testMesh) steady(policy, issuer, before string) adminv2.RootStatus {
	m.t.Helper()
	s := m.until(policy, "steady under "+issuer, func(s adminv2.RootTrustPolicyStatus) bool {
		return s.Phase == adminv2.PhaseSteady && s.State == adminv2.ApprovalAccepted && len(s.Roots) == 1 && s.Roots[0].Fingerprint != before && strings.Contains(s.Roots[0].Issuer, issuer)
	})
	return s.Roots[0]
}

// agent does what its cluster is told.
func (m *testMesh) agent(ctx context.Context, c mesh.ClusterName) {
	keys := map[string]crypto.Signer{}
	var at *Board
	var done mesh.Fingerprint
	for ctx.Err() == nil {
		board, _ := m.server()
		if board != at { // a new server: it is told everything
			at = board
			m.reportAll(c, keys)
		}
		raw, _ := board.Directive(c)
		var d mesh.TrustDirective
		if len(raw) > 0 && mesh.FingerprintOf(raw) != done && json.Unmarshal(raw, &d) == nil {
			done = mesh.FingerprintOf(raw)
			m.obey(c, &d, done, keys)
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// reportAll says what the cluster is and asks for, as an agent does that connects.
func (m *testMesh) reportAll(c mesh.ClusterName, keys map[string]crypto.Signer) {
	m.mu.Lock()
	o, csrs := m.observed[c], maps.Clone(m.csrs[c])
	m.mu.Unlock()
	if o == nil {
		o = &mesh.TrustObservation{Ordered: true}
	}
	board, _ := m.server()
	for id := range keys {
		board.Take(c, mesh.ItemKey{Type: mesh.ItemTrustRequest, Name: id}, csrs[id])
	}
	m.report(c, o)
}

func (m *testMesh) report(c mesh.ClusterName, o *mesh.TrustObservation) {
	raw, err := json.Marshal(o)
	if err != nil {
		m.t.Error(err)
	}
	board, _ := m.server()
	m.mu.Lock()
	m.observed[c] = o
	m.mu.Unlock()
	board.Take(c, mesh.ItemKey{Type: mesh.ItemTrust, Name: "trust"}, raw)
}

// obey makes keys, asks for certificates, and shows a cluster that presents and trusts what the directive says.
func (m *testMesh) obey(c mesh.ClusterName, d *mesh.TrustDirective, applied mesh.Fingerprint, keys map[string]crypto.Signer) {
	o := &mesh.TrustObservation{Applied: applied, Ordered: true, Certificates: map[mesh.Fingerprint][]byte{}}
	var signer mesh.Fingerprint
	var chain []mesh.Fingerprint
	for _, i := range d.Intermediates {
		s := mesh.Slot{ID: i.ID}
		if keys[i.ID] == nil {
			keys[i.ID] = m.key(c, i)
		}
		certs, _ := pki.ParseCertificates(i.Chain)
		for n, cert := range certs {
			f := mesh.FingerprintOf(cert.Raw)
			o.Certificates[f] = cert.Raw
			if n == 0 {
				s.Signer = f
			}
			if i.ID == d.Signer {
				chain, signer = append(chain, f), s.Signer
			}
		}
		o.Slots = append(o.Slots, s)
	}
	if !signer.IsZero() {
		m.mu.Lock()
		m.signers[c] = signer
		m.mu.Unlock()
		var roots []mesh.Fingerprint
		var names []string
		certs, err := pki.ParseCertificates(d.Bundle)
		if err != nil {
			m.t.Error(err)
		}
		for _, cert := range certs {
			f := mesh.FingerprintOf(cert.Raw)
			roots, names, o.Certificates[f] = append(roots, f), append(names, cert.Subject.String()), cert.Raw
		}
		slices.Sort(names)
		o.Secret = &mesh.CACerts{Owner: mesh.OwnerValue, Signer: signer, Chain: chain, Roots: roots}
		if len(d.CRL) > 0 {
			o.Secret.CRL = mesh.FingerprintOf(d.CRL)
			o.CRLs = []mesh.CRLGroup{{SHA256: o.Secret.CRL, Count: 3}}
		}
		o.Istiods = []mesh.IstiodProbe{{Pod: "istiod-0", Version: "1.30.1", MultiRoot: true, Signer: signer, Chain: chain, Roots: roots, Serving: chain}}
		o.ConfigMaps, o.Webhooks = []mesh.BundleGroup{{Roots: roots, Count: 3}}, []mesh.BundleGroup{{Roots: roots, Count: 2}}
		o.Verifiers = []mesh.VerifierGroup{{Kind: "ztunnel", Version: "1.30.1", Issuer: signer, Chain: chain, Accepts: names, Known: true, Count: 3, CRL: true}}
		o.Restarted.Done = d.Restart
	}
	m.report(c, o)
}

// key makes the key of a slot and asks for its certificate.
func (m *testMesh) key(c mesh.ClusterName, o mesh.IntermediateOrder) crypto.Signer {
	key, err := pki.GenerateKey(pki.KeyAlgorithm(o.Algorithm))
	if err != nil {
		m.t.Error(err)
		return nil
	}
	var uris []*url.URL
	for _, text := range o.URIs {
		if u, err := url.Parse(text); err == nil {
			uris = append(uris, u)
		}
	}
	csr, err := pki.NewCSR(key, pkix.Name{CommonName: o.CommonName, Organization: []string{o.Organization}}, uris)
	if err != nil {
		m.t.Error(err)
	}
	raw, err := json.Marshal(mesh.IntermediateRequest{ID: o.ID, CSR: csr})
	if err != nil {
		m.t.Error(err)
	}
	board, _ := m.server()
	m.mu.Lock()
	if m.csrs[c] == nil {
		m.csrs[c] = map[string][]byte{}
	}
	m.csrs[c][o.ID] = raw
	m.mu.Unlock()
	board.Take(c, mesh.ItemKey{Type: mesh.ItemTrustRequest, Name: o.ID}, raw)
	return key
}

// issued is the intermediate that a cluster signs with, nil if there is none.
func (m *testMesh) issued(c mesh.ClusterName) *trust.Issued {
	m.mu.Lock()
	signer := m.signers[c]
	m.mu.Unlock()
	_, k := m.server()
	for _, i := range k.store.cluster(c).Issued {
		if i.Signer == signer {
			return &i
		}
	}
	return nil
}
