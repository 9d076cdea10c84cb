package rotation

import (
	"context"
	"crypto"
	"crypto/x509/pkix"
	"encoding/json"
	"log/slog"
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
	t         *testing.T
	client    client.Client
	namespace string
	board     *Board
	keeper    *Keeper
	ctx       context.Context //nolint:containedctx // of the agents, which join at any time
	wg        sync.WaitGroup

	mu       sync.Mutex
	policies map[string]*mesh.RootTrustPolicy
	clusters []mesh.Cluster
	signers  map[mesh.ClusterName]mesh.Fingerprint // intermediates in use
}

// newMesh starts a Keeper with clusters that have a label "mesh": the part of their name before '-'.
func newMesh(t *testing.T, clusters ...mesh.ClusterName) *testMesh {
	t.Helper()
	m := &testMesh{
		t: t, client: kubetest.Client(t, kubetest.Start(t)), board: NewBoard(func() {}), policies: map[string]*mesh.RootTrustPolicy{}, signers: map[mesh.ClusterName]mesh.Fingerprint{},
	}
	m.namespace = kubetest.Namespace(t, m.client)
	m.keeper = New(Config{
		Client: m.client, Namespace: m.namespace, Board: m.board, Snapshot: m.snapshot, Sessions: m.sessions, Issuers: NewIssuers(m.client, m.namespace),
		Record: func(audit.Record) {}, Changed: func() {}, Log: slog.New(slog.DiscardHandler),
	})
	ctx, stop := context.WithCancel(context.Background())
	m.ctx = ctx
	m.wg.Go(func() { _ = m.keeper.Run(ctx) })
	t.Cleanup(func() { stop(); m.wg.Wait() })
	m.join(clusters...)
	return m
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
	s := &mesh.Snapshot{AdminNamespace: m.namespace, Clusters: slices.Clone(m.clusters)}
	for _, p := range m.policies {
		s.RootPolicies = append(s.RootPolicies, p)
	}
	slices.SortFunc(s.RootPolicies, func(a, b *mesh.RootTrustPolicy) int { return a.Source.Compare(b.Source) })
	return s
}

// apply makes a policy of this name, for clusters of the group of this name, say this.
func (m *testMesh) apply(name string, config adminv2.RootTrustConfig) {
	m.t.Helper()
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
	m.keeper.Ring()
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
	m.report(c, &mesh.TrustObservation{Ordered: true})
	var done mesh.Fingerprint
	for ctx.Err() == nil {
		raw, _ := m.board.Directive(c)
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

func (m *testMesh) report(c mesh.ClusterName, o *mesh.TrustObservation) {
	raw, err := json.Marshal(o)
	if err != nil {
		m.t.Error(err)
	}
	m.board.Take(c, mesh.ItemKey{Type: mesh.ItemTrust, Name: "trust"}, raw)
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
		o.Istiods = []mesh.IstiodProbe{{Pod: "istiod-0", Version: "1.30.1", MultiRoot: true, Signer: signer, Chain: chain, Roots: roots, Serving: chain}}
		o.ConfigMaps, o.Webhooks = []mesh.BundleGroup{{Roots: roots, Count: 3}}, []mesh.BundleGroup{{Roots: roots, Count: 2}}
		o.Verifiers = []mesh.VerifierGroup{{Kind: "ztunnel", Version: "1.30.1", Issuer: signer, Chain: chain, Accepts: names, Known: true, Count: 3}}
		o.Restarted.Done = d.Restart
	}
	m.report(c, o)
}

// key makes the key of a slot and asks for its certificate.
func (m *testMesh) key(c mesh.ClusterName, o mesh.IntermediateOrder) crypto.Signer {
	key, err := pki.GenerateKey(pki.ECDSAP256)
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
	m.board.Take(c, mesh.ItemKey{Type: mesh.ItemTrustRequest, Name: o.ID}, raw)
	return key
}

// issued is the intermediate that a cluster signs with, nil if there is none.
func (m *testMesh) issued(c mesh.ClusterName) *trust.Issued {
	m.mu.Lock()
	signer := m.signers[c]
	m.mu.Unlock()
	for _, i := range m.keeper.store.cluster(c).Issued {
		if i.Signer == signer {
			return &i
		}
	}
	return nil
}
