package agent

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"ambitmesh.dev/ambit/internal/apply"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/relay"
	"ambitmesh.dev/ambit/internal/remotesecrets"
	"ambitmesh.dev/ambit/internal/version"
)

// status answers probes, scrapes and people. The agent is ready when it runs and knows its cluster: not being registered yet is no reason to be unready.
type status struct {
	cluster mesh.ClusterName

	mu      sync.Mutex
	spoke   *relay.Spoke
	applier *apply.Applier
	trust   *trust
	remotes *remotes
}

func newStatus(c mesh.ClusterName) *status { return &status{cluster: c} }

func (s *status) started(spoke *relay.Spoke, applier *apply.Applier, trust *trust, remotes *remotes) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.spoke, s.applier, s.trust, s.remotes = spoke, applier, trust, remotes
}

// observation is what is known of trust, JSON; it holds no secret.
func (s *status) observation() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.trust == nil {
		return []byte("{}")
	}
	return s.trust.last()
}

// tokens is what was last reported of remote secrets, JSON; it holds no credential.
func (s *status) tokens() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.remotes.last()
}

// remoteSecrets is how remote secrets are doing.
func (s *status) remoteSecrets() remotesecrets.Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.remotes.stats()
}

func (s *status) applied() apply.Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.applier == nil {
		return apply.Stats{}
	}
	return s.applier.Stats()
}

func (s *status) relay() (relay.SpokeStatus, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.spoke == nil {
		return relay.SpokeStatus{}, false
	}
	return s.spoke.Status(), true
}

func (s *status) health() http.Handler {
	m := http.NewServeMux()
	m.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	m.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if _, ok := s.relay(); !ok {
			http.Error(w, "the API server has not told yet which cluster this is", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	return m
}

func (s *status) metrics() http.Handler {
	m := http.NewServeMux()
	m.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		st, _ := s.relay()
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{
			"cluster": s.cluster, "version": version.Version, "connected": st.Connected, "since": st.Since.UTC().Format(time.RFC3339),
			"serverVersion": st.ServerVersion, "lastError": st.LastError, "certificateNotAfter": st.Identity.NotAfter.UTC().Format(time.RFC3339),
			"objects": s.applied(), "clockOffset": st.Offset.String(), "roundTrip": st.RTT.String(),
		})
	})
	m.HandleFunc("GET /trust", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(s.observation())
	})
	m.HandleFunc("GET /tokens", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(s.tokens())
	})
	m.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		st, _ := s.relay()
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		fmt.Fprint(w, expose(s.cluster, st, s.applied(), s.remoteSecrets()))
	})
	return m
}

// expose writes the few metrics of an agent in Prometheus' text format; the client library would cost more memory than the agent's own work.
func expose(c mesh.ClusterName, st relay.SpokeStatus, objects apply.Stats, remotes remotesecrets.Stats) string {
	connected := 0
	if st.Connected {
		connected = 1
	}
	var b strings.Builder
	gauge := func(name, help string, v float64) {
		fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s gauge\n%s{cluster=%q} %g\n", name, help, name, name, string(c), v)
	}
	gauge("relay_agent_connected", "1 while a session with the management server is open.", float64(connected))
	gauge("relay_agent_round_trip_seconds", "Round trip to the management server, by the last heartbeat.", st.RTT.Seconds())
	gauge("relay_agent_clock_offset_seconds", "What to add to this clock to get the management server's.", st.Offset.Seconds())
	if !st.Identity.NotAfter.IsZero() {
		gauge("relay_agent_certificate_not_after_seconds", "When the client certificate expires (Unix time).", float64(st.Identity.NotAfter.Unix()))
	}
	gauge("gloo_mesh_agent_objects_desired", "Objects the management server wants in this cluster.", float64(objects.Desired))
	gauge("gloo_mesh_agent_objects_applied", "Of these, as they should be.", float64(objects.Applied))
	gauge("gloo_mesh_agent_objects_failed", "Of these, not taken by the API server.", float64(objects.Failed))
	gauge("gloo_mesh_agent_objects_held", "Of these, suspended by an override and left as they are.", float64(objects.Held))
	gauge("gloo_mesh_agent_objects_taken_over", "Of these, without our owner label: somebody took them over.", float64(objects.Taken))
	gauge("gloo_mesh_agent_remote_secrets", "Remote secrets that the agent keeps.", float64(remotes.Held))
	gauge("gloo_mesh_agent_remote_secrets_unsynced", "Of these, not in use by every istiod yet.", float64(remotes.Unsynced))
	if remotes.Held > 0 {
		gauge("gloo_mesh_agent_remote_token_issued_seconds", "When the oldest token in a remote secret was made (Unix time).", float64(remotes.OldestIssued.Unix()))
		gauge("gloo_mesh_agent_remote_token_expiry_seconds", "When the first token in a remote secret ends (Unix time).", float64(remotes.SoonestExpiry.Unix()))
	}
	const back = "gloo_mesh_agent_drift_corrected_total"
	fmt.Fprintf(&b, "# HELP %s Objects put back after somebody had changed or deleted them.\n# TYPE %s counter\n%s{cluster=%q} %d\n", back, back, back, string(c), objects.PutBack)
	return b.String()
}
