package translate_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/translate"
)

// edit makes the next snapshot as the hub does: what has not changed stays the same pointer, what has is a new one.
func (d *draw) edit(s *mesh.Snapshot) *mesh.Snapshot {
	next := *s
	next.Clusters, next.Policies = slices.Clone(s.Clusters), slices.Clone(s.Policies)
	next.Workspaces, next.Settings, next.Overrides = slices.Clone(s.Workspaces), slices.Clone(s.Settings), slices.Clone(s.Overrides)
	for range 1 + d.n(2) {
		d.change(&next)
	}
	return &next
}

func (d *draw) change(s *mesh.Snapshot) {
	other := d.snapshot() // a place to take things from
	switch d.n(20) {
	case 0, 1: // a policy comes or is another
		p := d.policy(s, d.n(5))
		p.Generation = int64(1 + d.n(1000))
		i, found := slices.BinarySearchFunc(s.Policies, p, func(a, b *mesh.AccessPolicy) int { return a.Source.Compare(b.Source) })
		if found {
			s.Policies[i] = p
		} else {
			s.Policies = slices.Insert(s.Policies, i, p)
		}
	case 2:
		if n := len(s.Policies); n > 0 {
			i := d.n(n)
			s.Policies = slices.Delete(s.Policies, i, i+1)
		}
	case 3, 4, 5, 6:
		d.changeInventory(s)
	case 7:
		s.Workspaces, s.Settings = other.Workspaces, other.Settings
	case 8:
		s.Workspaces, s.Settings = nil, nil
	case 9:
		if n := len(s.Workspaces); n > 0 {
			w := *s.Workspaces[d.n(n)]
			w.Spec.WorkloadClusters = append(slices.Clone(w.Spec.WorkloadClusters), d.claim(s, w.Source.Name))
			for i := range s.Workspaces {
				if s.Workspaces[i].Source == w.Source {
					s.Workspaces[i] = &w
				}
			}
		}
	case 10: // the last cluster leaves, or one joins
		if n := len(s.Clusters); n > 1 && d.one(2) {
			s.Clusters = s.Clusters[:n-1]
		} else if n < 5 {
			s.Clusters = append(s.Clusters, d.cluster(n))
		}
	case 11:
		c := &s.Clusters[d.n(len(s.Clusters))]
		c.Labels = map[string]string{"env": pick(d, "prod", "dev")}
	case 12:
		d.changeWorkspace(s)
	case 13:
		c := &s.Clusters[d.n(len(s.Clusters))]
		c.Invalid = pick(d, "", "", "it is invalid")
		c.UID = pick(d, "", mesh.ClusterUID("uid-"+c.Name))
	case 14: // an agent says what became of its objects
		d.changeOutcomes(s)
	case 15:
		s.Namespaces = maps.Clone(s.Namespaces)
		s.Namespaces[pick(d, "a", "b")] = map[string]string{"team": pick(d, "red", "blue")}
	case 16:
		s.ManagementCluster = pick(d, "c0", "c0", "c1", "")
	case 17:
		d.changePart(s)
	default:
		s.Overrides = nil
		if len(s.Policies) > 0 && d.one(2) {
			s.Overrides = []*mesh.Override{{Source: mesh.Ref{Group: "security.policy.gloo.solo.io", Version: "v2", Kind: "PolicyOverride", Namespace: adminNamespace, Name: "o"}, Policy: s.Policies[d.n(len(s.Policies))].Source, Reason: "because"}}
		}
	}
}

func (d *draw) changeWorkspace(s *mesh.Snapshot) {
	if n := len(s.Settings); n > 0 && d.one(2) {
		i := d.n(n)
		st := *s.Settings[i]
		st.Spec = d.settings(st.Source.Name).Spec
		s.Settings[i] = &st
		return
	}
	if n := len(s.Workspaces); n > 0 {
		i := d.n(n)
		w := *s.Workspaces[i]
		w.Labels, w.Invalid = map[string]string{"tier": pick(d, "1", "2")}, pick(d, "", "", "", "it is invalid")
		s.Workspaces[i] = &w
	}
}

