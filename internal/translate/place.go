package translate

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"

	"ambitmesh.dev/ambit/internal/mesh"
)

// share is what one policy has in one namespace: the result of selecting, kept from one Snapshot to the next, and what emitting added.
type share struct {
	*policyWork
	at       place
	parts    []*part
	guards   int      // ports of Services
	notes    []string // why it can't be enforced
	selected int      // of notes: those of selecting; the rest is of emitting
	override *mesh.Override
	objects  []objectID
	widened  []string
	added    bool // in this round
	altered  bool // by this round's emitting
}

func (sh *share) unenforceable(why string) {
	if !slices.Contains(sh.notes, why) {
		sh.notes = append(sh.notes, why)
	}
}

// objectID names an object of a namespace.
type objectID struct{ kind, name string }

func (o objectID) ref(namespace string) mesh.Ref {
	return mesh.Ref{Group: istioGroup, Version: istioVersion, Kind: o.kind, Namespace: namespace, Name: o.name}
}

func (at *placeWork) ref(kind, name string) mesh.Ref { return objectID{kind, name}.ref(at.ns) }

// outcome is what emitting adds to a share.
type outcome struct {
	notes, widened []string
	objects        []objectID
}

// rewind takes back what emitting added, and returns it. What was handed out is not touched.
func (sh *share) rewind() outcome {
	out := outcome{sh.notes, sh.widened, sh.objects}
	sh.notes, sh.objects, sh.widened = slices.Clip(sh.notes[:sh.selected]), nil, nil
	return out
}

// settle notes whether emitting came to something else than before.
func (sh *share) settle(before outcome) {
	sh.altered = !slices.Equal(before.notes, sh.notes) || !slices.Equal(before.widened, sh.widened) || !slices.Equal(before.objects, sh.objects)
}

// written is what an object was made of, so that the same need not be encoded again.
type written struct {
	parent      string
	origin      *origin
	annotations map[string]string
	spec        any
}

// placeState is what is known of one namespace of a cluster from the round before.
type placeState struct {
	shares    []*share // in the order of the policies
	written   map[mesh.Ref]*written
	plain     bool // every part was
	waypoints bool // something here is guarded by a waypoint
	isolated  bool
	counts    counts
}

// placeWork is one namespace of one cluster on its way through.
type placeWork struct {
	f     *fleet
	c     *mesh.Cluster
	ns    string
	n     *mesh.NamespaceInventory
	root  []mesh.ForeignPolicy
	parts []*part
	of    []*share // by part; nil: isolation

	before  *placeState
	have    Objects // the cluster's, from the round before
	written map[mesh.Ref]*written
	set     []mesh.Object
	plain   bool // all parts are
	blank   *written
}

// find is what w has here; nil: nothing.
func (at *placeWork) find(w *policyWork) *share {
	if w.bad || !w.scope.has(at.c.Name, at.ns) || layerOff(w.p) {
		return nil
	}
	sh := &share{policyWork: w, at: place{at.c.Name, at.ns}, added: true}
	if len(w.p.Spec.ApplyToWorkloads) > 0 {
		sh.parts = at.workloads(sh)
	} else {
		sh.parts = at.destinations(sh)
	}
	if len(sh.parts) == 0 && len(sh.notes) == 0 {
		return nil
	}
	if len(sh.parts) > 0 && at.ns == rootNamespace(at.c) {
		sh.parts, sh.guards = nil, 0
		sh.unenforceable(fmt.Sprintf("namespace %s is Istio's root namespace: a policy there would hold in every namespace, so nothing is written", at.ns))
	}
	if len(sh.parts) > 0 {
		sh.override = at.f.override(w.p.Source, at.c.Name)
		if !inMesh(at.n.Labels) {
			sh.unenforceable(fmt.Sprintf("namespace %s is not in the mesh (no label %s=ambient)", at.ns, labelDataplane))
		}
	}
	sh.selected = len(sh.notes)
	return sh
}

// override of a policy in a cluster, or nil: the one that ends last.
func (f *fleet) override(policy mesh.Ref, c mesh.ClusterName) *mesh.Override {
	var found *mesh.Override
	for _, o := range f.s.Overrides {
		if o.Policy.Namespace == policy.Namespace && o.Policy.Name == policy.Name && o.In(c) && (found == nil || o.Until.After(found.Until)) {
			found = o
		}
	}
	return found
}

// run emits the namespace: its shares are selected already.
func (at *placeWork) run(shares []*share) (*placeState, error) {
	at.blank = &written{}
	at.written = make(map[mesh.Ref]*written, len(at.before.written))
	before := make([]outcome, len(shares))
	for i, sh := range shares {
		before[i] = sh.rewind()
		for _, p := range sh.parts {
			at.parts, at.of = append(at.parts, p), append(at.of, sh)
		}
	}
	at.isolate()
	if err := at.emit(); err != nil {
		return nil, err
	}
	for i, sh := range shares {
		sh.settle(before[i])
	}
	now := &placeState{shares: shares, written: at.written, isolated: at.f.claims[place{at.c.Name, at.ns}].owner().isolated()}
	now.plain = at.plain
	now.waypoints = slices.ContainsFunc(at.parts, func(p *part) bool { return p.waypoint != nil })
	return now, nil
}

// keep adds an object; one that is made of the same as before is taken from there.
func (at *placeWork) keep(ref mesh.Ref, w *written) error {
	if at.written[ref] != nil {
		return fmt.Errorf("cluster %q: two sources want %s", at.c.Name, ref)
	}
	w.parent = at.f.s.ManagementCluster
	at.written[ref] = w
	if old := at.before.written[ref]; old != nil && reflect.DeepEqual(old, w) {
		if _, ok := at.have.Get(ref); ok {
			at.written[ref] = old
			return nil
		}
	}
	if at.plain && ref.Kind == kindAuthorization { // it is taken over as it is while its part is the same; else it is cheaper to encode it than to remember what it was made of
		at.written[ref] = at.blank
	}
	l := policyLabels{
		Workspace: w.origin.ws, ParentCluster: w.parent, ParentGroup: w.origin.source.Group, ParentKind: w.origin.source.Kind, ParentName: w.origin.source.Name,
		ParentNamespace: w.origin.source.Namespace, ParentVersion: w.origin.source.Version, Owner: mesh.OwnerValue, Reconciler: "translator", Cluster: at.c.Name,
	}
	raw, err := json.Marshal(istioObject{
		APIVersion: istioGroup + "/" + istioVersion, Kind: ref.Kind, Metadata: istioMeta{Name: ref.Name, Namespace: ref.Namespace, Labels: l, Annotations: w.annotations}, Spec: w.spec,
	})
	if err != nil {
		return fmt.Errorf("cluster %q: encode %s: %w", at.c.Name, ref, err)
	}
	o := mesh.Object{Ref: ref, Manifest: raw, Hash: mesh.FingerprintOf(raw)}
	if old, ok := at.have.Get(ref); !ok || old.Hash != o.Hash {
		at.set = append(at.set, o)
	}
	return nil
}

// gone are the objects of the round before that are not wanted any more.
func (at *placeWork) gone() []mesh.Ref {
	var out []mesh.Ref
	for ref := range at.before.written {
		if at.written[ref] == nil {
			out = append(out, ref)
		}
	}
	return out
}
