package translate_test

import (
	"slices"
	"testing"
)

// TestModel checks the model itself: each row of the emptiness table, and what else translation relies on.
func TestModel(t *testing.T) {
	const alice = "td-1/ns/a/sa/alice"
	from := func(source string) string { return `{"rules":[{"from":[{"source":` + source + `}]}]}` }
	for name, tc := range map[string]struct {
		spec                           string
		refused                        bool
		alice, plain, waypoint, at8080 bool // ztunnel: alice and plain text on 9090, alice on 8080; alice's GET /x on 9090 at a waypoint
	}{
		"no rules: nothing":                    {`{}`, false, false, false, false, false},
		"empty list of rules: nothing":         {`{"rules":[]}`, false, false, false, false, false},
		"an empty rule: everything":            {`{"rules":[{}]}`, false, true, true, true, true},
		"an empty from is an absent one":       {`{"rules":[{"from":[]}]}`, false, true, true, true, true},
		"an empty source":                      {from(`{}`), true, false, false, true, false},
		"an empty list of principals":          {from(`{"principals":[]}`), true, false, false, true, false},
		"a DENY with no notPrincipals":         {`{"action":"DENY","rules":[{"from":[{"source":{"notPrincipals":[]}}]}]}`, true, true, true, false, true},
		"a DENY without rules denies nothing":  {`{"action":"DENY"}`, false, true, true, true, true},
		"a DENY with an empty rule":            {`{"action":"DENY","rules":[{}]}`, false, false, false, false, false},
		"a DENY of all but alice":              {`{"action":"DENY","rules":[{"from":[{"source":{"notPrincipals":["` + alice + `"]}}]}]}`, false, true, false, true, true},
		"exact":                                {from(`{"principals":["` + alice + `"]}`), false, true, false, true, true},
		"another trust domain":                 {from(`{"principals":["td-2/ns/a/sa/alice"]}`), false, false, false, false, false},
		"spiffe:// never matches":              {from(`{"principals":["spiffe://` + alice + `"]}`), false, false, false, false, false},
		"suffix":                               {from(`{"principals":["*/ns/a/sa/alice"]}`), false, true, false, true, true},
		"prefix":                               {from(`{"principals":["td-1/*"]}`), false, true, false, true, true},
		"any identity, not plain text":         {from(`{"principals":["*"]}`), false, true, false, true, true},
		"namespace":                            {from(`{"namespaces":["a"]}`), false, true, false, true, true},
		"IP blocks alone admit plain text":     {from(`{"ipBlocks":["10.0.0.0/8"]}`), false, true, true, true, true},
		"ports":                                {`{"rules":[{"to":[{"operation":{"ports":["8080"]}}]}]}`, false, false, false, false, true},
		"notPorts":                             {`{"rules":[{"to":[{"operation":{"notPorts":["8080"]}}]}]}`, false, true, true, true, false},
		"ALLOW with a path: none at ztunnel":   {`{"rules":[{"to":[{"operation":{"paths":["/x"]}}]}]}`, false, false, false, true, false},
		"ALLOW with a header: none at ztunnel": {`{"rules":[{"when":[{"key":"request.headers[h]","notValues":["v"]}]}]}`, false, false, false, true, false},
		"DENY with a path on a port":           {`{"action":"DENY","rules":[{"to":[{"operation":{"ports":["8080"],"paths":["/y"]}}]}]}`, false, true, true, true, false},
		"DENY with nothing but a path":         {`{"action":"DENY","rules":[{"to":[{"operation":{"paths":["/x"]}}]}]}`, false, true, true, false, true},
		"two of from are OR":                   {`{"rules":[{"from":[{"source":{"principals":["x"]}},{"source":{"namespaces":["a"]}}]}]}`, false, true, false, true, true},
		"from and to are AND":                  {`{"rules":[{"from":[{"source":{"principals":["*"]}}],"to":[{"operation":{"ports":["8080"]}}]}]}`, false, false, false, false, true},
		"two of when are AND":                  {`{"rules":[{"when":[{"key":"source.namespace","values":["a"]},{"key":"destination.port","values":["8080"]}]}]}`, false, false, false, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			decode := func(spec string) *plane {
				p := &plane{root: "istio-system"}
				if err := p.add("AuthorizationPolicy", istioMeta{Namespace: "b", Name: "p"}, []byte(spec)); (err != nil) != tc.refused {
					t.Fatalf("refused: %v, want %v", err, tc.refused)
				}
				return p
			}
			at := func(c conn) bool {
				must, may := decode(tc.spec).pod("b", map[string]string{"app": "b"}, c)
				if must != may {
					t.Fatalf("%+v: ambiguous", c)
				}
				return must
			}
			got := []bool{at(conn{principal: alice, ip: "10.1.1.1", port: 9090}), at(conn{ip: "10.1.1.1", port: 9090}), at(conn{principal: alice, ip: "10.1.1.1", port: 8080})}
			if want := []bool{tc.alice, tc.plain, tc.at8080}; !slices.Equal(got, want) {
				t.Errorf("ztunnel: %v, want %v", got, want)
			}
			bound := `{"targetRefs":[{"kind":"Service","name":"s"}],` + tc.spec[1:]
			if tc.spec == `{}` {
				bound = `{"targetRefs":[{"kind":"Service","name":"s"}]}`
			}
			p := decode(bound)
			if got := p.waypoint("b", "s", conn{principal: alice, ip: "10.1.1.1", port: 9090, method: "GET", path: "/x"}); got != tc.waypoint {
				t.Errorf("waypoint: %v, want %v", got, tc.waypoint)
			}
			if !p.waypoint("b", "other", conn{}) || !p.authorized("b", nil, conn{}) {
				t.Error("targetRefs hold for another Service, or at ztunnel")
			}
		})
	}
}

