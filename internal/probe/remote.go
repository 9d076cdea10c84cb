package probe

import (
	"bufio"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protowire"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
)

// streamResources is Envoy's aggregated discovery, by which istiod also answers debug requests (istio: pilot/pkg/xds/debuggen.go): over TLS, to identities of its own namespace.
const (
	streamResources = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
	debugType       = "istio.io/debug"
	remoteClusters  = "clusterz"
	metricsPort     = "15014"
	secretEvents    = "remote_cluster_secret_events_total"
	maxMetrics      = 32 << 20
)

// Replica is one Pod of istiod.
type Replica struct {
	Name, IP, Version, Revision string
	Cluster                     string // what it calls this cluster
	Ready, Going                bool
	Created                     time.Time
	// ReadsSecrets: it syncs with a remote cluster only if it may list every Secret there (istio#59845).
	ReadsSecrets bool
}

// Replicas lists the istiods of a namespace.
func Replicas(ctx context.Context, client dynamic.Interface, istioNamespace string) ([]Replica, error) {
	list, err := client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "pods"}).Namespace(istioNamespace).List(ctx, metav1.ListOptions{LabelSelector: "app=istiod"})
	if err != nil {
		return nil, fmt.Errorf("list istiods: %w", err)
	}
	var out []Replica
	for i := range list.Items {
		u := &list.Items[i]
		p, ok := podOf(u, istioNamespace)
		if !ok || p.role != roleIstiod {
			continue
		}
		spec, _ := u.Object["spec"].(map[string]any)
		env := environment(container(spec, "discovery"))
		off := func(name string) bool { v, set := env[name]; return set && !isTrue(v) }
		out = append(out, Replica{
			Name: p.name, IP: p.ip, Version: p.version, Revision: p.revision, Cluster: p.cluster, Ready: p.ready, Going: p.going, Created: u.GetCreationTimestamp().Time,
			ReadsSecrets: !off("PILOT_ENABLE_REMOTE_CREDENTIALS_CONTROLLER") && !off("PILOT_ENABLE_XDS_IDENTITY_CHECK"),
		})
	}
	return out, nil
}

// RootsOf are the roots by which this namespace's proxies know istiod.
func RootsOf(ctx context.Context, client dynamic.Interface, istioNamespace string) (*x509.CertPool, error) {
	list, err := client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}).Namespace(istioNamespace).List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + rootMapName})
	if err != nil {
		return nil, fmt.Errorf("read istiod's roots: %w", err)
	}
	pool := x509.NewCertPool()
	for i := range list.Items {
		text, _ := rootMap(&list.Items[i])
		certs, err := certificates([]byte(text))
		if err != nil {
			return nil, fmt.Errorf("ConfigMap %s/%s: %w", istioNamespace, rootMapName, err)
		}
		for _, c := range certs {
			pool.AddCert(c)
		}
	}
	return pool, nil
}

// RemoteCluster is what an istiod says of a cluster that it reads.
type RemoteCluster struct {
	ID     string `json:"id"`
	Secret string `json:"secretName"` // namespace/name; empty: its own cluster
	Status string `json:"syncStatus"` // "synced", "syncing", "timeout", "closed"
}

// Asker asks istiods about their remote clusters.
type Asker struct {
	IstioNamespace string
	Token          string // of a service account of IstioNamespace, for audience istio-ca
	Account        string // its name
	Roots          *x509.CertPool
	Dial           Dialer
}

// Clusters are the clusters that one istiod reads, its own among them.
func (a Asker) Clusters(ctx context.Context, r Replica) ([]RemoteCluster, error) {
	raw, err := a.ask(ctx, r, remoteClusters)
	if err != nil {
		return nil, err
	}
	var out []RemoteCluster
	if err := json.Unmarshal(raw, &out); err != nil {
		return nil, fmt.Errorf("istiod %s: its clusters can't be read: %w", r.Name, err)
	}
	return out, nil
}

