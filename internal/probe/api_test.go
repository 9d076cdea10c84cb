package probe

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/test/kubetest"
)

func TestMain(m *testing.M) { os.Exit(kubetest.Main(m)) }

// landscape is a cluster of Pods whose addresses lead to servers of the test on loopback.
type landscape struct {
	t         *testing.T
	kube      client.Client
	istio     string // namespace
	mu        sync.Mutex
	addresses map[string]string
	directed  Directed
	rounds    []mesh.TrustObservation
	prober    *Prober
}

func (l *landscape) dial(ctx context.Context, network, address string) (net.Conn, error) {
	l.mu.Lock()
	to, ok := l.addresses[address]
	l.mu.Unlock()
	if !ok {
		return nil, &net.OpError{Op: "dial", Net: network, Err: fmt.Errorf("no route to host")}
	}
	return (&net.Dialer{}).DialContext(ctx, network, to)
}

// pod makes a running Pod; what listens on its port is on loopback.
func (l *landscape) pod(p *corev1.Pod, ip, port, at string) {
	l.t.Helper()
	p.Spec.NodeName = "n1"
	if len(p.Spec.Containers) == 0 {
		p.Spec.Containers = []corev1.Container{{Name: "web", Image: "web:1"}}
	}
	if err := l.kube.Create(l.t.Context(), p); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { _ = l.kube.Delete(context.Background(), p, client.GracePeriodSeconds(0)) })
	if at != "" {
		l.mu.Lock()
		l.addresses[net.JoinHostPort(ip, port)] = at
		l.mu.Unlock()
	}
	p.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}
	if err := l.kube.Status().Update(l.t.Context(), p); err != nil {
		l.t.Fatal(err)
	}
}

func (l *landscape) within(what string, ok func(mesh.TrustObservation) bool) mesh.TrustObservation {
	l.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		l.mu.Lock()
		n := len(l.rounds)
		var last mesh.TrustObservation
		if n > 0 {
			last = l.rounds[n-1]
		}
		l.mu.Unlock()
		if n > 0 && ok(last) {
			return last
		}
		if time.Now().After(deadline) {
			last.Certificates = nil
			l.t.Fatalf("%s: not within 20 s and %d rounds; last: %+v", what, n, last)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (l *landscape) direct(d Directed) {
	l.mu.Lock()
	l.directed = d
	l.mu.Unlock()
	l.prober.Kick()
}

func newLandscape(t *testing.T) *landscape {
	t.Helper()
	cfg := kubetest.Start(t)
	l := &landscape{t: t, kube: kubetest.Client(t, cfg), addresses: map[string]string{}}
	l.istio = kubetest.Namespace(t, l.kube)
	dyn, err := dynamic.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l.prober = New(Config{
		Client: dyn, IstioNamespace: l.istio, Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Dial: l.dial,
		Token: func() (string, error) { return "our-token", nil },
		Directed: func() Directed {
			l.mu.Lock()
			defer l.mu.Unlock()
			return l.directed
		},
		Publish: func(o mesh.TrustObservation, _ time.Time) {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.rounds = append(l.rounds, o)
		},
	})
	return l
}

func (l *landscape) start() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = l.prober.Run(ctx) }()
	l.t.Cleanup(func() { cancel(); <-done })
}

