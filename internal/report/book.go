package report

import (
	"reflect"

	"ambitmesh.dev/ambit/internal/mesh"
)

// Book remembers what the status of each policy was computed from, so that a round looks only at those of which something has changed. It does no I/O, and is for
// one caller at a time.
type Book struct {
	reports  map[mesh.Ref]mesh.PolicyReport
	policies map[mesh.Ref]*mesh.AccessPolicy
	byObject map[mesh.Ref]map[mesh.Ref]int // object: policies it serves, with in how many clusters
	facts    map[mesh.ClusterName]clusterKey
}

// clusterKey is what of a cluster concerns every policy in it.
type clusterKey struct{ connected, published, unknown bool }

// NewBook returns a Book of nothing.
func NewBook() *Book {
	return &Book{
		reports: map[mesh.Ref]mesh.PolicyReport{}, policies: map[mesh.Ref]*mesh.AccessPolicy{}, byObject: map[mesh.Ref]map[mesh.Ref]int{}, facts: map[mesh.ClusterName]clusterKey{},
	}
}

// News is what a round came to.
type News struct {
	Policies []*mesh.AccessPolicy
	Reports  map[mesh.Ref]mesh.PolicyReport
	// Touched are objects that are wanted otherwise than before, or whose outcome has changed, in any cluster.
	Touched map[mesh.Ref]bool
	// Facts of each cluster; of them Desired and Outcomes are not looked at.
	Facts map[mesh.ClusterName]ClusterFacts
}

// Due says which policies may have another status than before.
func (b *Book) Due(n News) map[mesh.Ref]bool {
	due := map[mesh.Ref]bool{}
	clusters, all := b.changedClusters(n.Facts)
	seen := make(map[mesh.Ref]bool, len(n.Policies))
	for _, p := range n.Policies {
		seen[p.Source] = true
		next, ok := n.Reports[p.Source]
		was, had := b.reports[p.Source]
		if all || b.policies[p.Source] != p {
			b.policies[p.Source] = p
			due[p.Source] = true
		}
		if ok != had || ok && !sameReport(&was, &next) {
			due[p.Source] = true
			b.index(p.Source, &was, -1)
			b.index(p.Source, &next, 1)
			if ok {
				b.reports[p.Source] = next
			} else {
				delete(b.reports, p.Source)
			}
		}
		if len(clusters) > 0 && !due[p.Source] {
			for i := range next.Clusters {
				if clusters[next.Clusters[i].Cluster] {
					due[p.Source] = true
					break
				}
			}
		}
	}
	for ref := range b.policies {
		if !seen[ref] {
			was := b.reports[ref]
			b.index(ref, &was, -1)
			delete(b.reports, ref)
			delete(b.policies, ref)
		}
	}
	for object := range n.Touched {
		for p := range b.byObject[object] {
			due[p] = true
		}
	}
	return due
}

// changedClusters names the clusters of which something else is so now; all: it may concern policies that are not said to be there.
func (b *Book) changedClusters(facts map[mesh.ClusterName]ClusterFacts) (changed map[mesh.ClusterName]bool, all bool) {
	changed = map[mesh.ClusterName]bool{}
	for c, f := range facts {
		k := clusterKey{f.Connected, f.Published, f.Unknown}
		if was, had := b.facts[c]; !had || was != k {
			all = all || was.unknown || k.unknown
			changed[c] = true
			b.facts[c] = k
		}
	}
	for c := range b.facts {
		if _, ok := facts[c]; !ok {
			changed[c] = true
			delete(b.facts, c)
		}
	}
	return changed, all
}

func (b *Book) index(policy mesh.Ref, r *mesh.PolicyReport, by int) {
	for i := range r.Clusters {
		for _, o := range r.Clusters[i].Objects {
			m := b.byObject[o]
			if m == nil {
				m = make(map[mesh.Ref]int, 1)
				b.byObject[o] = m
			}
			if m[policy] += by; m[policy] <= 0 {
				delete(m, policy)
			}
			if len(m) == 0 {
				delete(b.byObject, o)
			}
		}
	}
}

// sameReport compares, and is quick for reports that share their lists, as translation's do while nothing changes.
func sameReport(a, b *mesh.PolicyReport) bool {
	if sameList(a.Clusters, b.Clusters) && sameList(a.ServiceAccounts, b.ServiceAccounts) && sameList(a.Conditions, b.Conditions) {
		return a.Approval == b.Approval && a.Message == b.Message && a.Workspace == b.Workspace && a.DestinationPorts == b.DestinationPorts && a.Namespaces == b.Namespaces
	}
	return reflect.DeepEqual(a, b)
}

func sameList[E any](a, b []E) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}
