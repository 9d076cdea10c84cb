// Package demo makes a mesh up for the UI: for its tests, for screenshots, and for whoever wants to look before installing anything.
//
// In: a time and a size. Out: a World, an audit log in memory and a topology table that goes on by itself. It must not be mistaken for a real mesh: the UI says that it is made up.
package demo

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	networkingv2alpha1 "ambitmesh.dev/ambit/api/networking/v2alpha1"
	securityv2 "ambitmesh.dev/ambit/api/security/v2"
	"ambitmesh.dev/ambit/internal/audit"
	"ambitmesh.dev/ambit/internal/topology"
	topologydemo "ambitmesh.dev/ambit/internal/topology/demo"
	"ambitmesh.dev/ambit/internal/ui"
)

const namespace = "gloo-mesh"

// people who change things in the mesh.
const (
	jane = "jane.doe@bank.example.com"
	omar = "omar.haddad@bank.example.com"
	pki  = "pki-team@bank.example.com"
)

// Mesh is a made-up mesh.
type Mesh struct {
	names []string
	now   func() time.Time
	log   log
	Table *topology.Table
	made  *topologydemo.World
}

// New makes one up by a clock.
func New(size topologydemo.Size, now func() time.Time) (*Mesh, error) {
	m := &Mesh{now: now, Table: topology.New(topology.Config{Decide: decide}), made: topologydemo.New(size)}
	at := now()
	if err := m.made.Fill(m.Table, at, 40); err != nil {
		return nil, err
	}
	for _, c := range m.made.Clusters() {
		m.names = append(m.names, string(c))
	}
	m.log = records(m.names, at)
	return m, nil
}

// Run goes on making traffic up until ctx ends.
func (m *Mesh) Run(ctx context.Context) {
	tick := time.NewTicker(topology.Interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			at := m.now()
			for _, r := range m.made.Next(at) {
				_ = m.Table.Apply(r, at) // of a report of our own making
			}
		}
	}
}

// World is what the API server would have: heartbeats go on.
func (m *Mesh) World(context.Context) (*ui.World, error) {
	now := m.now().Truncate(time.Minute).Add(-time.Second)
	return &ui.World{Clusters: clusters(m.names, now), Trust: trust(m.names, now), Policies: policies(m.names, now), Segments: segments(m.names, now)}, nil
}

// Log is the audit log.
func (m *Mesh) Log() ui.Log { return &m.log }

func decide(k topology.Key, _ []topology.Principal) *topology.Decision {
	policy := k.To.Namespace + "/" + k.To.Service + "-callers"
	return &topology.Decision{
		AccessPolicy: policy, Candidates: []string{string(k.To.Cluster) + "/" + policy},
		Text: fmt.Sprintf("AccessPolicy %s allows other service accounts, and not %s of %s", policy, k.From.Service, k.From.Namespace),
	}
}

func ago(now time.Time, d time.Duration) *metav1.Time {
	t := metav1.NewTime(now.Add(-d).Truncate(time.Second))
	return &t
}

const day = 24 * time.Hour

func hex(seed string, n int) string {
	const digits = "0123456789abcdef"
	h := uint64(14695981039346656037)
	var b strings.Builder
	for i := range n {
		for _, c := range []byte(seed + string(rune('a'+i%26))) {
			h = (h ^ uint64(c)) * 1099511628211
		}
		b.WriteByte(digits[h>>40&15])
	}
	return b.String()
}

func certificate(now time.Time, subject, issuer string, generation int64, age, life time.Duration) adminv2.CACertificate {
	return adminv2.CACertificate{
		Fingerprint: hex(subject, 64), Generation: generation, Subject: subject, Issuer: issuer, Serial: hex(subject+"serial", 40), Key: "ECDSA-P256",
		NotBefore: ago(now, age), NotAfter: ago(now, age-life),
	}
}

const root = "CN=Root CA g2 5b7f0c31,O=gloo-mesh"

