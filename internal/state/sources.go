package state

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	networkingv2alpha1 "ambitmesh.dev/ambit/api/networking/v2alpha1"
	securityv2 "ambitmesh.dev/ambit/api/security/v2"
	"ambitmesh.dev/ambit/internal/mesh"
)

// sources are the objects of the management cluster as they were written last, and what Snapshots say of them.
type sources struct {
	objects    map[mesh.Ref]client.Object // shared with the cache that gave them
	policies   kind[mesh.AccessPolicy]
	workspaces kind[mesh.Workspace]
	settings   kind[mesh.WorkspaceSettings]
	overrides  kind[mesh.Override]
	roots      kind[mesh.RootTrustPolicy]
	requests   kind[mesh.RotationRequest]
	segments   kind[mesh.Segment]
	all        map[mesh.Ref]bool   // overrides
	invalid    map[mesh.Ref]string // those of them that break a rule: never in force

	namespaces map[string]map[string]string // immutable once handed out
	stale      bool                         // namespaces were handed out
	changed    map[mesh.Ref]bool            // since the last take
}

// kind is one kind's entries, sorted by Source, with what was written since they were handed out.
type kind[E any] struct {
	list    []*E
	pending edits[*E]
}

func newSources() *sources {
	return &sources{objects: map[mesh.Ref]client.Object{}, all: map[mesh.Ref]bool{}, invalid: map[mesh.Ref]string{}, namespaces: map[string]map[string]string{}, changed: map[mesh.Ref]bool{}}
}

// refOf names an object of a kind that Put takes; ok is false for others.
func refOf(o client.Object) (ref mesh.Ref, ok bool) {
	ref = mesh.Ref{Namespace: o.GetNamespace(), Name: o.GetName()}
	admin, security := adminv2.GroupVersion(), securityv2.GroupVersion()
	switch o.(type) {
	case *securityv2.AccessPolicy:
		ref.Group, ref.Version, ref.Kind = security.Group, security.Version, "AccessPolicy"
	case *securityv2.PolicyOverride:
		ref.Group, ref.Version, ref.Kind = security.Group, security.Version, "PolicyOverride"
	case *adminv2.Workspace:
		ref.Group, ref.Version, ref.Kind = admin.Group, admin.Version, "Workspace"
	case *adminv2.WorkspaceSettings:
		ref.Group, ref.Version, ref.Kind = admin.Group, admin.Version, "WorkspaceSettings"
	case *adminv2.RootTrustPolicy:
		ref.Group, ref.Version, ref.Kind = admin.Group, admin.Version, "RootTrustPolicy"
	case *adminv2.RotationRequest:
		ref.Group, ref.Version, ref.Kind = admin.Group, admin.Version, "RotationRequest"
	case *networkingv2alpha1.Segment:
		gv := networkingv2alpha1.GroupVersion()
		ref.Group, ref.Version, ref.Kind = gv.Group, gv.Version, "Segment"
	default:
		return ref, false
	}
	return ref, true
}

// Put takes up an AccessPolicy, Workspace, WorkspaceSettings, PolicyOverride, RootTrustPolicy, RotationRequest, Segment or Namespace (metadata) as the API server has it now, and
// says whether decisions may come out differently: a change of status alone does not count, but for what a RotationRequest's remembers. The object must not be changed afterwards.
func (s *State) Put(o client.Object) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	src := s.sources
	if m, ok := o.(*metav1.PartialObjectMetadata); ok {
		return src.putNamespace(m.Name, m.Labels)
	}
	ref, ok := refOf(o)
	if !ok {
		return false
	}
	if o.GetDeletionTimestamp() != nil {
		return src.remove(ref)
	}
	was := src.objects[ref]
	src.objects[ref] = o
	src.changed[ref] = true
	if was != nil && was.GetUID() == o.GetUID() && was.GetGeneration() == o.GetGeneration() && maps.Equal(was.GetLabels(), o.GetLabels()) &&
		was.GetAnnotations()[securityv2.AnnotationChangedBy] == o.GetAnnotations()[securityv2.AnnotationChangedBy] && sameMemory(was, o) {
		return false
	}
	src.edit(ref, o, s.cfg.Invalid(o))
	return true
}

