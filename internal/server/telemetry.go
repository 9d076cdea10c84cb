package server

import (
	"strings"
	"sync"
	"sync/atomic"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/relay"
	"ambitmesh.dev/ambit/internal/telemetry"
	"ambitmesh.dev/ambit/internal/topology"
	"ambitmesh.dev/ambit/internal/translate"
)

// newTelemetry allocates the telemetry of this replica. It lives as long as the process; only what leads hears of agents.
func (s *server) newTelemetry() *telemetry.Telemetry {
	m := &meshFacts{latest: s.latestView}
	return telemetry.New(telemetry.Config{
		Folder: s.cfg.TelemetryDir, MetricsAge: s.cfg.MetricsAge, MetricsBytes: s.cfg.MetricsBytes, TracesAge: s.cfg.TracesAge, TracesBytes: s.cfg.TracesBytes,
		Table: topology.Config{ClusterOf: m.clusterOf, Decide: m.decide}, Sessions: s.relaySessions, Log: s.log.With("stage", "telemetry"),
	})
}

func (s *server) latestView() *view {
	if rep := s.leading.Load(); rep != nil {
		return rep.latest.Load()
	}
	return nil
}

// hubPointer is the hub while this replica leads.
type hubPointer = atomic.Pointer[relay.Hub]

func (s *server) relaySessions() []relay.SessionInfo {
	if h := s.hub.Load(); h != nil {
		return h.Sessions()
	}
	return nil
}

// meshFacts answers what telemetry asks of the latest round.
type meshFacts struct {
	latest func() *view

	mu        sync.Mutex
	of        *view
	names     map[string]mesh.ClusterName // by what istiod calls them; "" where two share a name
	explainer *translate.Explainer
	decided   map[string]*topology.Decision
}

// refresh is called with the lock held; false while nothing is known.
func (m *meshFacts) refresh() bool {
	v := m.latest()
	if v == nil || v.snapshot == nil {
		return m.of != nil
	}
	if v == m.of {
		return true
	}
	m.of, m.explainer, m.names, m.decided = v, nil, map[string]mesh.ClusterName{}, map[string]*topology.Decision{}
	for i := range v.snapshot.Clusters {
		c := &v.snapshot.Clusters[i]
		if c.Inventory == nil {
			continue
		}
		id := c.Inventory.Info.IstioClusterID
		if _, twice := m.names[id]; twice {
			m.names[id] = ""
			continue
		}
		m.names[id] = c.Name
	}
	return true
}

// clusterOf implements topology.Config. An ID that several clusters share, such as istiod's default, names none of them.
func (m *meshFacts) clusterOf(id string) (mesh.ClusterName, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.refresh() {
		return "", false
	}
	name := m.names[id]
	return name, name != ""
}

// decide implements topology.Config: it asks the same explanation as `meshctl policy can-i`, of the policies as they are in the cluster.
func (m *meshFacts) decide(k topology.Key, from []topology.Principal) *topology.Decision {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.refresh() || k.To.Cluster == topology.Unknown || len(from) == 0 {
		return nil
	}
	ns, account, ok := accountOf(from[0])
	if !ok {
		return nil
	}
	id := k.ID() + "|" + string(from[0])
	if d, known := m.decided[id]; known {
		return d
	}
	if m.explainer == nil {
		m.explainer = translate.NewExplainer(m.of.snapshot, m.of.result)
	}
	q := translate.Question{FromCluster: k.From.Cluster, FromNamespace: ns, FromServiceAccount: account, ToCluster: k.To.Cluster, ToNamespace: k.To.Namespace, ToService: k.To.Service}
	if k.From.Cluster == topology.Unknown {
		q.FromCluster = k.To.Cluster
	}
	a := m.explainer.Ask(q)
	d := &topology.Decision{Candidates: a.Decided, Text: strings.Join(a.Decided, "; ")}
	if a.Allowed {
		d.Text = "policies as they are now allow this: the refusal came before their last change, or for a port, method or path that they leave out"
	}
	m.decided[id] = d
	return d
}

// accountOf reads "TRUSTDOMAIN/ns/NAMESPACE/sa/ACCOUNT".
func accountOf(p topology.Principal) (ns, account string, ok bool) {
	parts := strings.Split(string(p), "/")
	if len(parts) != 5 || parts[1] != "ns" || parts[3] != "sa" {
		return "", "", false
	}
	return parts[2], parts[4], true
}
