package test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	caapi "istio.io/api/security/v1alpha1"
	"istio.io/istio/pkg/workloadapi"
	"istio.io/istio/pkg/workloadapi/security"

	"ambitmesh.dev/ambit/lab/istio/internal/svid"
	"ambitmesh.dev/ambit/lab/istio/internal/wds"
)

const (
	addressType       = "type.googleapis.com/istio.workload.Address"
	authorizationType = "type.googleapis.com/istio.security.Authorization"
)

var discard = slog.New(slog.DiscardHandler)

// csr is a request to the CA, as istiod sees it.
type csr struct {
	Token, Cluster, Impersonated string
	IDs                          []string // URIs of the CSR
	TTL                          time.Duration
}

// istiod speaks istiod's two protocols on its secure port: it signs what it is
// asked to and streams what the test says there is.
type istiod struct {
	caapi.UnimplementedIstioCertificateServiceServer
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	t       *testing.T
	serving *authority // of its own certificate, and of the root bundle file
	address string
	dir     string

	mu      sync.Mutex
	server  *grpc.Server
	ca      *authority
	bundle  []*x509.Certificate // the last element of answers
	life    time.Duration
	refuse  error
	answer  func([]string) []string // changes answers
	csrs    []csr
	things  map[string]map[string][]byte // by type URL and name
	streams map[*adsStream]bool
	opened  int                                           // streams so far
	acks    map[string][]*discovery.DeltaDiscoveryRequest // by type URL, of all streams
	first   map[string]*discovery.DeltaDiscoveryRequest   // subscriptions
	nonces  map[string][]string
}

// adsStream is one client.
type adsStream struct {
	types map[string]bool
	out   chan *discovery.DeltaDiscoveryResponse
	cut   chan struct{}
}

// newIstiod starts one that signs with ca.
func newIstiod(t *testing.T, ca *authority) *istiod {
	t.Helper()
	i := &istiod{
		t: t, ca: ca, bundle: []*x509.Certificate{ca.root}, life: time.Hour, serving: newAuthority(t, "serving"), dir: t.TempDir(),
		things: map[string]map[string][]byte{addressType: {}, authorizationType: {}}, streams: map[*adsStream]bool{},
		acks: map[string][]*discovery.DeltaDiscoveryRequest{}, first: map[string]*discovery.DeltaDiscoveryRequest{}, nonces: map[string][]string{},
	}
	write(t, i.dir, "root-cert.pem", encode(i.serving.root))
	write(t, i.dir, "token", "secret\n")
	i.start("127.0.0.1:0")
	t.Cleanup(i.stop)
	return i
}

func (i *istiod) start(address string) {
	i.t.Helper()
	cert := i.serving.leaf(i.t, &x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"}})
	l := listen(i.t, address)
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}})))
	caapi.RegisterIstioCertificateServiceServer(s, i)
	discovery.RegisterAggregatedDiscoveryServiceServer(s, i)
	i.mu.Lock()
	i.server, i.address = s, l.Addr().String()
	i.mu.Unlock()
	go func() { _ = s.Serve(l) }()
}

// stop takes istiod away; start with its address brings it back.
func (i *istiod) stop() { i.server.Stop() }

// set changes fields under the lock.
func (i *istiod) set(change func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	change()
}

func (i *istiod) requests() []csr {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Clone(i.csrs)
}

func (i *istiod) svidConfig(id string) svid.Config {
	return svid.Config{CAAddress: i.address, ClusterID: "c1", TokenFile: i.dir + "/token", RootFile: i.dir + "/root-cert.pem", ID: id}
}

// identity has one certificate.
func (i *istiod) identity(id string) *svid.Identity {
	i.t.Helper()
	out := svid.New(i.svidConfig(id), discard)
	if err := out.Once(i.t.Context()); err != nil {
		i.t.Fatal(err)
	}
	return out
}

// CreateCertificate signs for the identity in the CSR.
func (i *istiod) CreateCertificate(ctx context.Context, req *caapi.IstioCertificateRequest) (*caapi.IstioCertificateResponse, error) {
	block, _ := pem.Decode([]byte(req.GetCsr()))
	if block == nil {
		return nil, status.Error(codes.InvalidArgument, "no PEM")
	}
	parsed, err := x509.ParseCertificateRequest(block.Bytes)
	if err == nil {
		err = parsed.CheckSignature()
	}
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	md, _ := metadata.FromIncomingContext(ctx)
	i.mu.Lock()
	defer i.mu.Unlock()
	i.csrs = append(i.csrs, csr{
		Token: first(md.Get("authorization")), Cluster: first(md.Get("clusterid")),
		Impersonated: req.GetMetadata().GetFields()["ImpersonatedIdentity"].GetStringValue(),
		IDs:          texts(parsed.URIs), TTL: time.Duration(req.GetValidityDuration()) * time.Second,
	})
	if i.refuse != nil {
		return nil, i.refuse
	}
	tmpl := svidTemplate(i.t, texts(parsed.URIs)...)
	tmpl.NotAfter = time.Now().Add(i.life)
	cert, _ := sign(i.t, tmpl, parsed.PublicKey, i.ca.inter, i.ca.interKey)
	// As istiod with a plugged-in CA: leaf, cert-chain.pem, and last the root bundle.
	chain := []string{encode(cert), encode(i.ca.inter), encode(i.ca.root), encode(i.bundle...)}
	if i.answer != nil {
		chain = i.answer(chain)
	}
	return &caapi.IstioCertificateResponse{CertChain: chain}, nil
}

