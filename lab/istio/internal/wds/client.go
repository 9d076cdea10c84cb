package wds

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"istio.io/istio/pkg/workloadapi"
	"istio.io/istio/pkg/workloadapi/security"

	"ambitmesh.dev/ambit/lab/istio/internal/svid"
)

const (
	addressType       = "type.googleapis.com/istio.workload.Address"
	authorizationType = "type.googleapis.com/istio.security.Authorization"
)

// Config says who asks whom.
type Config struct {
	Address             string // host:port of istiod's secure port
	ClusterID, Network  string
	TokenFile, RootFile string
	// The Pod that asks; istiod compares namespace and account with the token.
	PodIP, PodName, Namespace, ServiceAccount, Node string
}

// Run keeps a store up to date until ctx ends.
func Run(ctx context.Context, cfg Config, s *Store, log *slog.Logger) error {
	backoff := 100 * time.Millisecond
	for {
		began := time.Now()
		err := stream(ctx, cfg, s)
		if ctx.Err() != nil {
			return nil
		}
		log.Info("stream from istiod ended", "error", err)
		if time.Since(began) > 10*time.Second {
			backoff = 100 * time.Millisecond
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, 5*time.Second)
	}
}

// stream is one connection to istiod.
func stream(ctx context.Context, cfg Config, s *Store) error {
	conn, err := svid.Dial(cfg.Address, cfg.RootFile)
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, err = svid.Authenticate(ctx, cfg.TokenFile, cfg.ClusterID)
	if err != nil {
		return err
	}
	ads, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return fmt.Errorf("istiod %s: %w", cfg.Address, err)
	}
	node, err := cfg.node()
	if err != nil {
		return err
	}
	for _, t := range []string{addressType, authorizationType} {
		if err := ads.Send(&discovery.DeltaDiscoveryRequest{Node: node, TypeUrl: t, ResourceNamesSubscribe: []string{"*"}}); err != nil {
			return fmt.Errorf("subscribe to %s: %w", t, err)
		}
	}
	first := map[string]bool{addressType: true, authorizationType: true}
	for {
		resp, err := ads.Recv()
		if err != nil {
			return fmt.Errorf("istiod %s: %w", cfg.Address, err)
		}
		ack := &discovery.DeltaDiscoveryRequest{Node: node, TypeUrl: resp.GetTypeUrl(), ResponseNonce: resp.GetNonce()}
		if err := s.apply(resp, first[resp.GetTypeUrl()]); err != nil {
			return err
		}
		first[resp.GetTypeUrl()] = false
		if err := ads.Send(ack); err != nil {
			return fmt.Errorf("acknowledge: %w", err)
		}
	}
}

// node is how a ztunnel introduces itself.
func (c Config) node() (*core.Node, error) {
	meta, err := structpb.NewStruct(map[string]any{
		"NAME": c.PodName, "NAMESPACE": c.Namespace, "INSTANCE_IPS": c.PodIP, "SERVICE_ACCOUNT": c.ServiceAccount,
		"CLUSTER_ID": c.ClusterID, "NETWORK": c.Network, "NODE_NAME": c.Node,
	})
	if err != nil {
		return nil, fmt.Errorf("node metadata: %w", err)
	}
	id := strings.Join([]string{"ztunnel", c.PodIP, c.PodName + "." + c.Namespace, c.Namespace + ".svc.cluster.local"}, "~")
	return &core.Node{Id: id, Metadata: meta}, nil
}

// apply takes over one answer. The first of a stream is everything there is.
func (s *Store) apply(resp *discovery.DeltaDiscoveryResponse, all bool) error {
	if err := s.update(resp, all); err != nil {
		return err
	}
	s.changed()
	return nil
}

func (s *Store) update(resp *discovery.DeltaDiscoveryResponse, all bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch resp.GetTypeUrl() {
	case addressType:
		if all {
			clear(s.workloads)
			clear(s.services)
		}
		for _, name := range resp.GetRemovedResources() {
			delete(s.workloads, name)
			delete(s.services, name)
		}
		for _, r := range resp.GetResources() {
			var a workloadapi.Address
			if err := proto.Unmarshal(r.GetResource().GetValue(), &a); err != nil {
				return fmt.Errorf("resource %s: %w", r.GetName(), err)
			}
			if w := a.GetWorkload(); w != nil {
				s.workloads[w.GetUid()] = w
			}
			if svc := a.GetService(); svc != nil {
				s.services[ServiceKey(svc)] = svc
			}
		}
	case authorizationType:
		if all {
			clear(s.policies)
		}
		for _, name := range resp.GetRemovedResources() {
			delete(s.policies, name)
		}
		for _, r := range resp.GetResources() {
			p := &security.Authorization{}
			if err := proto.Unmarshal(r.GetResource().GetValue(), p); err != nil {
				return fmt.Errorf("resource %s: %w", r.GetName(), err)
			}
			s.policies[r.GetName()] = p
		}
	}
	s.synced[resp.GetTypeUrl()] = true
	return nil
}