// ask is an answer to /debug/WHAT.
func (a Asker) ask(ctx context.Context, r Replica, what string) ([]byte, error) {
	limit := maxAnswer
	if what == addresses {
		limit = maxServed
	}
	names := []string{"istiod." + a.IstioNamespace + ".svc"}
	if r.Revision != "" && r.Revision != "default" {
		names = append(names, "istiod-"+r.Revision+"."+a.IstioNamespace+".svc")
	}
	var unverified atomic.Pointer[error] // gRPC has reasons as text only
	conn, err := dialIstiod(net.JoinHostPort(r.IP, istiodPort), names[0], a.Dial, func(chain []*x509.Certificate) error {
		err := verifyServing(chain, names, a.Roots)
		if err != nil {
			unverified.Store(&err)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+a.Token, "clusterid", r.Cluster))
	defer cancel()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, streamResources, grpc.ForceCodec(codec{}), grpc.MaxCallRecvMsgSize(limit))
	if err == nil {
		err = stream.SendMsg(debugRequest{namespace: a.IstioNamespace, account: a.Account, what: what})
	}
	var answer debugResponse
	if err == nil || errors.Is(err, io.EOF) {
		err = stream.RecvMsg(&answer)
	}
	switch why := unverified.Load(); {
	case err != nil && why != nil:
		return nil, *why
	case err != nil:
		return nil, fmt.Errorf("ask istiod %s for %s: %w", r.Name, what, err)
	}
	return answer.body, nil
}

// SecretEvents counts the remote secrets that an istiod was told of since it began: new and changed ones. The metric of their state is of no use: after a rotation it says "closed".
func (a Asker) SecretEvents(ctx context.Context, r Replica) (int, error) {
	client := &http.Client{Transport: &http.Transport{DialContext: a.Dial, DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(r.IP, metricsPort)+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, fmt.Errorf("metrics of istiod %s: %w", r.Name, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("metrics of istiod %s: %s", r.Name, resp.Status)
	}
	return countEvents(io.LimitReader(resp.Body, maxMetrics))
}

// countEvents sums the additions and updates of secretEvents in Prometheus' text format.
func countEvents(r io.Reader) (int, error) {
	n := 0
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		rest, ok := strings.CutPrefix(lines.Text(), secretEvents+"{")
		if !ok || strings.Contains(rest, `event="delete"`) {
			continue
		}
		_, value, _ := strings.Cut(rest, "}")
		v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
		if err != nil {
			return 0, fmt.Errorf("metric %s: %w", secretEvents, err)
		}
		n += int(v)
	}
	return n, lines.Err()
}

// debugRequest is the part of envoy.service.discovery.v3.DiscoveryRequest that a debug request needs: node (1), resource_names (3), type_url (4).
type debugRequest struct{ namespace, account, what string }

func (r debugRequest) marshal() []byte {
	value := func(key, text string) []byte { // an entry of google.protobuf.Struct.fields
		v := protowire.AppendString(protowire.AppendTag(nil, 3, protowire.BytesType), text)
		e := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), key)
		return protowire.AppendBytes(protowire.AppendTag(e, 2, protowire.BytesType), v)
	}
	var meta []byte
	for _, kv := range [][2]string{{"NAMESPACE", r.namespace}, {"SERVICE_ACCOUNT", r.account}} {
		meta = protowire.AppendBytes(protowire.AppendTag(meta, 1, protowire.BytesType), value(kv[0], kv[1]))
	}
	node := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), "sidecar~0.0.0.0~gloo-mesh-agent."+r.namespace+"~"+r.namespace+".svc.cluster.local")
	node = protowire.AppendBytes(protowire.AppendTag(node, 3, protowire.BytesType), meta)
	b := protowire.AppendBytes(protowire.AppendTag(nil, 2, protowire.BytesType), node)
	b = protowire.AppendString(protowire.AppendTag(b, 3, protowire.BytesType), r.what)
	return protowire.AppendString(protowire.AppendTag(b, 4, protowire.BytesType), debugType)
}

// debugResponse is the first resource's value of a DiscoveryResponse (resources, field 2: an Any whose value is field 2).
type debugResponse struct{ body []byte }

func (r *debugResponse) unmarshal(b []byte) error {
	r.body = nil
	for _, field := range []protowire.Number{2, 2} {
		v, err := firstBytes(b, field)
		if err != nil {
			return err
		}
		b = v
	}
	r.body = b
	return nil
}

// firstBytes is the first field of that number and of wire type bytes; nil: none.
func firstBytes(b []byte, field protowire.Number) ([]byte, error) {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return nil, fmt.Errorf("istiod's answer: %w", protowire.ParseError(n))
		}
		b = b[n:]
		if num == field && typ == protowire.BytesType {
			v, n := protowire.ConsumeBytes(b)
			if n < 0 {
				return nil, fmt.Errorf("istiod's answer: %w", protowire.ParseError(n))
			}
			return v, nil
		}
		if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
			return nil, fmt.Errorf("istiod's answer: %w", protowire.ParseError(n))
		}
		b = b[n:]
	}
	return nil, nil
}
