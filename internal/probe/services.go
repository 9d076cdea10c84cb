package probe

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
)

// addresses is the debug request that tells what ztunnels are served (istio: pilot/pkg/xds/debug.go, ambientz).
const (
	addresses = "ambientz"
	maxServed = 64 << 20 // a cluster of 50,000 Pods
)

// ServedService is a Service as an istiod serves it to ztunnels.
type ServedService struct {
	VIP string // its address in the own network; empty: none
	// Local are endpoints of the own network; Remote are other networks that have some, reached by their gateway.
	Local, Remote int32
}

// served is the part of that answer that is read. Addresses are texts.
type served struct {
	Workloads []struct {
		Network  string
		Services map[string]json.RawMessage // "namespace/hostname"
		Gateway  json.RawMessage            `json:"networkGateway"`
	}
	Services []struct {
		Namespace, Name, Hostname string
		Addresses                 []struct {
			Network string
			Address []byte
		}
	}
}

// Services tells of the Services named ("namespace/name") what an istiod serves; one that it does not serve is missing. network is the own one.
func (a Asker) Services(ctx context.Context, r Replica, network string, wanted map[string]bool) (map[string]ServedService, error) {
	raw, err := a.ask(ctx, r, addresses)
	if err != nil {
		return nil, err
	}
	out, err := readServed(raw, network, wanted)
	if err != nil {
		return nil, fmt.Errorf("istiod %s: what it serves can't be read: %w", r.Name, err)
	}
	return out, nil
}

func readServed(raw []byte, network string, wanted map[string]bool) (map[string]ServedService, error) {
	var all served
	if err := json.Unmarshal(raw, &all); err != nil {
		return nil, err
	}
	out, hosts := map[string]ServedService{}, map[string]string{}
	for _, s := range all.Services {
		key := s.Namespace + "/" + s.Name
		if !wanted[key] || !strings.HasPrefix(s.Hostname, s.Name+"."+s.Namespace+".svc.") {
			continue
		}
		found := out[key]
		for _, a := range s.Addresses {
			if a.Network == network && found.VIP == "" {
				found.VIP = string(a.Address)
			}
		}
		out[key] = found
		hosts[s.Namespace+"/"+s.Hostname] = key
	}
	for _, w := range all.Workloads {
		for host := range w.Services {
			key, ok := hosts[host]
			if !ok {
				continue
			}
			found := out[key]
			switch {
			case len(w.Gateway) > 0:
				found.Remote++
			case w.Network == network:
				found.Local++
			}
			out[key] = found
		}
	}
	return out, nil
}
