package cli

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/translate"
)

// accessChange says who gains or loses access to one port of one Service.
type accessChange struct {
	Cluster   mesh.ClusterName `json:"cluster"`
	Namespace string           `json:"namespace"`
	Service   string           `json:"service"`
	Port      int32            `json:"port,omitempty"` // 0: every port alike
	// Gained and Lost are ServiceAccounts as NAMESPACE/NAME@CLUSTER, sorted. Allowed is how many of All may call it then.
	Gained  []string `json:"gained,omitempty"`
	Lost    []string `json:"lost,omitempty"`
	Allowed int      `json:"allowed"`
	All     int      `json:"all"`
	Text    string   `json:"text"`
}

// caller is a ServiceAccount of a cluster.
type caller struct {
	Cluster         mesh.ClusterName
	Namespace, Name string
}

func (c caller) String() string { return fmt.Sprintf("%s/%s@%s", c.Namespace, c.Name, c.Cluster) }

// callers are all ServiceAccounts that a snapshot knows, by cluster, namespace and name.
func callers(s *mesh.Snapshot) []caller {
	var out []caller
	for i := range s.Clusters {
		if s.Clusters[i].Inventory == nil {
			continue
		}
		for _, ns := range slices.Sorted(maps.Keys(s.Clusters[i].Inventory.Namespaces)) {
			for _, sa := range s.Clusters[i].Inventory.Namespaces[ns].ServiceAccounts {
				out = append(out, caller{s.Clusters[i].Name, ns, sa.Name})
			}
		}
	}
	return out
}

// places are the namespaces in which an object changes: nowhere else can access change, because Istio's policies reach no further.
func places(changes []clusterChange) map[mesh.ClusterName][]string {
	out := map[mesh.ClusterName][]string{}
	for _, c := range changes {
		for _, o := range c.Changes {
			_, name, _ := strings.Cut(o.Object, " ")
			if ns, _, ok := strings.Cut(name, "/"); ok && !slices.Contains(out[c.Cluster], ns) {
				out[c.Cluster] = append(out[c.Cluster], ns)
			}
		}
	}
	return out
}

// asker answers whether a caller may call a port of a Service.
type asker func(translate.Question) bool

// accessChanges asks about every caller and every Service where something changes, before and after.
func accessChanges(s *mesh.Snapshot, where map[mesh.ClusterName][]string, before, after asker) []accessChange {
	all := callers(s)
	var out []accessChange
	for _, c := range slices.Sorted(maps.Keys(where)) {
		cluster := s.Cluster(c)
		if cluster == nil || cluster.Inventory == nil {
			continue
		}
		for _, ns := range slices.Sorted(slices.Values(where[c])) {
			inventory := cluster.Inventory.Namespaces[ns]
			if inventory == nil {
				continue
			}
			for i := range inventory.Services {
				out = append(out, serviceChanges(c, &inventory.Services[i], all, before, after)...)
			}
		}
	}
	return out
}

// serviceChanges lists what changes for one Service: once, if all of its ports change alike, else by port.
func serviceChanges(c mesh.ClusterName, service *mesh.Service, all []caller, before, after asker) []accessChange {
	ports := []int32{}
	for _, p := range service.Ports {
		ports = append(ports, p.Number)
	}
	if len(ports) == 0 {
		ports = []int32{0}
	}
	var found []accessChange
	for _, port := range ports {
		a := accessChange{Cluster: c, Namespace: service.Namespace, Service: service.Name, Port: port, All: len(all)}
		for _, who := range all {
			q := translate.Question{
				FromCluster: who.Cluster, FromNamespace: who.Namespace, FromServiceAccount: who.Name,
				ToCluster: c, ToNamespace: service.Namespace, ToService: service.Name, Port: port,
			}
			was, is := before(q), after(q)
			switch {
			case is && !was:
				a.Gained = append(a.Gained, who.String())
			case was && !is:
				a.Lost = append(a.Lost, who.String())
			}
			if is {
				a.Allowed++
			}
		}
		found = append(found, a)
	}
	alike := func(a accessChange) bool {
		return slices.Equal(a.Gained, found[0].Gained) && slices.Equal(a.Lost, found[0].Lost) && a.Allowed == found[0].Allowed
	}
	if !slices.ContainsFunc(found, func(a accessChange) bool { return !alike(a) }) {
		found = found[:1]
		found[0].Port = 0
	}
	found = slices.DeleteFunc(found, func(a accessChange) bool { return len(a.Gained)+len(a.Lost) == 0 })
	for i := range found {
		found[i].Text = found[i].words()
	}
	return found
}

// words is the change in one sentence.
func (a *accessChange) words() string {
	what := fmt.Sprintf("%s/%s@%s", a.Namespace, a.Service, a.Cluster)
	if a.Port != 0 {
		what += " port " + strconv.Itoa(int(a.Port))
	}
	var parts []string
	if len(a.Gained) > 0 {
		parts = append(parts, "gain: "+some(a.Gained, 5))
	}
	if len(a.Lost) > 0 {
		parts = append(parts, "lose: "+some(a.Lost, 5))
	}
	then := fmt.Sprintf("then %d of %s may call it", a.Allowed, count(a.All, "ServiceAccount"))
	switch a.Allowed {
	case 0:
		then = "then nobody may call it"
	case a.All:
		then = "then every ServiceAccount may call it"
	}
	return what + ": " + strings.Join(append(parts, then), "; ")
}

// mostQuestions bounds the work of a diff in a large mesh.
const mostQuestions = 4_000_000

// questions is how many questions accessChanges would ask of each side.
func questions(s *mesh.Snapshot, where map[mesh.ClusterName][]string) int {
	ports := 0
	for c, namespaces := range where {
		cluster := s.Cluster(c)
		for _, ns := range namespaces {
			if cluster == nil || cluster.Inventory == nil || cluster.Inventory.Namespaces[ns] == nil {
				continue
			}
			for _, service := range cluster.Inventory.Namespaces[ns].Services {
				ports += max(1, len(service.Ports))
			}
		}
	}
	return ports * len(callers(s))
}

// access asks the server's own Explain who gains or loses access by these changes.
func (v *preview) access(changes []clusterChange) []accessChange {
	where := places(changes)
	if n := questions(v.SnapAfter, where); n > mostQuestions {
		v.Notes = append(v.Notes, fmt.Sprintf("who gains or loses access is not worked out: it would take %d questions; name clusters with --cluster", n))
		return []accessChange{}
	}
	ask := func(s *mesh.Snapshot, r translate.Result) asker {
		e := translate.NewExplainer(s, r)
		return func(q translate.Question) bool { return e.Ask(q).Allowed }
	}
	out := accessChanges(v.SnapAfter, where, ask(v.SnapBefore, v.Before), ask(v.SnapAfter, v.After))
	slices.SortStableFunc(out, func(a, b accessChange) int {
		return cmp.Compare(fmt.Sprint(a.Namespace, "/", a.Service), fmt.Sprint(b.Namespace, "/", b.Service))
	})
	return out
}
