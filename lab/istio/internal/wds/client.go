package wds

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
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
		err := stream(ctx, cfg, s, log)
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
func stream(ctx context.Context, cfg Config, s *Store, log *slog.Logger) error {
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
			log.Warn("resources from istiod refused", "error", err)
			ack.ErrorDetail = status.New(codes.InvalidArgument, err.Error()).Proto()
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

// apply takes over one answer; the first of a stream is everything there is. The
// error names the resources that can't be read: as in ztunnel they are refused
// and stay as they were, and the others count.
func (s *Store) apply(resp *discovery.DeltaDiscoveryResponse, all bool) error {
	err := s.update(resp, all)
	s.changed()
	return err
}

func (s *Store) update(resp *discovery.DeltaDiscoveryResponse, all bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	gone := func(name string) bool { return slices.Contains(resp.GetRemovedResources(), name) }
	if all {
		there := map[string]bool{}
		for _, r := range resp.GetResources() {
			there[r.GetName()] = true
		}
		gone = func(name string) bool { return !there[name] }
	}
	take := s.takeAddress
	switch resp.GetTypeUrl() {
	case addressType:
		remove(s.workloads, gone)
		remove(s.services, gone)
	case authorizationType:
		remove(s.policies, gone)
		take = s.takePolicy
	default:
		return fmt.Errorf("resources of type %s were not asked for", resp.GetTypeUrl())
	}
	var refused []error
	for _, r := range resp.GetResources() {
		if err := take(r); err != nil {
			refused = append(refused, fmt.Errorf("resource %s: %w", r.GetName(), err))
		}
	}
	s.synced[resp.GetTypeUrl()] = true
	return errors.Join(refused...)
}

func remove[T any](m map[string]T, gone func(string) bool) {
	maps.DeleteFunc(m, func(name string, _ T) bool { return gone(name) })
}

func (s *Store) takeAddress(r *discovery.Resource) error {
	a := &workloadapi.Address{}
	if err := proto.Unmarshal(r.GetResource().GetValue(), a); err != nil {
		return err
	}
	if w := a.GetWorkload(); w != nil {
		s.workloads[w.GetUid()] = w
	}
	if svc := a.GetService(); svc != nil {
		s.services[ServiceKey(svc)] = svc
	}
	return nil
}

func (s *Store) takePolicy(r *discovery.Resource) error {
	p := &security.Authorization{}
	if err := proto.Unmarshal(r.GetResource().GetValue(), p); err != nil {
		return err
	}
	s.policies[r.GetName()] = p
	return nil
}
