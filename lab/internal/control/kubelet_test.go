package control

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"
)

// kubelet checks that the API server reaches the node's kubelet API with the
// certificates that Prepare made: "kubectl logs" against a server that answers only
// clients with a certificate of KubeletClientCA.
func (l *lab) kubelet(c Cluster) {
	l.t.Helper()
	serveLogs(l.t, c)
	l.kubectl(c, "create", "namespace", "kubelet")
	l.apply(c, fmt.Sprintf(`
apiVersion: v1
kind: Node
metadata: {name: %q}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: default, namespace: kubelet}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: kubelet}
spec:
  nodeName: %q
  terminationGracePeriodSeconds: 0
  containers: [{name: web, image: example.com/web:1}]
`, c.NodeName(), c.NodeName()))
	l.kubectl(c, "patch", "node", c.NodeName(), "--subresource=status", "--type=merge",
		fmt.Sprintf(`-p={"status":{"addresses":[{"type":"InternalIP","address":%q}]}}`, c.NodeIP()))
	if got, want := l.kubectl(c, "-n", "kubelet", "logs", "web"), "kube-apiserver-kubelet-client reads the logs of kubelet/web/web"; got != want {
		l.t.Errorf("cluster %q: logs: got %q, want %q", c.Name, got, want)
	}
	l.kubectl(c, "delete", "node", c.NodeName())
	l.kubectl(c, "-n", "kubelet", "delete", "pod", "web", "--force", "--grace-period=0")
}

func serveLogs(t *testing.T, c Cluster) {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(c.KubeletCert(), c.KubeletKey())
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(c.KubeletClientCA())
	if err != nil {
		t.Fatal(err)
	}
	clientCAs := x509.NewCertPool()
	clientCAs.AppendCertsFromPEM(raw)
	listener, err := tls.Listen("tcp", netip.AddrPortFrom(c.NodeIP(), 10250).String(), &tls.Config{
		Certificates: []tls.Certificate{pair}, ClientCAs: clientCAs, ClientAuth: tls.RequireAndVerifyClientCert,
	})
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s reads the logs of %s", r.TLS.PeerCertificates[0].Subject.CommonName, strings.TrimPrefix(r.URL.Path, "/containerLogs/"))
	})}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
}