// Remove takes note that an object is gone, and says whether that is news.
func (s *State) Remove(o client.Object) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m, ok := o.(*metav1.PartialObjectMetadata); ok {
		if _, had := s.sources.namespaces[m.Name]; !had {
			return false
		}
		s.sources.ownNamespaces()
		delete(s.sources.namespaces, m.Name)
		return true
	}
	ref, ok := refOf(o)
	return ok && s.sources.remove(ref)
}

// Object is the object as it was written last, or nil. It must not be changed.
func (s *State) Object(ref mesh.Ref) client.Object {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sources.objects[ref]
}

// Overrides names all PolicyOverrides there are, sorted, also those that have ended or have a fault.
func (s *State) Overrides() []mesh.Ref {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []mesh.Ref
	for ref := range s.sources.all {
		out = append(out, ref)
	}
	slices.SortFunc(out, mesh.Ref.Compare)
	return out
}

// Invalid says what is wrong with a PolicyOverride, empty for nothing: those with a fault are in no Snapshot.
func (s *State) Invalid(override mesh.Ref) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sources.invalid[override]
}

func (s *sources) putNamespace(name string, labels map[string]string) bool {
	if was, had := s.namespaces[name]; had && maps.Equal(was, labels) {
		return false
	}
	s.ownNamespaces()
	if labels == nil {
		labels = map[string]string{}
	}
	s.namespaces[name] = labels
	return true
}

func (s *sources) ownNamespaces() {
	if s.stale {
		s.namespaces, s.stale = maps.Clone(s.namespaces), false
	}
}

func (s *sources) remove(ref mesh.Ref) bool {
	if s.objects[ref] == nil {
		return false
	}
	delete(s.objects, ref)
	delete(s.invalid, ref)
	delete(s.all, ref)
	s.changed[ref] = true
	switch ref.Kind {
	case "AccessPolicy":
		s.policies.edit(ref, nil)
	case "PolicyOverride":
		s.overrides.edit(ref, nil)
	case "Workspace":
		s.workspaces.edit(ref, nil)
	case "WorkspaceSettings":
		s.settings.edit(ref, nil)
	case "RootTrustPolicy":
		s.roots.edit(ref, nil)
	case "RotationRequest":
		s.requests.edit(ref, nil)
	case "Segment":
		s.segments.edit(ref, nil)
	}
	return true
}

func (s *sources) edit(ref mesh.Ref, o client.Object, invalid string) {
	switch o := o.(type) {
	case *securityv2.AccessPolicy:
		s.policies.edit(ref, &mesh.AccessPolicy{
			Source: ref, UID: string(o.UID), Generation: o.Generation, Created: o.CreationTimestamp.UTC(), Spec: o.Spec,
			ChangedBy: o.Annotations[securityv2.AnnotationChangedBy], Invalid: invalid,
		})
	case *adminv2.Workspace:
		s.workspaces.edit(ref, &mesh.Workspace{Source: ref, UID: string(o.UID), Generation: o.Generation, Labels: o.Labels, Spec: o.Spec, Invalid: invalid})
	case *adminv2.WorkspaceSettings:
		s.settings.edit(ref, &mesh.WorkspaceSettings{Source: ref, UID: string(o.UID), Generation: o.Generation, Created: o.CreationTimestamp.UTC(), Spec: o.Spec, Invalid: invalid})
	case *adminv2.RootTrustPolicy:
		s.roots.edit(ref, rootPolicy(ref, o, invalid))
	case *adminv2.RotationRequest:
		s.requests.edit(ref, rotationRequest(ref, o, invalid))
	case *networkingv2alpha1.Segment:
		s.segments.edit(ref, &mesh.Segment{Source: ref, UID: string(o.UID), Generation: o.Generation, Created: o.CreationTimestamp.UTC(), Spec: o.Spec, Invalid: invalid})
	case *securityv2.PolicyOverride:
		s.all[ref] = true
		if invalid != "" {
			s.invalid[ref] = invalid
			s.overrides.edit(ref, nil)
			return
		}
		delete(s.invalid, ref)
		s.overrides.edit(ref, override(ref, o))
	}
}