// changeOutcomes: objects that a walk has seen are taken over, or put back.
func (d *draw) changeOutcomes(s *mesh.Snapshot) {
	c := &s.Clusters[d.n(len(s.Clusters))]
	refs := d.objects[c.Name].Names()
	if c.Inventory == nil || len(refs) == 0 {
		return
	}
	inv := *c.Inventory
	inv.Outcomes = maps.Clone(inv.Outcomes)
	if inv.Outcomes == nil {
		inv.Outcomes = map[mesh.Ref]mesh.Outcome{}
	}
	taken := d.one(2)
	inv.Outcomes[refs[d.n(len(refs))]] = mesh.Outcome{OK: !taken, Drifted: taken, TakenOver: taken}
	c.Inventory = &inv
}

// changePart makes one part of a policy another.
func (d *draw) changePart(s *mesh.Snapshot) {
	if len(s.Policies) == 0 {
		return
	}
	i := d.n(len(s.Policies))
	p, other := *s.Policies[i], d.policy(s, 0)
	switch d.n(5) {
	case 0:
		p.Spec.ApplyToDestinations, p.Spec.ApplyToWorkloads = other.Spec.ApplyToDestinations, other.Spec.ApplyToWorkloads
	case 1:
		p.Spec.Config = other.Spec.Config
	case 2:
		p.Invalid = pick(d, "", "it is invalid")
	case 3:
		p.UID += "-again" // deleted and made again
	default:
		p.Generation++
	}
	if p.Invalid == "" && !valid(&p) {
		p.Invalid = "what internal/validate says"
	}
	s.Policies[i] = &p
}

func (d *draw) changeInventory(s *mesh.Snapshot) {
	c := &s.Clusters[d.n(len(s.Clusters))]
	if c.Inventory == nil || d.one(15) {
		again := d.cluster(1)
		c.Inventory = again.Inventory
		return
	}
	inv := *c.Inventory
	inv.Namespaces = maps.Clone(inv.Namespaces)
	name := pick(d, "a", "a", "b", "b", "infra", "infra", "gateways", "istio-system")
	switch {
	case d.one(20):
		inv.Info.RootNamespace = pick(d, "", "istio-config", "other")
	case d.one(20):
		inv.Complete = !inv.Complete
	case d.one(6):
		inv.Info.TrustDomain = pick[mesh.TrustDomain](d, "", "shared", "another")
	case d.one(6):
		delete(inv.Namespaces, name)
	case inv.Namespaces[name] == nil || d.one(3):
		inv.Namespaces[name] = d.namespace(name)
	default: // one thing in it
		from, ns := d.namespace(name), *inv.Namespaces[name]
		switch d.n(6) {
		case 0:
			ns.Services = from.Services
		case 1:
			ns.ServiceAccounts = from.ServiceAccounts
		case 2:
			ns.Workloads = from.Workloads
		case 3:
			ns.Gateways = from.Gateways
		case 4:
			ns.Labels = from.Labels
		default:
			ns.Foreign = d.foreign(name)
		}
		inv.Namespaces[name] = &ns
	}
	c.Inventory = &inv
	if string(c.Name) == s.ManagementCluster {
		s.Namespaces = map[string]map[string]string{adminNamespace: {}, "a": {}, "b": {}}
		for name, ns := range inv.Namespaces {
			s.Namespaces[name] = ns.Labels
		}
	}
}

// foreign are policies that people made.
func (d *draw) foreign(ns string) []mesh.ForeignPolicy {
	var out []mesh.ForeignPolicy
	for i := range d.n(3) {
		f := mesh.ForeignPolicy{Namespace: ns, Kind: "AuthorizationPolicy", Name: fmt.Sprintf("f%d", i)}
		f.Spec = json.RawMessage(pick(d,
			`{"rules":[{}]}`, `{}`, `{"action":"DENY","rules":[{}]}`,
			`{"selector":{"matchLabels":{"app":"x"}},"rules":[{"from":[{"source":{"principals":["*"]}}]}]}`,
			`{"selector":{"matchLabels":{"ver":"1"}},"action":"ALLOW","rules":[{"to":[{"operation":{"ports":["8080"]}}]}]}`,
			`{"targetRefs":[{"kind":"Service","group":"","name":"s0"}],"rules":[{}]}`,
		))
		if d.one(4) {
			f.Kind, f.Spec = "PeerAuthentication", json.RawMessage(pick(d, `{"mtls":{"mode":"PERMISSIVE"}}`, `{"selector":{"matchLabels":{"app":"x"}},"mtls":{"mode":"PERMISSIVE"}}`))
		}
		out = append(out, f)
	}
	return out
}

