package cli

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/test/kubetest"
)

// remoteServer is the second API server of the test binary: registering takes two clusters.
var remoteServer struct {
	sync.Mutex
	env *envtest.Environment
}

func TestMain(m *testing.M) {
	code := kubetest.Main(m)
	if remoteServer.env != nil {
		_ = remoteServer.env.Stop()
	}
	os.Exit(code)
}

// world is a management cluster and a workload cluster: real API servers, each test in a namespace of its own.
type world struct {
	t            *testing.T
	ns           string
	mgmt, remote client.WithWatch
	mgmtCfg      *rest.Config
	kubeconfig   string
	ca           *authority
	token        string // the last one that play redeemed
}

func newWorld(t *testing.T) *world {
	t.Helper()
	mgmtCfg := kubetest.Start(t)
	remoteServer.Lock()
	defer remoteServer.Unlock()
	if remoteServer.env == nil {
		env := &envtest.Environment{}
		if _, err := env.Start(); err != nil {
			t.Fatalf("start the second API server: %v", err)
		}
		remoteServer.env = env
	}
	w := &world{t: t, mgmtCfg: mgmtCfg, mgmt: kubetest.Client(t, mgmtCfg), remote: kubetest.Client(t, remoteServer.env.Config), ca: newAuthority(t)}
	w.ns = kubetest.Namespace(t, w.mgmt)
	w.kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	config := clientcmdapi.NewConfig()
	for name, cfg := range map[string]*rest.Config{"mgmt": mgmtCfg, "prod-eu-west-3": remoteServer.env.Config} {
		addContext(config, name, cfg, "")
	}
	w.save(config)
	t.Cleanup(func() {
		ctx := context.Background()
		_ = w.mgmt.DeleteAllOf(ctx, &adminv2.KubernetesCluster{}, client.InNamespace(w.ns))
		_ = w.remote.DeleteAllOf(ctx, &appsv1.Deployment{}, client.InNamespace(w.ns))
	})
	return w
}

func addContext(config *clientcmdapi.Config, name string, cfg *rest.Config, as string) {
	config.Clusters[name] = &clientcmdapi.Cluster{Server: "https://" + strings.TrimPrefix(cfg.Host, "https://"), CertificateAuthorityData: cfg.CAData}
	config.AuthInfos[name] = &clientcmdapi.AuthInfo{ClientCertificateData: cfg.CertData, ClientKeyData: cfg.KeyData, Impersonate: as}
	config.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
}

func (w *world) save(config *clientcmdapi.Config) {
	w.t.Helper()
	if err := clientcmd.WriteToFile(*config, w.kubeconfig); err != nil {
		w.t.Fatal(err)
	}
}

// as adds a context in which a person acts as somebody else.
func (w *world) as(contextName, like, user string) {
	w.t.Helper()
	config, err := clientcmd.LoadFromFile(w.kubeconfig)
	if err != nil {
		w.t.Fatal(err)
	}
	info := config.AuthInfos[like].DeepCopy()
	info.Impersonate = user
	config.AuthInfos[contextName] = info
	config.Contexts[contextName] = &clientcmdapi.Context{Cluster: like, AuthInfo: contextName}
	w.save(config)
}

// result is what a command left.
type result struct {
	code     int
	out, err string
}

func (w *world) meshctl(args ...string) result {
	w.t.Helper()
	var out, errs bytes.Buffer
	code := Run(w.t.Context(), append([]string{"--kubeconfig", w.kubeconfig, "-n", w.ns}, args...), Streams{Out: &out, Err: &errs})
	w.t.Logf("meshctl %s: exit %d\n%s%s", strings.Join(args, " "), code, &out, &errs)
	return result{code, out.String(), errs.String()}
}

func (w *world) register(name string, more ...string) result {
	w.t.Helper()
	return w.meshctl(append([]string{"cluster", "register", name, "--mgmt-context", "mgmt", "--remote-context", "prod-eu-west-3"}, more...)...)
}

// hub makes the management side look as after `meshctl install`: a Service with an address and the relay's Secrets.
func (w *world) hub(address string) {
	w.t.Helper()
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: serverName, Namespace: w.ns},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, Ports: []corev1.ServicePort{{Name: "grpc", Port: 9900}}},
	}
	w.must(w.mgmt.Create(w.t.Context(), service))
	if address != "" {
		service.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: address}}
		w.must(w.mgmt.Status().Update(w.t.Context(), service))
	}
	for _, s := range []*corev1.Secret{
		{ObjectMeta: metav1.ObjectMeta{Name: secretRoot}, Data: map[string][]byte{"ca.crt": w.ca.pem, "tls.crt": w.ca.pem, "tls.key": []byte("THE ROOT'S PRIVATE KEY")}},
		{ObjectMeta: metav1.ObjectMeta{Name: secretSigning}, Data: map[string][]byte{"tls.crt": w.ca.pem, "tls.key": []byte("THE SIGNING CA'S PRIVATE KEY")}},
	} {
		s.Namespace = w.ns
		w.must(w.mgmt.Create(w.t.Context(), s))
	}
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func uidOf(t *testing.T, c client.Client) string {
	t.Helper()
	var ns corev1.Namespace
	if err := c.Get(t.Context(), client.ObjectKey{Name: "kube-system"}, &ns); err != nil {
		t.Fatal(err)
	}
	return string(ns.UID)
}

