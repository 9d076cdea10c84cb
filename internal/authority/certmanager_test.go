package authority_test

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"ambitmesh.dev/ambit/internal/authority"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/pki"
	"ambitmesh.dev/ambit/test/kubetest"
)

// certManager is a real API server with cert-manager's CRDs, and its controllers while they run.
type certManager struct {
	t         *testing.T
	config    *rest.Config
	client    client.Client
	server    client.Client // with the management server's rights, and no others
	namespace string
}

func newCertManager(t *testing.T) *certManager {
	t.Helper()
	cfg := kubetest.Start(t)
	m := &certManager{t: t, config: cfg, client: kubetest.Client(t, cfg)}
	m.namespace = kubetest.Namespace(t, m.client)
	m.server = kubetest.Client(t, kubetest.As(cfg, "server-of-"+m.namespace))
	crds := filepath.Join(filepath.Dir(certManagerProgram(t)), "crds")
	if _, err := envtest.InstallCRDs(cfg, envtest.CRDInstallOptions{Paths: []string{crds}, Scheme: m.client.Scheme()}); err != nil {
		t.Fatal(err)
	}
	subject := []rbacv1.Subject{{Kind: "User", Name: "server-of-" + m.namespace}}
	for _, obj := range []client.Object{ // as charts/gloo-platform/templates/mgmt-trust-rbac.yaml
		&rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Namespace: m.namespace, Name: "authorities"}, Rules: []rbacv1.PolicyRule{
			{APIGroups: []string{"cert-manager.io"}, Resources: []string{"certificaterequests"}, Verbs: []string{"get", "create", "delete"}},
			{APIGroups: []string{"cert-manager.io"}, Resources: []string{"issuers"}, Verbs: []string{"get"}},
		}},
		&rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: m.namespace, Name: "authorities"}, RoleRef: rbacv1.RoleRef{Kind: "Role", Name: "authorities"}, Subjects: subject},
		&rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: m.namespace}, Rules: []rbacv1.PolicyRule{
			{APIGroups: []string{"cert-manager.io"}, Resources: []string{"clusterissuers"}, Verbs: []string{"get"}},
		}},
		&rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: m.namespace}, RoleRef: rbacv1.RoleRef{Kind: "ClusterRole", Name: m.namespace}, Subjects: subject},
	} {
		m.create(obj)
	}
	return m
}

func certManagerProgram(t *testing.T) string {
	t.Helper()
	program := os.Getenv("AMBIT_TEST_CERTMANAGER")
	if program == "" {
		t.Fatal("this test needs cert-manager and AMBIT_TEST_CERTMANAGER is not set: run `make unit`, which builds it; by hand: AMBIT_TEST_CERTMANAGER=$(cd lab && go run ./cmd/labbuild certmanager)")
	}
	return program
}

// run starts the controllers (lab/certmanager) until the test ends. ClusterIssuers have their Secrets in the test's namespace.
func (m *certManager) run(approve string) {
	m.t.Helper()
	cmd := exec.Command(certManagerProgram(m.t), "--kubeconfig", kubetest.Kubeconfig(m.t, m.config), "--cluster-resource-namespace", m.namespace, "--approve="+approve)
	out, err := cmd.StdoutPipe()
	if err != nil {
		m.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { _ = cmd.Process.Signal(syscall.SIGKILL); _ = cmd.Wait() })
	if line, _, err := bufio.NewReader(out).ReadLine(); string(line) != "ready" {
		m.t.Fatalf("cert-manager says %q, %v", line, err)
	}
}

func (m *certManager) create(obj client.Object) {
	m.t.Helper()
	if err := m.client.Create(m.t.Context(), obj); err != nil {
		m.t.Fatal(err)
	}
}

// secret is a CA as cert-manager keeps it.
func (m *certManager) secret(name string, data map[string][]byte) {
	m.t.Helper()
	m.create(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: m.namespace, Name: name}, Type: corev1.SecretTypeOpaque, Data: data})
}

func (m *certManager) object(kind, name string, spec map[string]any) *unstructured.Unstructured {
	u := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "cert-manager.io/v1", "kind": kind, "spec": spec}}
	u.SetName(name)
	if kind != "ClusterIssuer" {
		u.SetNamespace(m.namespace)
	}
	return u
}