// TestNextEqualsAll: over a walk of edits, the memoised answer is that of All at every step, and the deltas rebuild the objects.
func TestNextEqualsAll(t *testing.T) {
	const steps = 25
	from, n := first(t), number(t, 60)
	for shard := range uint64(4) {
		t.Run(fmt.Sprint(shard), func(t *testing.T) {
			t.Parallel()
			for seed := from + shard; seed < from+n; seed += 4 {
				if err := walk(fromSeed(seed), steps); err != nil {
					t.Fatalf("seed %d (TRANSLATE_SEED=%d TRANSLATE_CASES=1): %v", seed, seed, err)
				}
			}
		})
	}
}

// differ is cmp.Diff, made only where there is something to say: it is slow.
func differ(want, got any) string {
	if reflect.DeepEqual(want, got) {
		return ""
	}
	return cmp.Diff(want, got)
}

func walk(d *draw, steps int) error {
	translator := translate.New()
	s := d.snapshot()
	built := map[mesh.ClusterName]translate.Objects{}
	for step := range steps {
		before := clone(s)
		got, err := translator.Next(s)
		if err != nil {
			return fmt.Errorf("step %d: %w", step, err)
		}
		want, err := translate.All(clone(s)) // nothing shared
		if err != nil {
			return fmt.Errorf("step %d: %w", step, err)
		}
		for c := range built {
			if _, still := got.Objects[c]; !still {
				delete(built, c)
			}
		}
		for c, delta := range got.Changed {
			var set []mesh.Object
			for _, ref := range delta.Set {
				now, _ := got.Objects[c].Get(ref)
				if old, _ := built[c].Get(ref); old.Hash == now.Hash {
					return fmt.Errorf("step %d: %s of %s is set to what it was", step, ref, c)
				}
				set = append(set, now)
			}
			for _, ref := range delta.Gone {
				if _, was := built[c].Get(ref); !was {
					return fmt.Errorf("step %d: %s of %s is gone, and was not there", step, ref, c)
				}
			}
			built[c] = built[c].With(set, delta.Gone)
			if !slices.IsSortedFunc(delta.Set, mesh.Ref.Compare) || !slices.IsSortedFunc(delta.Gone, mesh.Ref.Compare) {
				return fmt.Errorf("step %d: delta of %s is not sorted", step, c)
			}
		}
		if diff := differ(want.Objects, built); diff != "" {
			return fmt.Errorf("step %d: the deltas do not lead to the objects of All:\n%s", step, diff)
		}
		got.Changed, want.Changed = nil, nil
		if diff := differ(want, got); diff != "" {
			return fmt.Errorf("step %d: Next is not All:\n%s", step, diff)
		}
		if diff := differ(before, clone(s)); diff != "" {
			return fmt.Errorf("step %d: the snapshot was changed:\n%s", step, diff)
		}
		d.objects = got.Objects
		s = d.edit(s)
	}
	return nil
}

// TestAddingNeverWidens: after a policy is added, nothing gets through that did not before, unless the policy itself allows it.
func TestAddingNeverWidens(t *testing.T) {
	forAll(t, 1000, func(after *mesh.Snapshot) error {
		ra, err := translate.All(after)
		if err != nil {
			return err
		}
		pa, err := planes(after, ra, false)
		if err != nil {
			return err
		}
		for i, added := range after.Policies {
			before := *after
			before.Policies = slices.Delete(slices.Clone(after.Policies), i, i+1)
			rb, err := translate.All(&before)
			if err != nil {
				return err
			}
			pb, err := planes(&before, rb, false)
			if err != nil {
				return err
			}
			o, was := oracleOf(after), oracleOf(&before)
			err = calls(after, o, func(c call) error {
				// What was closed only because no selector could say it more precisely may open again.
				if pa[c.at.cluster].answer(after, c).may && !pb[c.at.cluster].answer(&before, c).may && !o.policyAllows(added.Source, c) && !was.answer(c).may {
					return fmt.Errorf("with %s there gets through what it does not allow: %s", added.Source, c)
				}
				return nil
			})
			if err != nil {
				return fmt.Errorf("%w\nbefore:\n%safter:\n%s", err, security(rb), security(ra))
			}
		}
		return nil
	})
}

