package validate

import (
	"fmt"

	"k8s.io/apimachinery/pkg/util/validation/field"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
)

// Workspace checks a new or changed workspace; old is nil for a new one.
func Workspace(now, _ *adminv2.Workspace, o Options) field.ErrorList {
	r, meta := &rules{}, field.NewPath("metadata")
	r.shortName(now.Name, "Workspace")
	if now.Namespace != o.AdminNamespace {
		r.invalid(meta.Child("namespace"), now.Namespace, "create it in namespace %q: the management server reads Workspaces of its admin namespace only", o.AdminNamespace)
	}
	list := field.NewPath("spec", "workloadClusters")
	for i := range now.Spec.WorkloadClusters {
		c, path := &now.Spec.WorkloadClusters[i], list.Index(i)
		r.glob(path.Child("name"), c.Name, "cluster")
		r.labels(path.Child("selector"), c.Selector, "leave selector out for every cluster")
		if len(c.Namespaces) == 0 {
			r.required(path.Child("namespaces"), "%s", whichNamespaces(now.Spec.WorkloadClusters, i))
		}
		for j := range c.Namespaces {
			n, path := &c.Namespaces[j], path.Child("namespaces").Index(j)
			r.glob(path.Child("name"), n.Name, "namespace")
			r.labels(path.Child("labels"), n.Labels, "leave labels out for every namespace")
		}
	}
	return r.errs
}

// whichNamespaces: the usual cause of an entry without namespaces is that they are an entry of their own, which would then be of every cluster.
func whichNamespaces(entries []adminv2.ClusterSelector, i int) string {
	if i+1 < len(entries) {
		if next := entries[i+1]; next.Name == "" && len(next.Selector) == 0 && len(next.Namespaces) > 0 {
			return fmt.Sprintf("the entry has none. workloadClusters[%d] has namespaces and no cluster: if they belong here, remove the '- ' before them", i+1)
		}
	}
	return "which? An entry without namespaces selects nothing: write namespaces: [{name: ...}], or [{name: '*'}] for every one"
}

// WarningsOfWorkspace says what is allowed but probably not meant.
func WarningsOfWorkspace(now *adminv2.Workspace, _ Options) []string {
	w := &warnings{}
	set := 0
	for i := range now.Spec.WorkloadClusters {
		c := &now.Spec.WorkloadClusters[i]
		if c.ConfigEnabled != nil {
			set++
			continue
		}
		inside := 0
		for j := range c.Namespaces {
			if c.Namespaces[j].ConfigEnabled != nil {
				inside++
			}
		}
		if inside > 0 && inside < len(c.Namespaces) {
			w.say(fmt.Sprintf("spec.workloadClusters[%d].namespaces", i), "configEnabled is set on some entries only; on the others it is true: set it on all of them, so that readers see it")
		}
	}
	if set > 0 && set < len(now.Spec.WorkloadClusters) {
		w.say("spec.workloadClusters", "configEnabled is set on some entries only; on the others it is true: set it on all of them, so that readers see it")
	}
	return *w
}