func (m *certManager) issuer(kind, name string, spec map[string]any) {
	m.t.Helper()
	u := m.object(kind, name, spec)
	m.create(u)
	m.t.Cleanup(func() { _ = m.client.Delete(context.Background(), u) })
}

// ready waits until the issuer is Ready, or says why not.
func (m *certManager) ready(kind, name, status string) {
	m.t.Helper()
	u := m.object(kind, name, nil)
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if err := m.client.Get(m.t.Context(), client.ObjectKeyFromObject(u), u); err != nil {
			m.t.Fatal(err)
		}
		all, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
		for _, c := range all {
			if c.(map[string]any)["status"] == status {
				return
			}
		}
		if time.Now().After(end) {
			m.t.Fatalf("%s %s: %v", kind, name, all)
		}
	}
}

func (m *certManager) authority(kind, name, root string, timeout time.Duration) authority.Authority {
	return authority.CertManager{
		CertManager: mesh.CertManager{Group: "cert-manager.io", Kind: kind, Name: name, RootSecret: root},
		Client:      m.server, Namespace: m.namespace, Secrets: secretsOf{m.client, m.namespace}, Now: time.Now, Timeout: timeout,
	}.New()
}

type secretsOf struct {
	client    client.Client
	namespace string
}

func (s secretsOf) Get(ctx context.Context, name string) (map[string][]byte, error) {
	var o corev1.Secret
	err := s.client.Get(ctx, client.ObjectKey{Namespace: s.namespace, Name: name}, &o)
	return o.Data, client.IgnoreNotFound(err)
}

func (s secretsOf) Create(context.Context, string, map[string][]byte) (map[string][]byte, error) {
	return nil, errors.New("not used")
}

// requests are those that are left, by name.
func (m *certManager) requests() []unstructured.Unstructured {
	m.t.Helper()
	var l unstructured.UnstructuredList
	l.SetAPIVersion("cert-manager.io/v1")
	l.SetKind("CertificateRequestList")
	if err := m.client.List(m.t.Context(), &l, client.InNamespace(m.namespace)); err != nil {
		m.t.Fatal(err)
	}
	return l.Items
}

// decide is what a person does with a request: Approved or Denied.
func (m *certManager) decide(condition, message string) {
	m.t.Helper()
	for _, u := range m.requests() {
		now := time.Now().UTC().Format(time.RFC3339)
		all, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
		all = append(all, map[string]any{"type": condition, "status": "True", "reason": "test", "message": message, "lastTransitionTime": now})
		if condition == "Failed" {
			all = []any{map[string]any{"type": "Ready", "status": "False", "reason": "Failed", "message": message, "lastTransitionTime": now}}
		}
		_ = unstructured.SetNestedSlice(u.Object, all, "status", "conditions")
		if err := m.client.Status().Update(m.t.Context(), &u); err != nil {
			m.t.Error(err)
		}
	}
}

