package cli

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
)

// questionOptions are the arguments of a question to `policy explain`.
type questionOptions struct {
	from, to     string
	port         int32
	method, path string
	snapshot     string
}

// answerReport is the document of a question.
type answerReport struct {
	From    string   `json:"from"`
	To      string   `json:"to"`
	Port    int32    `json:"port,omitempty"`
	Method  string   `json:"method,omitempty"`
	Path    string   `json:"path,omitempty"`
	Allowed bool     `json:"allowed"`
	Decided []string `json:"decided,omitempty"`
	Caveats []string `json:"caveats,omitempty"`
	TakenAt string   `json:"takenAt"`
}

// party is one end of a call: a ServiceAccount or a Service.
type party struct {
	Namespace, Name string
	Cluster         mesh.ClusterName
}

func (p party) String() string { return fmt.Sprintf("%s/%s@%s", p.Namespace, p.Name, p.Cluster) }

// parseParty reads NAMESPACE/NAME@CLUSTER; the cluster may be left out.
func parseParty(arg, what string) (party, error) {
	name, cluster, at := strings.Cut(arg, "@")
	ns, name, slash := strings.Cut(name, "/")
	if !slash || ns == "" || name == "" || strings.Contains(name, "/") || at && cluster == "" {
		return party{}, usageError("%s %q: want NAMESPACE/NAME@CLUSTER, such as billing/billing@cluster-2", what, arg)
	}
	return party{ns, name, mesh.ClusterName(cluster)}, nil
}

// finder says which names of a kind a namespace of a cluster has.
type finder func(*mesh.NamespaceInventory) []string

func serviceNames(ns *mesh.NamespaceInventory) []string {
	var out []string
	for i := range ns.Services {
		out = append(out, ns.Services[i].Name)
	}
	return out
}

func accountNames(ns *mesh.NamespaceInventory) []string {
	var out []string
	for i := range ns.ServiceAccounts {
		out = append(out, ns.ServiceAccounts[i].Name)
	}
	return out
}

// locate completes a party's cluster, if only one has it, and refuses one that no cluster has, with the near names.
func (p party) locate(s *mesh.Snapshot, what string, names finder) (party, error) {
	if p.Cluster != "" {
		if err := known(what+" of cluster", []string{string(p.Cluster)}, clustersOf(s)); err != nil {
			return p, err
		}
	}
	var has, all, unknown []string
	for i := range s.Clusters {
		c := &s.Clusters[i]
		if p.Cluster != "" && c.Name != p.Cluster {
			continue
		}
		if c.Inventory == nil {
			unknown = append(unknown, string(c.Name))
			continue
		}
		for _, ns := range slices.Sorted(maps.Keys(c.Inventory.Namespaces)) {
			for _, n := range names(c.Inventory.Namespaces[ns]) {
				all = append(all, ns+"/"+n)
				if ns == p.Namespace && n == p.Name {
					has = append(has, string(c.Name))
				}
			}
		}
	}
	typed := p.Namespace + "/" + p.Name
	switch {
	case len(has) == 1:
		p.Cluster = mesh.ClusterName(has[0])
		return p, nil
	case len(has) > 1:
		return p, usageError("%s %s is in the clusters %s: which one? Write %s@%s", what, typed, some(has, 8), typed, has[0])
	}
	where := "no cluster"
	if p.Cluster != "" {
		where = "cluster " + string(p.Cluster)
	}
	hint := ""
	if near := nearest(typed, all); near != "" {
		hint = fmt.Sprintf("; did you mean %s?", near)
	}
	if len(unknown) > 0 {
		hint += fmt.Sprintf(" (not reported yet: %s)", some(unknown, 8))
	}
	if where == "no cluster" {
		return p, usageError("no cluster reports a %s %s%s", what, typed, hint)
	}
	return p, usageError("%s reports no %s %s%s", where, what, typed, hint)
}

// ask makes the question out of the arguments.
func (o *questionOptions) ask(s *mesh.Snapshot) (from, to party, err error) {
	if from, err = parseParty(o.from, "ServiceAccount"); err != nil {
		return from, to, err
	}
	if to, err = parseParty(o.to, "Service"); err != nil {
		return from, to, err
	}
	if to, err = to.locate(s, "Service", serviceNames); err != nil {
		return from, to, err
	}
	if from, err = from.locate(s, "ServiceAccount", accountNames); err != nil {
		return from, to, err
	}
	return from, to, o.checkPort(s, to)
}

// checkPort refuses a port that the Service does not have.
func (o *questionOptions) checkPort(s *mesh.Snapshot, to party) error {
	if o.port == 0 {
		return nil
	}
	var has []string
	for _, service := range s.Cluster(to.Cluster).Inventory.Namespaces[to.Namespace].Services {
		if service.Name != to.Name {
			continue
		}
		for _, p := range service.Ports {
			if p.Number == o.port {
				return nil
			}
			has = append(has, strings.TrimSpace(fmt.Sprintf("%d %s", p.Number, p.Name)))
		}
	}
	return usageError("--port %d: Service %s has no such port (it has: %s)", o.port, to, none(strings.Join(has, ", ")))
}

func (r *answerReport) print(w io.Writer) {
	verdict := "DENIED"
	if r.Allowed {
		verdict = "ALLOWED"
	}
	fmt.Fprintf(w, "%s: %s -> %s", verdict, r.From, r.To)
	if r.Port != 0 {
		fmt.Fprintf(w, " port %d", r.Port)
	}
	if r.Method != "" || r.Path != "" {
		fmt.Fprintf(w, " %s", strings.TrimSpace(r.Method+" "+r.Path))
	}
	fmt.Fprintln(w)
	printField(w, "decided by", r.Decided...)
	printField(w, "but", r.Caveats...)
}

// age says how old an answer's facts are, if they are old.
func age(taken, now time.Time) string {
	if d := now.Sub(taken); d > 10*time.Minute {
		return fmt.Sprintf("the snapshot is %s old", short(d))
	}
	return ""
}
