package authz

import (
	"maps"
	"net/netip"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"
	"istio.io/istio/pkg/workloadapi/security"
)

// FuzzDecide: whatever istiod sends, a verdict comes out, names policies that
// exist, and obeys what holds for all of them: a DENY policy more never widens, a
// policy out of scope or in dry run changes nothing, and a first ALLOW policy
// never widens what no policy left open.
func FuzzDecide(f *testing.F) {
	add := func(principal string, ps ...*security.Authorization) {
		args := [2][]byte{}
		for i, p := range ps {
			data, err := proto.Marshal(p)
			if err != nil {
				f.Fatal(err)
			}
			args[i] = data
		}
		f.Add(args[0], args[1], principal, "10.1.0.5", "10.1.0.9:8080")
	}
	add(web, allow("a", one(principals(web))), deny("d", one(principals(other))))
	add(other, allow("a"), deny("d", group()))
	add("", allow("a", one(&security.Match{NotPrincipals: strs(presence())})), allow("b", one(&security.Match{SourceIps: cidrOf("10.0.0.0/8")})))
	add(web, allow("a", one(&security.Match{ServiceAccounts: accounts("shop", "web"), NotDestinationPorts: []uint32{22}})), allow("b", group(rule())))
	f.Fuzz(func(t *testing.T, first, second []byte, principal, source, dest string) {
		a, b := &security.Authorization{}, &security.Authorization{}
		if proto.Unmarshal(first, a) != nil || proto.Unmarshal(second, b) != nil || Key(a) == Key(b) {
			t.Skip()
		}
		c := Conn{Principal: principal}
		c.Source, _ = netip.ParseAddr(source)
		c.Dest, _ = netip.ParseAddrPort(dest)
		w := Workload{Namespace: "app", Policies: []string{Key(a)}}
		policies := byKey(a, b)
		got := Decide(policies, w, c)
		if got.Text == "" {
			t.Error("no reason")
		}
		for _, key := range got.By {
			if policies[key] == nil {
				t.Errorf("decided by %q, which is not there", key)
			}
		}
		if !slices.IsSorted(got.By) || !got.Allowed && len(got.By) == 0 {
			t.Errorf("denied by %q", got.By)
		}
		with := func(change func(*security.Authorization)) Verdict {
			p := &security.Authorization{Name: "one more", Namespace: "app", Scope: security.Scope_GLOBAL, Groups: a.GetGroups()}
			change(p)
			more := maps.Clone(policies)
			more[Key(p)] = p
			return Decide(more, w, c)
		}
		if v := with(func(p *security.Authorization) { p.Action = security.Action_DENY }); v.Allowed && !got.Allowed {
			t.Error("a DENY policy widened")
		}
		for name, change := range map[string]func(*security.Authorization){
			"dry run":      func(p *security.Authorization) { p.DryRun = true },
			"not named":    func(p *security.Authorization) { p.Scope = security.Scope_WORKLOAD_SELECTOR },
			"of elsewhere": func(p *security.Authorization) { p.Scope, p.Namespace = security.Scope_NAMESPACE, "elsewhere" },
		} {
			if v := with(change); v.Allowed != got.Allowed {
				t.Errorf("a policy that is %s changed the verdict", name)
			}
		}
		if got.Allowed && len(got.By) == 0 {
			everybody := with(func(p *security.Authorization) { p.Groups = []*security.Group{{}} })
			nobody := with(func(p *security.Authorization) { p.Groups = nil })
			if !everybody.Allowed || nobody.Allowed {
				t.Errorf("allowed by none; with ALLOW for everybody %v, for nobody %v", everybody.Allowed, nobody.Allowed)
			}
		}
	})
}
