package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	securityv2 "ambitmesh.dev/ambit/api/security/v2"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/validate"
)

// The kinds that translation reads from the management cluster, by their apiVersion.
func servedKinds() map[string]string {
	return map[string]string{
		"AccessPolicy":      securityv2.GroupVersion().String(),
		"Workspace":         adminv2.GroupVersion().String(),
		"WorkspaceSettings": adminv2.GroupVersion().String(),
	}
}

// ours reports whether a document is one that translation reads.
func ours(d *document) bool { return servedKinds()[d.Kind.Kind] == d.Kind.APIVersion }

// overlay is a snapshot with a file's objects put in.
type overlay struct {
	Snapshot *mesh.Snapshot
	Objects  []mesh.Ref // of the file
	Notes    []string   // what to know about the file
}

// putIn returns s with the objects of docs in place of those of the same name. s itself is not changed. Objects that the webhook would refuse are an error.
// defaultNamespace is for objects that name none; now is the time of creation of new ones.
func putIn(s *mesh.Snapshot, docs []document, defaultNamespace string, now time.Time) (*overlay, error) {
	next := *s
	next.Policies, next.Workspaces, next.Settings = slices.Clone(s.Policies), slices.Clone(s.Workspaces), slices.Clone(s.Settings)
	o := &overlay{Snapshot: &next}
	others := map[string]int{}
	seen := map[mesh.Ref]string{}
	var wrong []string
	for i := range docs {
		d := &docs[i]
		if hint := validate.Group(d.Kind.APIVersion, d.Kind.Kind); hint != "" {
			wrong = append(wrong, fmt.Sprintf("%s: %s", d, hint))
			continue
		}
		if !ours(d) {
			others[d.Kind.Kind]++
			continue
		}
		if d.Meta.Namespace == "" {
			d.Meta.Namespace = defaultNamespace
			o.note("%s names no namespace: taken as %q", d, defaultNamespace)
		}
		errs := o.put(d, now)
		ref := refOf(d)
		if first, twice := seen[ref]; twice {
			errs = append(errs, field.Duplicate(field.NewPath("metadata", "name"), d.Meta.Name+", already in "+first))
		}
		seen[ref] = d.Where
		for _, e := range errs {
			wrong = append(wrong, fmt.Sprintf("%s: %s", d, e.Error()))
		}
		o.Objects = append(o.Objects, ref)
		if _, ok := s.Namespaces[d.Meta.Namespace]; !ok && s.Namespaces != nil {
			o.note("%s: the management cluster has no namespace %q: create it before you apply the file", d, d.Meta.Namespace)
			o.addNamespace(d.Meta.Namespace)
		}
	}
	if len(wrong) > 0 {
		return nil, usageError("the management server would refuse this:\n  %s", strings.Join(wrong, "\n  "))
	}
	for _, kind := range slices.Sorted(maps.Keys(others)) {
		o.note("left out, because the mesh does not read them: %d of kind %s", others[kind], kind)
	}
	if len(o.Objects) == 0 {
		return nil, usageError("there is no AccessPolicy, Workspace or WorkspaceSettings in it")
	}
	return o, nil
}

func (o *overlay) note(format string, args ...any) {
	o.Notes = append(o.Notes, fmt.Sprintf(format, args...))
}

func (o *overlay) addNamespace(name string) {
	all := maps.Clone(o.Snapshot.Namespaces)
	all[name] = map[string]string{}
	o.Snapshot.Namespaces = all
}

func refOf(d *document) mesh.Ref {
	group, version, _ := strings.Cut(servedKinds()[d.Kind.Kind], "/")
	return mesh.Ref{Group: group, Version: version, Kind: d.Kind.Kind, Namespace: d.Meta.Namespace, Name: d.Meta.Name}
}

// put validates one document as the webhook does, and puts it into the snapshot.
func (o *overlay) put(d *document, now time.Time) field.ErrorList {
	if d.Meta.Name == "" {
		return field.ErrorList{field.Required(field.NewPath("metadata", "name"), "give it one")}
	}
	switch d.Kind.Kind {
	case "AccessPolicy":
		return o.putPolicy(d, now)
	case "Workspace":
		return o.putWorkspace(d)
	default:
		return o.putSettings(d, now)
	}
}