func clusters(names []string, now time.Time) []adminv2.KubernetesCluster {
	out := make([]adminv2.KubernetesCluster, 0, len(names))
	for i, name := range names {
		age := time.Duration(280-17*i) * day
		k := adminv2.KubernetesCluster{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{"env": "prod"}, CreationTimestamp: *ago(now, age), Generation: 1}}
		intermediate := certificate(now, "CN="+name+" g2-1,O=gloo-mesh", root, 2, 40*day, time.Duration(365-100*i)*day)
		k.Status = adminv2.KubernetesClusterStatus{
			Connection: adminv2.ConnectionConnected, AgentVersion: "2.12.0", LastHeartbeat: ago(now, 9*time.Second), TrustDomain: "cluster.local", RegisteredBy: jane, RegisteredAt: ago(now, age),
			ClusterUID: hex(name, 8) + "-" + hex(name+"u", 4) + "-4c1e-9d2b-" + hex(name+"v", 12), IstioVersion: "1.30.1", Network: name,
			Conditions: []metav1.Condition{{Type: "Connected", Status: metav1.ConditionTrue, Reason: "Session", Message: "its agent is connected", LastTransitionTime: *ago(now, 3*day)}},
			CaStatus: &adminv2.ClusterCAStatus{
				Rotation: adminv2.RotationSucceeded, RotatedAt: ago(now, 40*day), Phase: adminv2.PhaseSteady, Policy: namespace + "/root-trust-policy", Generation: 2, Owner: "gloo-mesh",
				Message: "as the phase wants it", Intermediate: &intermediate, Roots: []adminv2.CACertificate{certificate(now, root, root, 2, 41*day, 3650*day)}, LastProbe: ago(now, 20*time.Second),
				Istiods: []adminv2.IstiodCAStatus{{Pod: "istiod-6c9f7d-x2x4q", Version: "1.30.1", MultiRoot: true, Current: true}},
				Verifiers: []adminv2.VerifierCAStatus{
					{Kind: "ztunnel", Total: int32(6 + i), Trusting: int32(6 + i), Presenting: int32(6 + i), LeafUntil: ago(now, -22*time.Hour)},
					{Kind: "eastwest", Total: 2, Trusting: 2, Presenting: 2, LeafUntil: ago(now, -20*time.Hour)},
				},
			},
		}
		for j, other := range names {
			if other != name {
				k.Status.Peers = append(k.Status.Peers, adminv2.ClusterPeer{Cluster: other, Reason: "Automatic", Address: fmt.Sprintf("203.0.113.%d:15008", 10+j), Reachable: "True", RoundTrip: fmt.Sprintf("%dms", 9+7*(i+j))})
			}
		}
		out = append(out, k)
	}
	if last := &out[len(out)-1]; len(out) > 2 { // its agent is away
		last.Status.Connection, last.Status.LastHeartbeat = adminv2.ConnectionDisconnected, ago(now, 4*time.Minute)
		last.Status.Conditions[0].Status, last.Status.Conditions[0].Message = metav1.ConditionFalse, "its agent is away"
		last.Status.AgentVersion = "2.11.4"
	}
	slices.SortFunc(out, func(a, b adminv2.KubernetesCluster) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func trust(names []string, now time.Time) []adminv2.RootTrustPolicy {
	p := adminv2.RootTrustPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "root-trust-policy", CreationTimestamp: *ago(now, 280*day), Generation: 3}}
	r := certificate(now, root, root, 2, 41*day, 3650*day)
	p.Status = adminv2.RootTrustPolicyStatus{
		ObservedGeneration: 3, State: adminv2.ApprovalAccepted, Phase: adminv2.PhaseSteady, Message: fmt.Sprintf("%d clusters sign under root generation 2, proven by handshakes", len(names)),
		Roots: []adminv2.RootStatus{{Generation: 2, Role: adminv2.RootActive, Fingerprint: r.Fingerprint, Subject: root, Issuer: "generated ECDSA-P256, O=gloo-mesh", NotAfter: r.NotAfter}},
	}
	for _, name := range names {
		p.Status.Clusters = append(p.Status.Clusters, adminv2.ClusterTrustStatus{Name: name, Phase: adminv2.PhaseSteady, State: adminv2.ApprovalAccepted, Message: "as the phase wants it", Roots: []string{r.Fingerprint}})
	}
	return []adminv2.RootTrustPolicy{p}
}

