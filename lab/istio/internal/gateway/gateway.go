// Package gateway stands in for the Envoy of east-west gateways and waypoints.
//
// In: HBONE connections of verified peers, workloads and services from the
// cluster's real istiod (package wds). Out: on an east-west gateway the bytes of
// the inner tunnel, handed to an endpoint of the service that the outer CONNECT
// names; on a waypoint a new tunnel to the endpoint, under the waypoint's own
// identity. It must not route by anything else and enforces no policy: a
// waypoint here has no L7 rules.
package gateway

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"istio.io/istio/pkg/workloadapi"

	"ambitmesh.dev/ambit/lab/istio/internal/hbone"
	"ambitmesh.dev/ambit/lab/istio/internal/svid"
	"ambitmesh.dev/ambit/lab/istio/internal/wds"
)

const hbonePort = "15008"

// Gateway answers CONNECT requests.
type Gateway struct {
	Network  string
	Store    *wds.Store
	Identity *svid.Identity
	EastWest bool // else a waypoint
}

// Open is the Open of a hbone.Server.
func (g *Gateway) Open(ctx context.Context, r hbone.Request) (*hbone.Stream, error) {
	if !g.Store.Synced() {
		return nil, refuse(http.StatusServiceUnavailable, "istiod has not told this gateway of the mesh yet")
	}
	w, target, err := g.endpoint(r.Authority)
	if err != nil {
		return nil, err
	}
	dial := func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", net.JoinHostPort(wds.Address(w).String(), hbonePort))
	}
	if g.EastWest {
		c, err := dial(ctx)
		if err != nil {
			return nil, refuse(http.StatusServiceUnavailable, "%v", err)
		}
		return &hbone.Stream{Conn: c, Verdict: "passed on to " + w.GetNamespace() + "/" + w.GetName()}, nil
	}
	want := wds.Identity(w)
	config, err := g.Identity.ClientTLS(func(peer string) error {
		if peer != want {
			return fmt.Errorf("peer is %s, want %s", peer, want)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	t, err := hbone.Connect(ctx, dial, config, target)
	if refused, ok := errors.AsType[*hbone.RefusedError](err); ok { // the destination's word is passed on
		return nil, &hbone.Refusal{Status: refused.Status, Reason: refused.Reason}
	}
	if err != nil {
		return nil, err
	}
	return &hbone.Stream{Conn: t, Verdict: t.Verdict}, nil
}

// endpoint finds whom an authority means: a service by name or address, or a
// workload by address. target is the workload's own address and port.
func (g *Gateway) endpoint(authority string) (w *workloadapi.Workload, target string, err error) {
	host, portText, err := net.SplitHostPort(authority)
	if err != nil {
		return nil, "", refuse(http.StatusBadRequest, "authority %q: want host:port", authority)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return nil, "", refuse(http.StatusBadRequest, "authority %q: bad port", authority)
	}
	svc := g.Store.ByHost(host)
	if ip, err := netip.ParseAddr(host); err == nil {
		if w := g.Store.ByAddress(g.Network, ip); w != nil && !g.EastWest {
			return w, authority, nil
		}
		svc = g.Store.ByVIP(g.Network, ip)
	}
	if svc == nil {
		return nil, "", refuse(http.StatusNotFound, "no service %s in this cluster", host)
	}
	local := slices.DeleteFunc(g.Store.Endpoints(svc), func(w *workloadapi.Workload) bool {
		return w.GetNetwork() != g.Network || w.GetStatus() != workloadapi.WorkloadStatus_HEALTHY || w.GetTunnelProtocol() != workloadapi.TunnelProtocol_HBONE
	})
	if len(local) == 0 {
		return nil, "", refuse(http.StatusServiceUnavailable, "service %s has no healthy endpoint in the mesh of this cluster", host)
	}
	w = local[rand.IntN(len(local))] //nolint:gosec // a choice of endpoint
	p := wds.TargetPort(svc, w, uint32(port))
	if p == 0 {
		return nil, "", refuse(http.StatusNotFound, "service %s has no port %d", host, port)
	}
	return w, net.JoinHostPort(wds.Address(w).String(), fmt.Sprint(p)), nil
}

func refuse(status int, format string, args ...any) error {
	return &hbone.Refusal{Status: status, Reason: fmt.Sprintf(format, args...)}
}