func TestCertManagerSigns(t *testing.T) {
	m := newCertManager(t)
	m.run("true")
	rootKey, root := newRoot(t, "R1")
	pem, err := pki.EncodeKey(rootKey)
	if err != nil {
		t.Fatal(err)
	}
	m.secret("root", map[string][]byte{"tls.crt": pki.EncodeCertificates(root), "tls.key": pem, "ca.crt": pki.EncodeCertificates(root)})
	middleKey, _ := newRoot(t, "unused")
	middle := signCA(t, root, rootKey, middleKey, "Issuing CA")
	if pem, err = pki.EncodeKey(middleKey); err != nil {
		t.Fatal(err)
	}
	m.secret("middle", map[string][]byte{"tls.crt": pki.EncodeCertificates(middle, root), "tls.key": pem})
	m.secret("lost", map[string][]byte{"tls.crt": pki.EncodeCertificates(middle), "tls.key": pem})
	m.secret("the-root", map[string][]byte{"ca.crt": pki.EncodeCertificates(root)})
	ca := func(secret string) map[string]any {
		return map[string]any{"ca": map[string]any{"secretName": secret}}
	}
	m.issuer("Issuer", "root", ca("root"))
	m.issuer("ClusterIssuer", m.namespace, ca("middle"))
	m.issuer("Issuer", "lost", ca("lost"))
	for _, c := range []struct{ kind, name, root string }{{"Issuer", "root", ""}, {"ClusterIssuer", m.namespace, ""}, {"Issuer", "lost", "the-root"}} {
		m.ready(c.kind, c.name, "True")
		a := m.authority(c.kind, c.name, c.root, time.Minute)
		roots, err := a.Roots(t.Context())
		if err != nil || len(roots) != 1 || !roots[0].Equal(root) {
			t.Fatalf("%s: roots %v, %v", c.name, roots, err)
		}
		got, err := a.SignIntermediate(t.Context(), named(t, "east"))
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		want := 2 // below the intermediate
		if c.name == "root" {
			want = 1
		}
		if s := got.Chain[0]; len(got.Chain) != want || !got.Root.Equal(root) || !s.IsCA || len(s.URIs) != 1 || got.Note != "" {
			t.Errorf("%s: chain of %d, CA %t, URIs %v, note %q", c.name, len(got.Chain), s.IsCA, s.URIs, got.Note)
		}
	}
	_, err = m.authority("Issuer", "lost", "", time.Minute).Roots(t.Context())
	misconfigured(t, err, "does not tell its root")
	if left := m.requests(); len(left) != 0 {
		t.Errorf("%d requests are left", len(left))
	}
}

// What can't work is refused before anything is asked, with what to do.
func TestCertManagerRefusals(t *testing.T) {
	m := newCertManager(t)
	m.run("true")
	m.issuer("Issuer", "self", map[string]any{"selfSigned": map[string]any{}})
	m.issuer("Issuer", "broken", map[string]any{"ca": map[string]any{"secretName": "absent"}})
	m.ready("Issuer", "self", "True")
	m.ready("Issuer", "broken", "False")
	r := named(t, "east")
	_, err := m.authority("Issuer", "absent", "", time.Minute).SignIntermediate(t.Context(), r)
	misconfigured(t, err, "there is no cert-manager Issuer absent")
	_, err = m.authority("Issuer", "self", "", time.Minute).SignIntermediate(t.Context(), r)
	misconfigured(t, err, "each certificate would be a root of its own")
	_, err = m.authority("Issuer", "self", "", time.Minute).Roots(t.Context())
	misconfigured(t, err, "each certificate would be a root of its own")
	_, err = m.authority("Issuer", "broken", "", time.Minute).SignIntermediate(t.Context(), r)
	unavailable(t, err, "is not Ready")
	m.server = kubetest.Client(t, kubetest.As(m.config, "mallory"))
	_, err = m.authority("Issuer", "self", "", time.Minute).SignIntermediate(t.Context(), r)
	misconfigured(t, err, "glooMgmtServer.trust.certManager=true")
	if left := m.requests(); len(left) != 0 {
		t.Errorf("%d requests were made", len(left))
	}
}

// A request waits for a person as long as it takes, is found again, and a denial stands.
func TestCertManagerApproval(t *testing.T) {
	m := newCertManager(t)
	m.run("false")
	rootKey, root := newRoot(t, "R1")
	pem, err := pki.EncodeKey(rootKey)
	if err != nil {
		t.Fatal(err)
	}
	m.secret("root", map[string][]byte{"tls.crt": pki.EncodeCertificates(root), "tls.key": pem})
	m.issuer("Issuer", "root", map[string]any{"ca": map[string]any{"secretName": "root"}})
	m.ready("Issuer", "root", "True")
	m.secret("the-root", map[string][]byte{"ca.crt": pki.EncodeCertificates(root)})
	a := m.authority("Issuer", "root", "the-root", 3*time.Second)
	if roots, err := a.Roots(t.Context()); err != nil || !roots[0].Equal(root) { // asks nobody
		t.Fatalf("roots %v, %v", roots, err)
	}
	r := named(t, "east")
	for range 2 {
		_, err := a.SignIntermediate(t.Context(), r)
		unavailable(t, err, "nobody has approved it: `cmctl approve -n "+m.namespace)
	}
	if n := len(m.requests()); n != 1 {
		t.Fatalf("%d requests for one intermediate", n)
	}
	m.decide("Approved", "fine")
	for end := time.Now().Add(time.Minute); ; { // it is looked at now and then
		got, err := a.SignIntermediate(t.Context(), r)
		if err == nil {
			if !got.Root.Equal(root) {
				t.Errorf("root %s", got.Root.Subject)
			}
			break
		}
		if _, away := authority.AsUnavailable(err); !away || time.Now().After(end) {
			t.Fatal(err)
		}
	}
	r = named(t, "west")
	_, err = a.SignIntermediate(t.Context(), r)
	unavailable(t, err, "nobody has approved it")
	m.decide("Denied", "not on a Friday")
	for range 2 {
		_, err = a.SignIntermediate(t.Context(), r)
		isRefused(t, err, "was denied: not on a Friday")
	}
	if n := len(m.requests()); n != 1 {
		t.Errorf("%d requests, want the denied one", n)
	}
}

