package control

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

func testClusters(t *testing.T) []Cluster {
	t.Helper()
	state := t.TempDir()
	clusters := []Cluster{
		{Name: "cluster-1", Index: 1, Dir: filepath.Join(state, "clusters", "cluster-1"), HostAddr: "127.0.0.1:7001"},
		{Name: "mgmt", Index: 0, Dir: filepath.Join(state, "clusters", "mgmt"), HostAddr: "127.0.0.1:7000"},
	}
	for _, c := range clusters {
		if err := Prepare(c); err != nil {
			t.Fatal(err)
		}
	}
	return clusters
}

func TestCertificatesVerify(t *testing.T) {
	t.Parallel()
	c := testClusters(t)[0]
	roots, frontProxy, clients := x509.NewCertPool(), x509.NewCertPool(), x509.NewCertPool()
	for pool, file := range map[*x509.CertPool]string{roots: c.CAFile(), frontProxy: c.pki("front-proxy-ca.crt"), clients: c.pki("client-ca.crt")} {
		raw, err := os.ReadFile(file)
		if err != nil || !pool.AppendCertsFromPEM(raw) {
			t.Fatalf("%s: no certificates: %v", file, err)
		}
	}
	for _, tc := range []struct {
		file   string
		roots  *x509.CertPool
		usage  x509.ExtKeyUsage
		names  []string // must be valid for these
		cn     string
		groups []string
	}{
		{c.pki("apiserver"), roots, x509.ExtKeyUsageServerAuth, []string{"127.0.0.1", "localhost", "10.11.0.1", "10.11.128.1", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"}, "kube-apiserver", nil},
		{c.pki("kubelet"), roots, x509.ExtKeyUsageServerAuth, []string{"10.11.0.1", "cluster-1-node"}, "system:node:cluster-1-node", []string{"system:nodes"}},
		{c.pki("kubelet-client"), roots, x509.ExtKeyUsageClientAuth, nil, "kube-apiserver-kubelet-client", []string{"system:masters"}},
		{c.pki("front-proxy-client"), frontProxy, x509.ExtKeyUsageClientAuth, nil, "front-proxy-client", nil},
		{c.pki("admin"), clients, x509.ExtKeyUsageClientAuth, nil, "lab-admin", []string{"system:masters"}},
		{c.pki("node"), clients, x509.ExtKeyUsageClientAuth, nil, "system:node:cluster-1-node", []string{"system:nodes", "system:masters"}},
		{c.pki("controller-manager"), clients, x509.ExtKeyUsageClientAuth, nil, "system:kube-controller-manager", nil},
		{c.pki("scheduler"), clients, x509.ExtKeyUsageClientAuth, nil, "system:kube-scheduler", nil},
		{filepath.Join(c.people(), "person"), clients, x509.ExtKeyUsageClientAuth, nil, "jane.doe@bank.example.com", []string{"system:masters"}},
	} {
		cert := readCert(t, tc.file+".crt")
		if _, err := cert.Verify(x509.VerifyOptions{Roots: tc.roots, KeyUsages: []x509.ExtKeyUsage{tc.usage}}); err != nil {
			t.Errorf("%s: %v", tc.file, err)
		}
		for _, name := range tc.names {
			if err := cert.VerifyHostname(name); err != nil {
				t.Errorf("%s: %v", tc.file, err)
			}
		}
		if cert.Subject.CommonName != tc.cn {
			t.Errorf("%s: common name %q, want %q", tc.file, cert.Subject.CommonName, tc.cn)
		}
		if diff := cmp.Diff(tc.groups, cert.Subject.Organization); diff != "" {
			t.Errorf("%s: groups (-want +got):\n%s", tc.file, diff)
		}
	}
}

// Clusters must not accept each other's components, only the same people.
func TestClustersAreSeparate(t *testing.T) {
	t.Parallel()
	clusters := testClusters(t)
	other := x509.NewCertPool()
	raw, err := os.ReadFile(clusters[1].pki("client-ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	other.AppendCertsFromPEM(raw)
	o := x509.VerifyOptions{Roots: other, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	for _, name := range []string{"admin", "node", "controller-manager", "scheduler", "kubelet-client"} {
		if _, err := readCert(t, clusters[0].pki(name+".crt")).Verify(o); err == nil {
			t.Errorf("cluster %q accepts %q of cluster %q", clusters[1].Name, name, clusters[0].Name)
		}
	}
}

func TestPrepareIsIdempotent(t *testing.T) {
	t.Parallel()
	c := testClusters(t)[0]
	state := filepath.Dir(filepath.Dir(c.Dir))
	before := readTree(t, state)
	if err := Prepare(c); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, readTree(t, state)); diff != "" {
		t.Errorf("a second Prepare changed files (-before +after):\n%s", diff)
	}
}

func TestPrepareRenewsWhatEndsOrIsLost(t *testing.T) {
	t.Parallel()
	c := testClusters(t)[0]
	ca, admin := readCert(t, c.CAFile()), readCert(t, c.pki("admin.crt"))
	if err := os.Remove(c.pki("scheduler.key")); err != nil {
		t.Fatal(err)
	}
	if err := prepare(c, time.Now().Add(leafLifetime-renewBefore/2)); err != nil {
		t.Fatal(err)
	}
	if !readCert(t, c.CAFile()).Equal(ca) {
		t.Error("the authority, which is still good, was replaced")
	}
	if renewed := readCert(t, c.pki("admin.crt")); renewed.Equal(admin) || !renewed.NotAfter.After(admin.NotAfter) {
		t.Error("a certificate at its end was not replaced")
	}
	if _, err := tls.LoadX509KeyPair(c.pki("scheduler.crt"), c.pki("scheduler.key")); err != nil {
		t.Error(err)
	}
}

func TestPrepareRefusesADamagedAuthority(t *testing.T) {
	t.Parallel()
	c := testClusters(t)[0]
	if err := os.WriteFile(c.pki("ca.key"), []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Prepare(c); err == nil {
		t.Error("Prepare replaced a damaged authority without a word")
	}
}

func TestPrepareRefusesBadClusters(t *testing.T) {
	t.Parallel()
	for _, c := range []Cluster{{Index: 1, Dir: "/x"}, {Name: "a", Index: 246, Dir: "/x"}, {Name: "a", Index: -1, Dir: "/x"}, {Name: "a", Dir: "x"}} {
		if err := Prepare(c); err == nil {
			t.Errorf("Prepare accepted %+v", c)
		}
	}
}

func TestKeysAreSecret(t *testing.T) {
	t.Parallel()
	c := testClusters(t)[0]
	for path := range readTree(t, filepath.Dir(filepath.Dir(c.Dir))) {
		ext := filepath.Ext(path)
		fi, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if (ext == ".key" || ext == ".kubeconfig") && fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, want 0600", path, fi.Mode())
		}
	}
}

// The people's kubeconfig must work against a server that has a cluster's certificate
// and asks for the people's.
func TestKubeconfigForPeople(t *testing.T) {
	t.Parallel()
	clusters := testClusters(t)
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := WriteKubeconfig(path, clusters); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var k struct {
		Current  string `json:"current-context"`
		Contexts []struct{ Name string }
		Clusters []struct {
			Cluster struct {
				Server string
				CA     string `json:"certificate-authority-data"`
			}
		}
		Users []struct {
			Name string
			User struct {
				Cert string `json:"client-certificate-data"`
				Key  string `json:"client-key-data"`
			}
		}
	}
	if err := yaml.Unmarshal(raw, &k); err != nil {
		t.Fatal(err)
	}
	got := []string{k.Current, k.Contexts[0].Name, k.Contexts[1].Name, k.Clusters[0].Cluster.Server, k.Users[0].Name}
	want := []string{"mgmt", "cluster-1", "mgmt", "https://127.0.0.1:7001", Person}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("kubeconfig (-want +got):\n%s", diff)
	}
	person, err := tls.X509KeyPair(decode(t, k.Users[0].User.Cert), decode(t, k.Users[0].User.Key))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(decode(t, k.Clusters[0].Cluster.CA))
	if got := whoami(t, clusters[0], &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{person}}); got != Person {
		t.Errorf("the server saw %q, want %q", got, Person)
	}
}

// whoami serves with a cluster's certificate on a loopback address and returns the
// common name of the client.
func whoami(t *testing.T, c Cluster, client *tls.Config) string {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(c.pki("apiserver.crt"), c.pki("apiserver.key"))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(c.pki("client-ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	clientCAs := x509.NewCertPool()
	clientCAs.AppendCertsFromPEM(raw)
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{pair}, ClientCAs: clientCAs, ClientAuth: tls.RequireAndVerifyClientCert,
	})
	if err != nil {
		t.Fatal(err)
	}
	seen := make(chan string, 1)
	server := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		seen <- r.TLS.PeerCertificates[0].Subject.CommonName
	})}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	resp, err := (&http.Client{Transport: &http.Transport{TLSClientConfig: client}}).Get("https://127.0.0.1:" + port)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return <-seen
}

func TestWriteKubeconfigNeedsAddresses(t *testing.T) {
	t.Parallel()
	clusters := testClusters(t)
	clusters[1].HostAddr = ""
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if WriteKubeconfig(path, clusters) == nil || WriteKubeconfig(path, nil) == nil {
		t.Error("a kubeconfig that can't work was written")
	}
}

func readCert(t *testing.T, path string) *x509.Certificate {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(raw)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return cert
}

func readTree(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		raw, err := os.ReadFile(path)
		files[path] = string(raw)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func decode(t *testing.T, s string) []byte {
	t.Helper()
	raw, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}
