package probe

import (
	"encoding/base64"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Texts as istiod 1.31 has them in /debug/ambientz: addresses are base64 of their text.
func TestReadServed(t *testing.T) {
	text := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	raw := fmt.Sprintf(`{"workloads":[
{"uid":"c1//Pod/shop/web-1","network":"net-1","services":{"shop/web.shop.svc.cluster.local":{"ports":[]}}},
{"uid":"c1//Pod/shop/web-2","network":"net-1","services":{"shop/web.shop.svc.cluster.local":{}}},
{"uid":"NetworkGateway/net-2","network":"net-2","networkGateway":{"hboneMtlsPort":15008},"services":{"shop/web.shop.svc.cluster.local":{}}},
{"uid":"c1//Pod/shop/other","network":"net-1","services":{"shop/other.shop.svc.cluster.local":{}}}],
"services":[
{"name":"web","namespace":"shop","hostname":"web.shop.svc.cluster.local","addresses":[{"network":"net-2","address":%q},{"network":"net-1","address":%q}]},
{"name":"web","namespace":"shop","hostname":"web.example.com","addresses":[{"network":"net-1","address":%q}]},
{"name":"other","namespace":"shop","hostname":"other.shop.svc.cluster.local"}],"policies":null}`, text("10.2.0.1"), text("10.1.0.1"), text("10.9.9.9"))
	got, err := readServed([]byte(raw), "net-1", map[string]bool{"shop/web": true, "shop/gone": true})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(map[string]ServedService{"shop/web": {VIP: "10.1.0.1", Local: 2, Remote: 1}}, got); d != "" {
		t.Error(d)
	}
	if _, err := readServed([]byte("404 page not found"), "net-1", nil); err == nil {
		t.Error("nonsense is read")
	}
}
