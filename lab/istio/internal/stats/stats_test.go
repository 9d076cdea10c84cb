package stats_test

import (
	"io"
	"net"
	"strings"
	"testing"

	"ambitmesh.dev/ambit/lab/istio/internal/stats"
)

func TestCounters(t *testing.T) {
	c := stats.New()
	e := stats.Edge{
		Reporter: "source", From: stats.End{Workload: "cart", Canonical: "cart", Namespace: "shop", Principal: "spiffe://cluster.local/ns/shop/sa/cart", Cluster: "c1"},
		Host: "api.pay.svc.cluster.local", Service: "api", Namespace: "pay",
	}
	near, far := net.Pipe()
	conn, closed := c.Open(e, near)
	go func() {
		buf := make([]byte, 5)
		_, _ = io.ReadFull(far, buf)
		_, _ = far.Write([]byte("answer"))
		_ = far.Close()
	}()
	if _, err := conn.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(conn); err != nil || string(b) != "answer" {
		t.Fatalf("%q, %v", b, err)
	}
	closed()
	closed()
	c.Add(stats.Failed, e, stats.Deny, 1)
	var out strings.Builder
	if _, err := c.WriteTo(&out); err != nil {
		t.Fatal(err)
	}
	labels := func(flags string) string {
		return `{reporter="source",source_workload="cart",source_canonical_service="cart",source_workload_namespace="shop",source_principal="spiffe://cluster.local/ns/shop/sa/cart",source_cluster="c1",` +
			`destination_service="api.pay.svc.cluster.local",destination_service_namespace="pay",destination_service_name="api",destination_workload="unknown",destination_canonical_service="unknown",` +
			`destination_workload_namespace="unknown",destination_principal="unknown",destination_cluster="unknown",request_protocol="tcp",response_flags="` + flags + `",connection_security_policy="mutual_tls"}`
	}
	want := ""
	for _, m := range []struct {
		name, flags, value string
	}{{stats.Closed, stats.None, "1"}, {stats.Failed, stats.Deny, "1"}, {stats.Opened, stats.None, "1"}, {stats.Received, stats.None, "5"}, {stats.Sent, stats.None, "6"}} {
		want += "# TYPE " + m.name + " counter\n" + m.name + labels(m.flags) + " " + m.value + "\n"
	}
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
	var none *stats.Counters
	none.Add(stats.Failed, e, stats.Deny, 1)
	if conn, closed := none.Open(e, near); conn != near || closed == nil {
		t.Error("nil Counters must leave connections alone")
	}
}
