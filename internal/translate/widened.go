package translate

import (
	"encoding/json"
	"fmt"
	"slices"

	securityv2 "ambitmesh.dev/ambit/api/security/v2"
	"ambitmesh.dev/ambit/internal/mesh"
)

// foreignSpec is the part of an Istio policy that we look at, whoever wrote it.
type foreignSpec struct {
	Selector   *podSelector      `json:"selector"`
	TargetRef  *targetRef        `json:"targetRef"`
	TargetRefs []targetRef       `json:"targetRefs"`
	Action     string            `json:"action"`
	Rules      []json.RawMessage `json:"rules"`
	MTLS       *mtls             `json:"mtls"`
	PortLevel  map[string]mtls   `json:"portLevelMtls"`
}

func (f *foreignSpec) labels() map[string]string {
	if f.Selector == nil {
		return nil
	}
	return f.Selector.MatchLabels
}

// rootNamespace is the namespace whose Istio policies hold in every namespace.
func rootNamespace(c *mesh.Cluster) string {
	for _, ns := range []string{c.Inventory.Info.RootNamespace, c.Inventory.Info.IstioNamespace} {
		if ns != "" {
			return ns
		}
	}
	return "istio-system"
}

// rootPolicies are the foreign policies of the root namespace.
func rootPolicies(c *mesh.Cluster, ns string) []mesh.ForeignPolicy {
	root := rootNamespace(c)
	if n := c.Inventory.Namespaces[root]; n != nil && root != ns {
		return n.Foreign
	}
	return nil
}

// widened says what else here allows more than p does: Istio's ALLOWs add up.
func (at *placeWork) widened(p *part) []string {
	var out []string
	for _, list := range [][]mesh.ForeignPolicy{at.n.Foreign, at.root} {
		for i := range list {
			if why := widens(&list[i], p); why != "" {
				out = append(out, fmt.Sprintf("%s %s/%s %s", list[i].Kind, list[i].Namespace, list[i].Name, why))
			}
		}
	}
	return out
}

// widens says how a foreign policy allows more than p; empty: it does not.
func widens(f *mesh.ForeignPolicy, p *part) string {
	if f.DryRun {
		return ""
	}
	var spec foreignSpec
	if err := json.Unmarshal(f.Spec, &spec); err != nil {
		return "can't be read, so it may allow anything"
	}
	if f.Kind == kindAuthentication {
		return loosens(&spec, p)
	}
	if !p.authz || spec.Action != "" && spec.Action != "ALLOW" || len(spec.Rules) == 0 {
		return ""
	}
	refs := spec.TargetRefs
	if spec.TargetRef != nil {
		refs = append(refs, *spec.TargetRef)
	}
	if len(refs) > 0 {
		if p.waypoint == nil || !slices.ContainsFunc(refs, func(r targetRef) bool {
			return r.Kind == "Gateway" && r.Name == p.waypoint.Name || r.Kind == "GatewayClass" || slices.ContainsFunc(p.services, func(s service) bool { return r.Kind == "Service" && r.Name == s.name })
		}) {
			return ""
		}
	} else if !mayOverlap(spec.labels(), p.labels) {
		return ""
	}
	if string(spec.Rules[0]) == "{}" {
		return "allows everybody"
	}
	var r struct {
		From []struct {
			Source struct {
				Principals []string `json:"principals"`
			} `json:"source"`
		} `json:"from"`
	}
	if json.Unmarshal(spec.Rules[0], &r) == nil && len(r.From) == 0 {
		return "allows everybody, on some ports or conditions"
	}
	if len(r.From) > 0 && len(r.From[0].Source.Principals) > 0 {
		return fmt.Sprintf("allows %s", few(r.From[0].Source.Principals))
	}
	return "allows others"
}

func few(l []string) string {
	if len(l) > 3 {
		return fmt.Sprintf("%v and %d more", l[:3], len(l)-3)
	}
	return fmt.Sprint(l)
}

// loosens says how a PeerAuthentication takes back what p asks for.
func loosens(spec *foreignSpec, p *part) string {
	if p.mode != securityv2.TLSStrict || !mayOverlap(spec.labels(), p.labels) || len(spec.labels()) == 0 { // ours has a selector and counts before one for the namespace
		return ""
	}
	if spec.MTLS != nil && (spec.MTLS.Mode == "PERMISSIVE" || spec.MTLS.Mode == "DISABLE") {
		return "takes plain text (" + spec.MTLS.Mode + ")"
	}
	for _, port := range keys(spec.PortLevel) {
		if m := spec.PortLevel[port].Mode; m == "PERMISSIVE" || m == "DISABLE" {
			return "takes plain text on port " + port + " (" + m + ")"
		}
	}
	return ""
}