// OverrideOf is what a PolicyOverride says.
func OverrideOf(o *securityv2.PolicyOverride) *mesh.Override {
	ref, _ := refOf(o)
	return override(ref, o)
}

func override(ref mesh.Ref, o *securityv2.PolicyOverride) *mesh.Override {
	v := &mesh.Override{
		Source: ref, Until: until(o), Reason: o.Spec.Reason, By: o.Annotations[securityv2.AnnotationChangedBy],
		Policy: mesh.Ref{Group: ref.Group, Version: ref.Version, Kind: "AccessPolicy", Namespace: cmp.Or(o.Spec.PolicyRef.Namespace, ref.Namespace), Name: o.Spec.PolicyRef.Name},
	}
	for _, c := range o.Spec.Clusters {
		v.Clusters = append(v.Clusters, mesh.ClusterName(c))
	}
	return v
}

// until is when an override ends.
func until(o *securityv2.PolicyOverride) time.Time {
	return o.CreationTimestamp.Add(o.Spec.For.Duration).UTC().Truncate(time.Second)
}

func (k *kind[E]) edit(ref mesh.Ref, e *E) {
	if k.pending == nil {
		k.pending = edits[*E]{}
	}
	if e == nil {
		k.pending[ref.String()] = nil
		return
	}
	k.pending[ref.String()] = &e
}

func (k *kind[E]) take(source func(*E) mesh.Ref) []*E {
	by := lister[*E]{func(e **E) string { return source(*e).String() }, func(a, b **E) bool { return *a == *b }}
	k.list, _ = by.merge(k.list, k.pending, nil)
	k.pending = nil
	return k.list
}

// take fills in a Snapshot.
func (s *sources) take(snap *mesh.Snapshot, src *Sources, now time.Time) {
	snap.Namespaces, s.stale = s.namespaces, true
	snap.Policies = s.policies.take(func(p *mesh.AccessPolicy) mesh.Ref { return p.Source })
	snap.Workspaces = s.workspaces.take(func(w *mesh.Workspace) mesh.Ref { return w.Source })
	snap.Settings = s.settings.take(func(w *mesh.WorkspaceSettings) mesh.Ref { return w.Source })
	snap.RootPolicies = s.roots.take(func(p *mesh.RootTrustPolicy) mesh.Ref { return p.Source })
	snap.RotationRequests = s.requests.take(func(r *mesh.RotationRequest) mesh.Ref { return r.Source })
	snap.Segments = s.segments.take(func(s *mesh.Segment) mesh.Ref { return s.Source })
	for _, o := range s.overrides.take(func(o *mesh.Override) mesh.Ref { return o.Source }) {
		if !o.Until.After(now) {
			src.Ended = append(src.Ended, o.Source)
			continue
		}
		snap.Overrides = append(snap.Overrides, o)
		if src.NextEnd.IsZero() || o.Until.Before(src.NextEnd) {
			src.NextEnd = o.Until
		}
	}
	for ref := range s.changed {
		if s.objects[ref] != nil {
			src.Changed = append(src.Changed, ref)
		} else {
			src.Gone = append(src.Gone, ref)
		}
	}
	clear(s.changed)
	byText := func(a, b mesh.Ref) int { return strings.Compare(a.String(), b.String()) }
	slices.SortFunc(src.Changed, byText)
	slices.SortFunc(src.Gone, byText)
}
