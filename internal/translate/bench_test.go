package translate_test

import (
	"fmt"
	"maps"
	"runtime"
	"testing"

	securityv2 "ambitmesh.dev/ambit/api/security/v2"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/translate"
)

// large is a mesh of clusters with 100 Services each, in 20 namespaces, and policies that each guard one of them everywhere and allow two ServiceAccounts.
func large(clusters, policies int) *mesh.Snapshot {
	s := &mesh.Snapshot{ServerVersion: "2.12.0", ManagementCluster: "mgmt", AdminNamespace: "gloo-mesh"}
	for c := range clusters {
		inv := &mesh.Inventory{Complete: true, Info: mesh.ClusterInfo{TrustDomain: "cluster.local", IstioNamespace: "istio-system"}, Namespaces: map[string]*mesh.NamespaceInventory{}}
		for n := range 20 {
			ns := fmt.Sprintf("team-%d", n)
			one := &mesh.NamespaceInventory{Labels: map[string]string{"istio.io/dataplane-mode": "ambient"}}
			for i := range 5 {
				app := fmt.Sprintf("app-%d", n*5+i)
				labels := map[string]string{"app": app}
				one.Services = append(one.Services, mesh.Service{Namespace: ns, Name: app, Labels: labels, Selector: labels, Ports: []mesh.ServicePort{{Number: 8080}}})
				one.ServiceAccounts = append(one.ServiceAccounts, mesh.ServiceAccount{Namespace: ns, Name: app, Labels: labels})
			}
			inv.Namespaces[ns] = one
		}
		s.Clusters = append(s.Clusters, mesh.Cluster{Name: mesh.ClusterName(fmt.Sprintf("c-%04d", c)), UID: "u", Inventory: inv, Source: mesh.Ref{Kind: "KubernetesCluster", Name: fmt.Sprint(c)}})
	}
	for p := range policies {
		s.Policies = append(s.Policies, benchPolicy(p, p+1))
	}
	return s
}

func benchPolicy(p, client int) *mesh.AccessPolicy {
	sel := func(i int) *securityv2.ObjectSelector {
		return &securityv2.ObjectSelector{Labels: map[string]string{"app": fmt.Sprintf("app-%d", i%100)}}
	}
	return &mesh.AccessPolicy{
		Source: mesh.Ref{Group: "security.policy.gloo.solo.io", Version: "v2", Kind: "AccessPolicy", Namespace: "gloo-mesh", Name: fmt.Sprintf("policy-%03d", p)},
		Spec: securityv2.AccessPolicySpec{
			ApplyToDestinations: []securityv2.DestinationSelector{{Selector: sel(p)}},
			Config: &securityv2.AccessPolicyConfig{
				Authn: &securityv2.Authentication{TLSMode: securityv2.TLSStrict},
				Authz: &securityv2.Authorization{AllowedClients: []securityv2.IdentitySelector{{ServiceAccountSelector: sel(client)}, {ServiceAccountSelector: sel(client + 7)}}},
			},
		},
	}
}

func heap(b *testing.B) {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	b.ReportMetric(float64(m.HeapAlloc)/(1<<20), "heap-MiB")
	b.ReportMetric(float64(m.Sys)/(1<<20), "sys-MiB")
}

// sizes of the mesh.
func sizes(b *testing.B, run func(b *testing.B, clusters int)) {
	for _, clusters := range []int{100, 1000} {
		b.Run(fmt.Sprintf("%dx100x500", clusters), func(b *testing.B) {
			b.ReportAllocs()
			run(b, clusters)
		})
	}
}

// BenchmarkFull translates everything from nothing.
//
//	go test ./internal/translate -run '^$' -bench . -benchtime 3x -cpu 2
func BenchmarkFull(b *testing.B) {
	sizes(b, func(b *testing.B, clusters int) {
		s := large(clusters, 500)
		var r translate.Result
		var t *translate.Translator
		for b.Loop() {
			var err error
			t = translate.New()
			if r, err = t.Next(s); err != nil {
				b.Fatal(err)
			}
		}
		heap(b)
		runtime.KeepAlive(r)
		runtime.KeepAlive(t)
	})
}

// BenchmarkOnePolicyChange translates anew after one policy of 500 has changed.
func BenchmarkOnePolicyChange(b *testing.B) {
	sizes(b, func(b *testing.B, clusters int) {
		s := large(clusters, 500)
		t := translate.New()
		if _, err := t.Next(s); err != nil {
			b.Fatal(err)
		}
		i := 0
		for b.Loop() {
			i++
			next := *s
			next.Policies = append([]*mesh.AccessPolicy(nil), s.Policies...)
			next.Policies[17] = benchPolicy(17, 18+i%3)
			if _, err := t.Next(&next); err != nil {
				b.Fatal(err)
			}
		}
		heap(b)
		runtime.KeepAlive(t)
	})
}

// BenchmarkOneAccountChange translates anew after a ServiceAccount has appeared in one cluster.
func BenchmarkOneAccountChange(b *testing.B) {
	sizes(b, func(b *testing.B, clusters int) {
		s := large(clusters, 500)
		t := translate.New()
		if _, err := t.Next(s); err != nil {
			b.Fatal(err)
		}
		i := 0
		for b.Loop() {
			i++
			next := *s
			next.Clusters = append([]mesh.Cluster(nil), s.Clusters...)
			inv := *next.Clusters[3].Inventory
			spaces := map[string]*mesh.NamespaceInventory{}
			maps.Copy(spaces, inv.Namespaces)
			one := *spaces["team-0"]
			one.ServiceAccounts = append(append([]mesh.ServiceAccount(nil), one.ServiceAccounts...),
				mesh.ServiceAccount{Namespace: "team-0", Name: fmt.Sprintf("new-%d", i), Labels: map[string]string{"app": "app-5"}})
			spaces["team-0"] = &one
			inv.Namespaces = spaces
			next.Clusters[3].Inventory = &inv
			if _, err := t.Next(&next); err != nil {
				b.Fatal(err)
			}
		}
		heap(b)
		runtime.KeepAlive(t)
	})
}