// TestModelScope checks where a policy holds.
func TestModelScope(t *testing.T) {
	for name, tc := range map[string]struct {
		ns, spec string
		want     []bool // app=x in a, app=y in a, app=x in b
	}{
		"a namespace":         {"a", `{}`, []bool{false, false, true}},
		"a selector":          {"a", `{"selector":{"matchLabels":{"app":"x"}}}`, []bool{false, true, true}},
		"the root namespace":  {"root", `{}`, []bool{false, false, false}},
		"a selector of there": {"root", `{"selector":{"matchLabels":{"app":"x"}}}`, []bool{false, true, false}},
	} {
		t.Run(name, func(t *testing.T) {
			p := &plane{root: "root"}
			if err := p.add("AuthorizationPolicy", istioMeta{Namespace: tc.ns}, []byte(tc.spec)); err != nil {
				t.Fatal(err)
			}
			x, y := map[string]string{"app": "x"}, map[string]string{"app": "y"}
			if got := []bool{p.authorized("a", x, conn{}), p.authorized("a", y, conn{}), p.authorized("b", x, conn{})}; !slices.Equal(got, tc.want) {
				t.Errorf("%v, want %v", got, tc.want)
			}
		})
	}
	p := &plane{root: "root"}
	for _, spec := range []string{`{"selector":{"matchLabels":{"app":"x"}},"portLevelMtls":{"80":{"mode":"STRICT"}}}`, `{"selector":{"matchLabels":{"ver":"1"}},"mtls":{"mode":"STRICT"}}`} {
		if err := p.add("PeerAuthentication", istioMeta{Namespace: "a"}, []byte(spec)); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		labels    map[string]string
		c         conn
		must, may bool
	}{
		{map[string]string{"app": "x"}, conn{port: 80}, false, false},
		{map[string]string{"app": "x"}, conn{port: 80, principal: "p"}, true, true},
		{map[string]string{"app": "x"}, conn{port: 81}, true, true},
		{map[string]string{"app": "x", "ver": "1"}, conn{port: 81}, false, true}, // which is older?
		{map[string]string{"ver": "1"}, conn{port: 81}, false, false},
		{nil, conn{port: 81}, true, true},
	} {
		if must, may := p.pod("a", tc.labels, tc.c); must != tc.must || may != tc.may {
			t.Errorf("%v %+v: %v %v, want %v %v", tc.labels, tc.c, must, may, tc.must, tc.may)
		}
	}
	if err := p.add("PeerAuthentication", istioMeta{Namespace: "a"}, []byte(`{"portLevelMtls":{"80":{"mode":"STRICT"}}}`)); err == nil {
		t.Error("portLevelMtls without selector was taken")
	}
	if err := p.add("AuthorizationPolicy", istioMeta{Namespace: "a"}, nil); err != nil {
		t.Error(err)
	}
}