func policies(names []string, now time.Time) []securityv2.AccessPolicy {
	one := func(ns, name, by string, age time.Duration, allowed []string, states ...securityv2.PolicyState) securityv2.AccessPolicy {
		p := securityv2.AccessPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, CreationTimestamp: *ago(now, age), Generation: 2}}
		p.Spec.Config = &securityv2.AccessPolicyConfig{}
		p.Status.ChangedBy, p.Status.AllowedServiceAccounts = by, allowed
		in := 0
		for i, c := range names {
			s := securityv2.ClusterPolicyStatus{Cluster: c, State: securityv2.PolicyInForce, Objects: []string{"AuthorizationPolicy " + ns + "/accesspolicy-" + name}}
			if i < len(states) {
				s.State = states[i]
			}
			switch s.State {
			case securityv2.PolicyDrifted:
				s.Message = "somebody changed AuthorizationPolicy " + ns + "/accesspolicy-" + name
				s.LastDrift = &securityv2.DriftStatus{Object: s.Objects[0], Manager: "kubectl-edit", At: ago(now, 6*time.Minute), What: "spec.rules: a rule was added", Corrected: false}
			case securityv2.PolicyPending:
				s.Message = "its agent is away: it has the policy as of 4 minutes ago"
			case securityv2.PolicyInForce:
				in++
			default:
			}
			p.Status.Clusters = append(p.Status.Clusters, s)
		}
		p.Status.InForce = fmt.Sprintf("%d/%d", in, len(names))
		return p
	}
	ok, drifted, pending := securityv2.PolicyInForce, securityv2.PolicyDrifted, securityv2.PolicyPending
	return []securityv2.AccessPolicy{
		one("billing", "billing-allow-payments", jane, 11*time.Minute, []string{"cluster.local/ns/payments/sa/checkout"}, ok, ok, pending),
		one("catalog", "catalog-readers", omar, 90*day, []string{"cluster.local/ns/storefront/sa/api", "cluster.local/ns/storefront/sa/web"}, ok, drifted, ok),
		one("payments", "payments-callers", omar, 31*day, []string{"cluster.local/ns/storefront/sa/checkout"}),
	}
}

func segments(names []string, now time.Time) []networkingv2alpha1.Segment {
	g := networkingv2alpha1.Segment{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "productpage-global", CreationTimestamp: *ago(now, 20*day), Generation: 1}}
	g.Spec.Hosts = []string{"productpage.bookinfo.mesh.internal"}
	g.Spec.Selector = networkingv2alpha1.SegmentSelector{Namespace: "bookinfo", Labels: map[string]string{"app": "productpage"}}
	g.Spec.Ports = []networkingv2alpha1.SegmentPort{{Number: 9080, Protocol: "HTTP"}}
	for i, n := range names {
		c := networkingv2alpha1.SegmentClusterStatus{Name: n, Services: []string{"bookinfo/productpage"}, Labelled: true, Programmed: true, Endpoints: int32(len(names)), VIP: fmt.Sprintf("10.96.40.%d", 20+i)} //nolint:gosec // few
		if i == 2 {
			c.Programmed, c.Message = false, "its agent is away: last seen to serve it 4 minutes ago"
		}
		g.Status.Clusters = append(g.Status.Clusters, c)
	}
	return []networkingv2alpha1.Segment{g}
}