// A whole cluster is observed, and a root that is added is seen at each place as it arrives there.
func TestObservesACluster(t *testing.T) {
	l := newLandscape(t)
	r1, r2 := newAuthority(t, "root g1", nil), newAuthority(t, "root g2", nil)
	i1 := newAuthority(t, "c1 g1", r1)
	app := kubetest.Namespace(t, l.kube)

	c := &ca{t: t, serving: i1.leaf(t, "istiod."+l.istio+".svc").tls(i1.cert), signer: i1, token: "our-token", elements: []string{pemOf(i1.cert), pemOf(r1.cert)}}
	l.pod(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "istiod-1", Namespace: l.istio, Labels: map[string]string{"app": "istiod", "istio.io/rev": "default"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "discovery", Image: "pilot:1.30.3", Env: []corev1.EnvVar{{Name: "CLUSTER_ID", Value: "c1"}, {Name: "ISTIO_MULTIROOT_MESH", Value: "true"}}}}},
	}, "10.1.0.1", istiodPort, c.serve())
	var mu sync.Mutex
	trusted := pool(r1.cert)
	proxy := func(leaf *authority) string {
		return listen(t, &tls.Config{
			GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
				mu.Lock()
				defer mu.Unlock()
				return &tls.Config{Certificates: []tls.Certificate{leaf.tls(i1.cert)}, NextProtos: []string{"h2"}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: trusted.Clone()}, nil
			},
		})
	}
	captured := map[string]string{redirection: "enabled"}
	l.pod(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web-1", Namespace: app, Annotations: captured}}, "10.1.0.2", hbonePort, proxy(i1.leaf(t)))
	l.pod(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web-2", Namespace: app, Annotations: captured}}, "10.1.0.3", hbonePort, "") // web-1 speaks for it
	l.pod(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "wp-1", Namespace: app, Labels: map[string]string{managedLabel: "istio.io-mesh-controller"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "istio-proxy", Image: "proxyv2:1.30.1"}}},
	}, "10.1.0.4", hbonePort, proxy(i1.leaf(t)))
	l.pod(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "ew-1", Namespace: app, Labels: map[string]string{managedLabel: "istio.io-eastwest-controller"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "istio-proxy", Image: "proxyv2:1.30.1"}}},
	}, "10.1.0.5", hbonePort, "") // out of reach
	bundles := map[string]*corev1.ConfigMap{}
	for _, ns := range []string{app, l.istio} {
		bundles[ns] = &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: rootMapName, Namespace: ns}, Data: map[string]string{rootKey: pemOf(r1.cert)}}
		if err := l.kube.Create(t.Context(), bundles[ns]); err != nil {
			t.Fatal(err)
		}
	}
	path, none, equivalent := "/validate", admissionregistrationv1.SideEffectClassNone, admissionregistrationv1.Ignore
	hook := &admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "istiod-" + l.istio}, Webhooks: []admissionregistrationv1.ValidatingWebhook{{
		Name: "validation.istio.io", SideEffects: &none, FailurePolicy: &equivalent, AdmissionReviewVersions: []string{"v1"},
		ClientConfig: admissionregistrationv1.WebhookClientConfig{CABundle: []byte(pemOf(r1.cert)), Service: &admissionregistrationv1.ServiceReference{Namespace: l.istio, Name: "istiod", Path: &path}},
	}}}
	if err := l.kube.Create(t.Context(), hook); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.kube.Delete(context.Background(), hook) })

	l.start()
	got := l.within("a whole round", func(o mesh.TrustObservation) bool { return len(o.Istiods) == 1 && len(o.Verifiers) == 3 && o.Ordered })
	fp := fingerprint
	want := mesh.TrustObservation{
		At: got.At, Ordered: true,
		Istiods: []mesh.IstiodProbe{{Pod: l.istio + "/istiod-1", Revision: "default", Version: "1.30.3", MultiRoot: true, MaxLeafTTL: 90 * 24 * 3600, Signer: fp(i1.cert), Chain: []mesh.Fingerprint{fp(i1.cert)}, Roots: []mesh.Fingerprint{fp(r1.cert)}, Serving: []mesh.Fingerprint{fp(i1.cert)}}},
		Verifiers: []mesh.VerifierGroup{
			{Kind: "eastwest", Version: "1.30.1", Count: 1, Examples: []string{app + "/ew-1"}, Error: "no route to host"},
			{Kind: "waypoint", Version: "1.30.1", Chain: []mesh.Fingerprint{fp(i1.cert)}, Issuer: fp(i1.cert), Accepts: subjects([]*x509.Certificate{r1.cert}), Known: true, Count: 1, Examples: []string{app + "/wp-1"}},
			{Kind: "ztunnel", Chain: []mesh.Fingerprint{fp(i1.cert)}, Issuer: fp(i1.cert), Accepts: subjects([]*x509.Certificate{r1.cert}), Known: true, Count: 1, Examples: []string{app + "/web-1"}},
		},
		ConfigMaps:   []mesh.BundleGroup{{Roots: []mesh.Fingerprint{fp(r1.cert)}, Count: 2, Examples: sorted(app, l.istio)}},
		Webhooks:     []mesh.BundleGroup{{Roots: []mesh.Fingerprint{fp(r1.cert)}, Count: 1, Examples: []string{"validating/istiod-" + l.istio}}},
		Certificates: map[mesh.Fingerprint][]byte{fp(r1.cert): r1.cert.Raw, fp(i1.cert): i1.cert.Raw},
	}
	for i := range got.Verifiers {
		got.Verifiers[i].LeafUntil = time.Time{}
	}
	slices.SortFunc(got.Verifiers, func(a, b mesh.VerifierGroup) int { return strings.Compare(a.Kind, b.Kind) })
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}

	// A directive: the round that follows speaks of it, and rounds follow each other quickly until all is as directed.
	d := Directed{Applied: mesh.FingerprintOf([]byte("both")), Since: time.Now(), Signer: fp(i1.cert), Roots: []*x509.Certificate{r1.cert, r2.cert}}
	l.direct(d)
	l.within("a round for the directive", func(o mesh.TrustObservation) bool { return o.Applied == d.Applied })
	mu.Lock()
	trusted = pool(r1.cert, r2.cert)
	mu.Unlock()
	l.within("the added root is seen at the proxies", func(o mesh.TrustObservation) bool {
		return slices.ContainsFunc(o.Verifiers, func(v mesh.VerifierGroup) bool { return v.Kind == "ztunnel" && len(v.Accepts) == 2 })
	})
	bundles[app].Data[rootKey] = pemOf(r1.cert, r2.cert)
	if err := l.kube.Update(t.Context(), bundles[app]); err != nil {
		t.Fatal(err)
	}
	l.within("and in a namespace", func(o mesh.TrustObservation) bool { return len(o.ConfigMaps) == 2 && o.Ordered })

	// A replica that does not answer may hand out anything: what was seen after it proves nothing.
	l.pod(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "istiod-2", Namespace: l.istio, Labels: map[string]string{"app": "istiod"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "discovery", Image: "pilot:1.30.3"}}},
	}, "10.1.0.6", istiodPort, "")
	l.within("a silent replica", func(o mesh.TrustObservation) bool {
		return len(o.Istiods) == 2 && o.Istiods[1].Error == "no route to host" && !o.Ordered && o.Applied == d.Applied
	})
}

func sorted(names ...string) []string {
	slices.Sort(names)
	return names
}
