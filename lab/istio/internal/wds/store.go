// Package wds learns from istiod what ztunnel learns: workloads, services and
// authorization policies, by delta ADS.
//
// In: istiod's address and a token; out: a Store that answers for what a
// connection needs to know, and calls back on every change. It must not decide
// anything, and keeps what it has while istiod is away, as ztunnel does.
package wds

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"istio.io/istio/pkg/workloadapi"
	"istio.io/istio/pkg/workloadapi/security"
)

// Store is what istiod has said. Messages in it are never modified.
type Store struct {
	mu        sync.RWMutex
	workloads map[string]*workloadapi.Workload // by uid
	services  map[string]*workloadapi.Service  // by namespace/hostname
	policies  map[string]*security.Authorization
	synced    map[string]bool // by type URL: the first answer has arrived
	changed   func()
}

// NewStore returns an empty store; changed is called after every change.
func NewStore(changed func()) *Store {
	return &Store{
		workloads: map[string]*workloadapi.Workload{}, services: map[string]*workloadapi.Service{},
		policies: map[string]*security.Authorization{}, synced: map[string]bool{}, changed: changed,
	}
}

// Synced reports whether istiod has sent everything once.
func (s *Store) Synced() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.synced[addressType] && s.synced[authorizationType]
}

// Policies are all policies by "namespace/name". The map must not be modified.
func (s *Store) Policies() map[string]*security.Authorization {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return maps.Clone(s.policies)
}

// Workloads are all workloads that match, by uid.
func (s *Store) Workloads(match func(*workloadapi.Workload) bool) []*workloadapi.Workload {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []*workloadapi.Workload
	for _, uid := range slices.Sorted(maps.Keys(s.workloads)) {
		if w := s.workloads[uid]; match(w) {
			out = append(out, w)
		}
	}
	return out
}

// Services are all services that match, by namespace and host name.
func (s *Store) Services(match func(*workloadapi.Service) bool) []*workloadapi.Service {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []*workloadapi.Service
	for _, key := range slices.Sorted(maps.Keys(s.services)) {
		if svc := s.services[key]; match(svc) {
			out = append(out, svc)
		}
	}
	return out
}

// ByAddress is the workload at an address of a network, or nil.
func (s *Store) ByAddress(network string, ip netip.Addr) *workloadapi.Workload {
	all := s.Workloads(func(w *workloadapi.Workload) bool { return w.GetNetwork() == network && HasAddress(w, ip) })
	if len(all) == 0 {
		return nil
	}
	return all[0]
}

// ByUID is the workload with a uid, or nil.
func (s *Store) ByUID(uid string) *workloadapi.Workload {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.workloads[uid]
}

// ByHost is the service with a host name, or nil. Short names (name.namespace)
// are understood.
func (s *Store) ByHost(host string) *workloadapi.Service {
	all := s.Services(func(svc *workloadapi.Service) bool {
		return svc.GetHostname() == host || strings.HasPrefix(svc.GetHostname(), host+".svc.")
	})
	if len(all) == 0 {
		return nil
	}
	return all[0]
}

// ByVIP is the service with an address on a network, or nil.
func (s *Store) ByVIP(network string, ip netip.Addr) *workloadapi.Service {
	all := s.Services(func(svc *workloadapi.Service) bool {
		return slices.ContainsFunc(svc.GetAddresses(), func(a *workloadapi.NetworkAddress) bool {
			got, ok := netip.AddrFromSlice(a.GetAddress())
			return ok && got == ip && a.GetNetwork() == network
		})
	})
	if len(all) == 0 {
		return nil
	}
	return all[0]
}

// Endpoints are the workloads of a service.
func (s *Store) Endpoints(svc *workloadapi.Service) []*workloadapi.Workload {
	key := ServiceKey(svc)
	return s.Workloads(func(w *workloadapi.Workload) bool { return w.GetServices()[key] != nil })
}

// ServiceKey is how workloads name a service.
func ServiceKey(svc *workloadapi.Service) string { return svc.GetNamespace() + "/" + svc.GetHostname() }

// HasAddress reports whether a workload has an address.
func HasAddress(w *workloadapi.Workload, ip netip.Addr) bool {
	return slices.ContainsFunc(w.GetAddresses(), func(b []byte) bool {
		got, ok := netip.AddrFromSlice(b)
		return ok && got == ip
	})
}

// Address is the first address of a workload.
func Address(w *workloadapi.Workload) netip.Addr {
	for _, b := range w.GetAddresses() {
		if ip, ok := netip.AddrFromSlice(b); ok {
			return ip
		}
	}
	return netip.Addr{}
}

// Identity is the SPIFFE ID of a workload.
func Identity(w *workloadapi.Workload) string {
	or := func(v, def string) string {
		if v == "" {
			return def
		}
		return v
	}
	return "spiffe://" + or(w.GetTrustDomain(), "cluster.local") + "/ns/" + w.GetNamespace() + "/sa/" + or(w.GetServiceAccount(), "default")
}

// TargetPort is where a workload listens for a port of one of its services, 0
// when it does not have the port.
func TargetPort(svc *workloadapi.Service, w *workloadapi.Workload, port uint32) uint32 {
	for _, ports := range [][]*workloadapi.Port{w.GetServices()[ServiceKey(svc)].GetPorts(), svc.GetPorts()} {
		for _, p := range ports {
			if p.GetServicePort() == port && p.GetTargetPort() != 0 {
				return p.GetTargetPort()
			}
		}
	}
	return 0
}