// log is an audit log that nobody keeps.
type log struct{ all []audit.Record }

func records(names []string, now time.Time) log {
	var all []audit.Record
	add := func(age time.Duration, r audit.Record) {
		r.N, r.At = int64(len(all)), now.Add(-age).UTC().Truncate(time.Microsecond)
		all = append(all, r)
	}
	for i, name := range names {
		age := time.Duration(280-17*i) * day
		add(age, audit.Record{
			Act: audit.Admitted, User: jane, Groups: []string{"platform"}, Source: "admission", Operation: "CREATE", Object: "KubernetesCluster gloo-mesh/" + name, Cluster: name,
			Diff: []audit.Change{{Path: "metadata.labels.env", New: "prod"}},
		})
		add(age-time.Second, audit.Record{Act: audit.ClusterRegistered, Source: "relay", Cluster: name, Membership: &audit.Membership{ClusterUID: hex(name, 8), TrustDomain: "cluster.local", AgentVersion: "2.12.0"}})
	}
	add(41*day, audit.Record{Act: audit.Admitted, User: pki, Source: "admission", Operation: "CREATE", Object: "RotationRequest gloo-mesh/rotate-7xk2p", Policy: "gloo-mesh/root-trust-policy"})
	add(40*day, audit.Record{Act: audit.TrustChanged, User: pki, Source: "rotation", Object: "RootTrustPolicy gloo-mesh/root-trust-policy", Policy: "gloo-mesh/root-trust-policy", Detail: "the rotation to generation 2 is finished: the old root is trusted nowhere"})
	add(11*time.Minute, audit.Record{
		Act: audit.Admitted, User: jane, Groups: []string{"billing-team"}, Source: "admission", Operation: "UPDATE", Object: "AccessPolicy billing/billing-allow-payments", Policy: "billing/billing-allow-payments",
		Diff: []audit.Change{{Path: "spec.config.authz.allowedClients[0].serviceAccountSelector.namespace", Old: "storefront", New: "payments"}},
	})
	add(6*time.Minute, audit.Record{Act: audit.DriftCorrected, Manager: "kubectl-edit", Source: "agent", Cluster: names[min(1, len(names)-1)], Object: "AuthorizationPolicy catalog/accesspolicy-catalog-readers", Detail: "spec.rules: a rule was added; put back"})
	return log{all}
}

// Append implements ui.Log: what is looked at in a made-up mesh is not kept.
func (l *log) Append(context.Context, ...audit.Record) error { return nil }

// Head implements ui.Log.
func (l *log) Head(context.Context) ([]byte, error) {
	return []byte(fmt.Sprintf("mgmt/demo\n%d\n%s\n", len(l.all), "bm90IGEgcmVhbCBoZWFkLCB0aGlzIGlzIGEgZGVtbyAtLS0=")), nil
}

// Records implements ui.Log for the questions that the UI asks.
func (l *log) Records(_ context.Context, q audit.Query) iter.Seq2[audit.Row, error] {
	return func(yield func(audit.Row, error) bool) {
		all := slices.Clone(l.all)
		if q.Last {
			slices.Reverse(all)
		}
		n := 0
		for i := range all {
			r := &all[i]
			_, name, _ := strings.Cut(r.Object, "/")
			if !q.From.IsZero() && r.At.Before(q.From) || !q.To.IsZero() && !r.At.Before(q.To) || q.Act != "" && r.Act != q.Act || q.User != "" && r.User != q.User ||
				q.Cluster != "" && r.Cluster != q.Cluster || q.Name != "" && name != q.Name && r.Cluster != q.Name || q.Object != "" && r.Object != q.Object {
				continue
			}
			raw, err := audit.Encode(*r)
			if !yield(audit.Row{N: r.N, Data: raw}, err) || err != nil {
				return
			}
			if n++; q.Limit > 0 && n >= q.Limit {
				return
			}
		}
	}
}