// policyAllows: the policy itself allows the call, on one of its own destinations.
func (o *oracle) policyAllows(p mesh.Ref, c call) bool {
	for _, g := range o.guards[c.at] {
		switch {
		case g.policy != p:
		case c.service == "" && g.selects(c.labels) && g.onPod(fmt.Sprint(c.conn.port)) && g.direct(o, c.conn).may:
			return true
		case c.service != "" && (g.service == c.service && g.onService(c.port.Number) || g.selects(c.labels) && g.onPod(target(c.port))) && g.allows(c.conn).may:
			return true
		}
	}
	return false
}

// TestWideningIsReported: where something that is not ours lets more through, every policy that it goes around says so.
func TestWideningIsReported(t *testing.T) {
	forAll(t, 400, func(s *mesh.Snapshot) error {
		d := fromSeed(uint64(len(show(s))))
		for i := range s.Clusters {
			if inv := s.Clusters[i].Inventory; inv != nil {
				for name, ns := range inv.Namespaces {
					if ns.Foreign == nil && name != "gateways" {
						ns.Foreign = d.foreign(name)
					}
				}
			}
		}
		r, err := translate.All(s)
		if err != nil {
			return err
		}
		ps, err := planes(s, r, true)
		if err != nil {
			return err
		}
		o := oracleOf(s)
		return calls(s, o, func(c call) error {
			if o.answer(c).may || !ps[c.at.cluster].answer(s, c).may {
				return nil
			}
			port := fmt.Sprint(c.conn.port)
			if c.service != "" {
				port = target(c.port)
			}
			_, here := o.onPodAt(c.at, c.labels, port)
			for _, g := range here {
				if g.policy.Name == "" || c.service != "" && g.service != c.service {
					continue
				}
				for _, cr := range r.Policies[g.policy].Clusters {
					if cr.Cluster == c.at.cluster && len(cr.Widened) == 0 {
						return fmt.Errorf("%s is gone around in %s and does not say so: %s", g.policy, c.at.cluster, c)
					}
				}
			}
			return nil
		})
	})
}

// TestNothingEmpty: no manifest holds an empty list, an empty rule or a null: an empty list serialises away, and `rules: [{}]` allows everything.
func TestNothingEmpty(t *testing.T) {
	forAll(t, 1500, func(s *mesh.Snapshot) error {
		r, err := translate.All(s)
		if err != nil {
			return err
		}
		for c, objects := range r.Objects {
			for ref, o := range objects.All() {
				var m map[string]any
				if err := json.Unmarshal(o.Manifest, &m); err != nil {
					return err
				}
				if spec, ok := m["spec"].(map[string]any); ok && len(spec) == 0 {
					delete(m, "spec") // an AuthorizationPolicy of a namespace that allows nothing
				}
				if at := empty(m); at != "" {
					return fmt.Errorf("%s: %s: %s is empty: %s", c, ref, at, o.Manifest)
				}
				if o.Hash != mesh.FingerprintOf(o.Manifest) || len(ref.Name) > 63 {
					return fmt.Errorf("%s: %s: wrong hash, or a name of %d", c, ref, len(ref.Name))
				}
				if l := m["metadata"].(map[string]any)["labels"].(map[string]any); l[mesh.OwnerLabel] != mesh.OwnerValue {
					return fmt.Errorf("%s: %s: labels %v", c, ref, l)
				}
			}
		}
		for ref, rep := range r.Policies {
			for _, cr := range rep.Clusters {
				for _, o := range cr.Objects {
					if o.Kind == "AuthorizationPolicy" && !strings.Contains(o.Name, "accesspolicy-") && !strings.HasPrefix(o.Name, "isolation-") {
						return fmt.Errorf("%s: name of %s", ref, o)
					}
				}
			}
		}
		return nil
	})
}

// empty finds an empty list, an empty object or a null: its path, or "". Label values may be empty.
func empty(v any) string {
	switch v := v.(type) {
	case nil:
		return "."
	case []any:
		if len(v) == 0 {
			return "[]"
		}
		for i, e := range v {
			if at := empty(e); at != "" {
				return fmt.Sprintf("[%d]%s", i, at)
			}
		}
	case map[string]any:
		if len(v) == 0 {
			return "{}"
		}
		for k, e := range v {
			if at := empty(e); at != "" {
				return "." + k + at
			}
		}
	}
	return ""
}