// Without controllers nothing is answered, which is said in time; what an issuer has refused is asked anew.
func TestCertManagerTimesOut(t *testing.T) {
	m := newCertManager(t)
	m.secret("the-root", map[string][]byte{"ca.crt": func() []byte { _, root := newRoot(t, "R1"); return pki.EncodeCertificates(root) }()})
	u := m.object("Issuer", "root", map[string]any{"ca": map[string]any{"secretName": "root"}})
	m.create(u)
	a := m.authority("Issuer", "root", "the-root", time.Second)
	r := named(t, "east")
	_, err := a.SignIntermediate(t.Context(), r)
	unavailable(t, err, "is not Ready: cert-manager has not looked at it")
	now := time.Now().UTC().Format(time.RFC3339)
	_ = unstructured.SetNestedSlice(u.Object, []any{map[string]any{"type": "Ready", "status": "True", "reason": "test", "lastTransitionTime": now}}, "status", "conditions")
	if err := m.client.Status().Update(t.Context(), u); err != nil {
		t.Fatal(err)
	}
	_, err = a.SignIntermediate(t.Context(), r)
	unavailable(t, err, "nobody has approved it")
	m.decide("Failed", "the HSM is on fire")
	_, err = a.SignIntermediate(t.Context(), r)
	isRefused(t, err, "has failed: the HSM is on fire")
	if n := len(m.requests()); n != 0 {
		t.Errorf("%d requests are left: the failed one would be found again", n)
	}
}

// Where cert-manager is not installed, that is what is said.
func TestCertManagerIsNotInstalled(t *testing.T) {
	m := newCertManager(t)
	var crd apiextensionsv1.CustomResourceDefinition
	if err := m.client.Get(t.Context(), client.ObjectKey{Name: "issuers.cert-manager.io"}, &crd); err != nil {
		t.Fatal(err)
	}
	if err := m.client.Delete(t.Context(), &crd); err != nil {
		t.Fatal(err)
	}
	a := m.authority("Issuer", "root", "", time.Second)
	for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		_, err := a.Roots(t.Context())
		if err != nil && strings.Contains(err.Error(), "there is no cert-manager in the management cluster") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("got %v", err)
		}
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) { // gone, so that the next test can install it
		if err := m.client.Get(t.Context(), client.ObjectKey{Name: crd.Name}, &crd); apierrors.IsNotFound(err) {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the CRD does not go")
		}
	}
}

// named is a request as agents make it: the name and the URIs are in it, since cert-manager and AWS take them from there.
func named(t *testing.T, cluster mesh.ClusterName) authority.Request {
	t.Helper()
	r, key := request(t, cluster)
	csr, err := pki.NewCSR(key, r.Subject, r.URIs)
	if err != nil {
		t.Fatal(err)
	}
	r.CSR = csr
	return r
}

func unavailable(t *testing.T, err error, want string) {
	t.Helper()
	if u, ok := authority.AsUnavailable(err); !ok || !strings.Contains(cmp.Or(u.Detail, err.Error()), want) {
		t.Errorf("got %v, want Unavailable with %q", err, want)
	}
}