func first(s []string) string {
	if len(s) == 0 {
		return ""
	}
	return s[0]
}

func texts(uris []*url.URL) []string {
	var out []string
	for _, u := range uris {
		out = append(out, u.String())
	}
	return out
}

// DeltaAggregatedResources answers a subscription with everything, and later
// with what changes.
func (i *istiod) DeltaAggregatedResources(ads discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	md, _ := metadata.FromIncomingContext(ads.Context())
	if got := first(md.Get("authorization")) + " " + first(md.Get("clusterid")); got != "Bearer secret c1" {
		return status.Error(codes.Unauthenticated, got)
	}
	st := &adsStream{types: map[string]bool{}, out: make(chan *discovery.DeltaDiscoveryResponse, 100), cut: make(chan struct{})}
	i.set(func() { i.streams[st] = true; i.opened++ })
	defer i.set(func() { delete(i.streams, st) })
	ended := make(chan error, 1)
	go func() {
		for {
			req, err := ads.Recv()
			if err != nil {
				ended <- err
				return
			}
			i.request(st, req)
		}
	}()
	for {
		select {
		case err := <-ended:
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		case <-st.cut:
			return status.Error(codes.Unavailable, "cut")
		case resp := <-st.out:
			if err := ads.Send(resp); err != nil {
				return err
			}
		}
	}
}

func (i *istiod) request(st *adsStream, req *discovery.DeltaDiscoveryRequest) {
	i.mu.Lock()
	defer i.mu.Unlock()
	typ := req.GetTypeUrl()
	if req.GetResponseNonce() != "" {
		i.acks[typ] = append(i.acks[typ], req)
		return
	}
	i.first[typ] = req
	st.types[typ] = true
	i.send(st, typ, slices.Sorted(maps.Keys(i.things[typ])), nil)
}

// send queues an answer with the resources named. i.mu is held.
func (i *istiod) send(st *adsStream, typ string, names, removed []string) {
	resp := &discovery.DeltaDiscoveryResponse{TypeUrl: typ, RemovedResources: removed, Nonce: fmt.Sprintf("%s-%d", typ, len(i.nonces[typ]))}
	for _, name := range names {
		resp.Resources = append(resp.Resources, &discovery.Resource{Name: name, Resource: &anypb.Any{TypeUrl: typ, Value: i.things[typ][name]}})
	}
	i.nonces[typ] = append(i.nonces[typ], resp.GetNonce())
	st.out <- resp
}

// put says that there are these workloads, services and policies.
func (i *istiod) put(things ...proto.Message) {
	i.t.Helper()
	for _, m := range things {
		typ, name := addressType, ""
		switch v := m.(type) {
		case *workloadapi.Workload:
			name, m = v.GetUid(), &workloadapi.Address{Type: &workloadapi.Address_Workload{Workload: v}}
		case *workloadapi.Service:
			name, m = v.GetNamespace()+"/"+v.GetHostname(), &workloadapi.Address{Type: &workloadapi.Address_Service{Service: v}}
		case *security.Authorization:
			typ, name = authorizationType, v.GetNamespace()+"/"+v.GetName()
		default:
			i.t.Fatalf("a %T", m)
		}
		data, err := proto.Marshal(m)
		if err != nil {
			i.t.Fatal(err)
		}
		i.putRaw(typ, map[string][]byte{name: data})
	}
}

// putRaw says it in one answer, whatever it is.
func (i *istiod) putRaw(typ string, things map[string][]byte) {
	i.mu.Lock()
	defer i.mu.Unlock()
	maps.Copy(i.things[typ], things)
	for st := range i.streams {
		if st.types[typ] {
			i.send(st, typ, slices.Sorted(maps.Keys(things)), nil)
		}
	}
}

// remove says that there is no such thing any more.
func (i *istiod) remove(typ string, names ...string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, name := range names {
		delete(i.things[typ], name)
	}
	for st := range i.streams {
		if st.types[typ] {
			i.send(st, typ, nil, names)
		}
	}
}

// cut ends all streams.
func (i *istiod) cut() {
	i.set(func() {
		for st := range i.streams {
			close(st.cut)
			delete(i.streams, st)
		}
	})
}

// answered is every response to a type by nonce, and whether each was accepted.
func (i *istiod) answered(typ string) (nonces, acks, nacks []string, node *core.Node) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, a := range i.acks[typ] {
		if a.GetErrorDetail() == nil {
			acks = append(acks, a.GetResponseNonce())
		} else {
			nacks = append(nacks, a.GetResponseNonce())
		}
	}
	return slices.Clone(i.nonces[typ]), acks, nacks, i.first[typ].GetNode()
}

func (i *istiod) wdsConfig() wds.Config {
	return wds.Config{
		Address: i.address, ClusterID: "c1", Network: "net1", TokenFile: i.dir + "/token", RootFile: i.dir + "/root-cert.pem",
		PodIP: "127.0.0.1", PodName: "ztunnel-x", Namespace: "istio-system", ServiceAccount: "ztunnel", Node: "node-1",
	}
}

// follow keeps a store up to date until the test ends.
func (i *istiod) follow(s *wds.Store) {
	i.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- wds.Run(ctx, i.wdsConfig(), s, discard) }()
	i.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			i.t.Error(err)
		}
	})
	eventually(i.t, "synced", s.Synced)
}