// play is the hub and the agent as meshctl sees them: it redeems the token as ADR 0002 says, gives the cluster a certificate, and writes the status.
// It returns how many tokens it redeemed.
func (w *world) play(name string) (redeemed func() int) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(w.t.Context())
	var mu sync.Mutex
	n := 0
	done := make(chan struct{})
	uid := uidOf(w.t, w.remote)
	go func() {
		defer close(done)
		for ; ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
			w.finalize(ctx)
			var d appsv1.Deployment
			if w.remote.Get(ctx, client.ObjectKey{Namespace: w.ns, Name: agentName}, &d) != nil {
				continue
			}
			if d.Status.ObservedGeneration != d.Generation {
				d.Status = appsv1.DeploymentStatus{ObservedGeneration: d.Generation, Replicas: 1, UpdatedReplicas: 1, AvailableReplicas: 1, ReadyReplicas: 1}
				_ = w.remote.Status().Update(ctx, &d)
			}
			var client_ corev1.Secret
			enrolled := w.remote.Get(ctx, client.ObjectKey{Namespace: w.ns, Name: secretClient}, &client_) == nil
			if !enrolled && !w.redeem(ctx, name) {
				continue
			}
			if !enrolled {
				mu.Lock()
				n++
				mu.Unlock()
			}
			var kc adminv2.KubernetesCluster
			if w.mgmt.Get(ctx, client.ObjectKey{Namespace: w.ns, Name: name}, &kc) != nil || kc.Status.Connection == adminv2.ConnectionConnected {
				continue
			}
			kc.Status = adminv2.KubernetesClusterStatus{Connection: adminv2.ConnectionConnected, AgentVersion: "2.12.0", ClusterUID: uid, RegisteredBy: "jane.doe@bank.example.com"}
			kc.Status.Common.State.Approval = adminv2.ApprovalAccepted
			_ = w.mgmt.Status().Update(ctx, &kc)
		}
	}()
	w.t.Cleanup(func() { cancel(); <-done })
	return func() int { mu.Lock(); defer mu.Unlock(); return n }
}

// finalize plays the namespace controller, which an API server alone does not have.
func (w *world) finalize(ctx context.Context) {
	for _, name := range []string{w.ns, mesh.TokensNamespace(w.ns)} {
		var ns corev1.Namespace
		if w.remote.Get(ctx, client.ObjectKey{Name: name}, &ns) == nil && ns.DeletionTimestamp != nil {
			ns.Spec.Finalizers = nil
			_ = w.remote.SubResource("finalize").Update(ctx, &ns)
		}
	}
}

// redeem compares the token in the workload cluster with the hash on the management cluster, as the hub does.
func (w *world) redeem(ctx context.Context, name string) bool {
	var announced, held corev1.Secret
	if w.mgmt.Get(ctx, client.ObjectKey{Namespace: w.ns, Name: prefixRegistration + name}, &announced) != nil ||
		w.remote.Get(ctx, client.ObjectKey{Namespace: w.ns, Name: secretRegistration}, &held) != nil {
		return false
	}
	sum := sha256.Sum256(held.Data["token"])
	expires, err := time.Parse(time.RFC3339, string(announced.Data["expires"]))
	if err != nil || time.Now().After(expires) || hex.EncodeToString(sum[:]) != string(announced.Data["tokenHash"]) || announced.Type != typeRegistration {
		return false
	}
	w.token = string(held.Data["token"])
	chain, _ := w.ca.issue(w.t, name, time.Now().Add(time.Hour))
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: secretClient, Namespace: w.ns}, Data: map[string][]byte{"tls.crt": chain}}
	return w.remote.Create(ctx, secret) == nil && w.remote.Delete(ctx, &held) == nil
}

// authority is a CA for tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: fmt.Sprint("test CA ", time.Now().UnixNano())}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, _ := x509.ParseCertificate(der)
	return &authority{cert: cert, key: key, pem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

func (a *authority) issue(t *testing.T, name string, until time.Time) ([]byte, *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: until, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, _ := x509.ParseCertificate(der)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), cert
}

func newDiscard() *slog.Logger { return slog.New(slog.DiscardHandler) }

func metaNamed(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Name: name} }