func (o *overlay) putPolicy(d *document, now time.Time) field.ErrorList {
	var object securityv2.AccessPolicy
	if errs := decodeDocument(d, &object); len(errs) > 0 {
		return errs
	}
	if errs := validate.AccessPolicy(&object, nil, o.options()); len(errs) > 0 {
		return errs
	}
	o.warn(d, validate.WarningsOfAccessPolicy(&object, o.options()))
	s, ref := o.Snapshot, refOf(d)
	s.Policies = placed(s.Policies, ref, func(p *mesh.AccessPolicy) mesh.Ref { return p.Source }, func(old *mesh.AccessPolicy) *mesh.AccessPolicy {
		p := &mesh.AccessPolicy{Source: ref, Generation: 1, Created: now, Spec: object.Spec}
		if old == nil {
			return p
		}
		if same(old.Spec, p.Spec) {
			return old
		}
		p.UID, p.Generation, p.Created = old.UID, old.Generation+1, old.Created
		return p
	})
	return nil
}

func (o *overlay) putWorkspace(d *document) field.ErrorList {
	var object adminv2.Workspace
	if errs := decodeDocument(d, &object); len(errs) > 0 {
		return errs
	}
	if errs := validate.Workspace(&object, nil, o.options()); len(errs) > 0 {
		return errs
	}
	o.warn(d, validate.WarningsOfWorkspace(&object, o.options()))
	s, ref := o.Snapshot, refOf(d)
	s.Workspaces = placed(s.Workspaces, ref, func(w *mesh.Workspace) mesh.Ref { return w.Source }, func(old *mesh.Workspace) *mesh.Workspace {
		w := &mesh.Workspace{Source: ref, Generation: 1, Labels: object.Labels, Spec: object.Spec}
		if old == nil {
			return w
		}
		if same(old.Spec, w.Spec) && maps.Equal(old.Labels, w.Labels) {
			return old
		}
		w.UID, w.Generation = old.UID, old.Generation+1
		return w
	})
	return nil
}

func (o *overlay) putSettings(d *document, now time.Time) field.ErrorList {
	var object adminv2.WorkspaceSettings
	if errs := decodeDocument(d, &object); len(errs) > 0 {
		return errs
	}
	if errs := validate.WorkspaceSettings(&object, nil, o.options()); len(errs) > 0 {
		return errs
	}
	o.warn(d, validate.WarningsOfWorkspaceSettings(&object, o.options()))
	s, ref := o.Snapshot, refOf(d)
	s.Settings = placed(s.Settings, ref, func(w *mesh.WorkspaceSettings) mesh.Ref { return w.Source }, func(old *mesh.WorkspaceSettings) *mesh.WorkspaceSettings {
		w := &mesh.WorkspaceSettings{Source: ref, Generation: 1, Created: now, Spec: object.Spec}
		if old == nil {
			return w
		}
		if same(old.Spec, w.Spec) {
			return old
		}
		w.UID, w.Generation, w.Created = old.UID, old.Generation+1, old.Created
		return w
	})
	return nil
}

// options are what the webhook knows beside the object.
func (o *overlay) options() validate.Options {
	return validate.Options{AdminNamespace: o.Snapshot.AdminNamespace}
}

// warn passes on what the webhook would say without refusing.
func (o *overlay) warn(d *document, warnings []string) {
	for _, w := range warnings {
		o.note("%s: %s", d, w)
	}
}

// decodeDocument reads a document strictly. Its namespace is the one it is taken to have.
func decodeDocument(d *document, into metav1.Object) field.ErrorList {
	errs := validate.Decode(d.JSON, into)
	into.SetNamespace(d.Meta.Namespace)
	// A file that kubectl exported carries what admission wrote; admission writes it anew.
	annotations := into.GetAnnotations()
	delete(annotations, securityv2.AnnotationChangedBy)
	delete(annotations, securityv2.AnnotationChangedAt)
	return errs
}

// same compares specs by their JSON, where absent and empty lists are the same.
func same[T any](a, b T) bool {
	x, errA := json.Marshal(a)
	y, errB := json.Marshal(b)
	return errA == nil && errB == nil && bytes.Equal(x, y)
}

// placed puts an object into a list sorted by Source: change gets the one of the same name, or nil.
func placed[T any](list []*T, ref mesh.Ref, source func(*T) mesh.Ref, change func(*T) *T) []*T {
	i, found := slices.BinarySearchFunc(list, ref, func(o *T, r mesh.Ref) int { return source(o).Compare(r) })
	if found {
		list[i] = change(list[i])
		return list
	}
	return slices.Insert(list, i, change(nil))
}
