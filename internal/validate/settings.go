package validate

import (
	"fmt"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	securityv2 "ambitmesh.dev/ambit/api/security/v2"
)

// WorkspaceSettings checks new or changed settings; old is nil for new ones.
func WorkspaceSettings(now, _ *adminv2.WorkspaceSettings, o Options) field.ErrorList {
	r, spec := &rules{}, field.NewPath("spec")
	if now.Name == adminv2.GlobalSettings && now.Namespace != o.AdminNamespace {
		r.invalid(field.NewPath("metadata", "name"), now.Name, "the settings of all workspaces have this name, in namespace %q: create them there, or give the settings of one workspace another name", o.AdminNamespace)
	}
	for i := range now.Spec.ImportFrom {
		r.sharing(spec.Child("importFrom").Index(i), &now.Spec.ImportFrom[i])
	}
	for i := range now.Spec.ExportTo {
		r.sharing(spec.Child("exportTo").Index(i), &now.Spec.ExportTo[i])
	}
	if now.Spec.Options != nil {
		r.options(spec.Child("options"), now.Spec.Options)
	}
	return r.errs
}

func (r *rules) sharing(path *field.Path, s *adminv2.Sharing) {
	if len(s.Workspaces) == 0 {
		r.required(path.Child("workspaces"), "which? write workspaces: [{name: ...}], or [{name: '*'}] for every one")
	}
	for i := range s.Workspaces {
		w, path := &s.Workspaces[i], path.Child("workspaces").Index(i)
		if w.Name == "" && len(w.Selector) == 0 {
			r.required(path, "which workspace? write name or selector; name: '*' is every one")
		}
		r.glob(path.Child("name"), w.Name, "workspace")
		r.labels(path.Child("selector"), w.Selector, "write name: '*' for every workspace")
	}
	for i := range s.Resources {
		res, path := &s.Resources[i], path.Child("resources").Index(i)
		if res.Kind != "" {
			r.enum(path.Child("kind"), string(res.Kind), sharedKinds()...)
		}
		r.objectSelector(path, &securityv2.ObjectSelector{Labels: res.Labels, Name: res.Name, Namespace: res.Namespace, Cluster: res.Cluster},
			noun{"resource", "leave it out for every one", validation.IsDNS1123Subdomain})
	}
}

// sharedKinds begins with the two that Ambit shares.
func sharedKinds() []string {
	return []string{
		string(adminv2.ResourceAll), string(adminv2.ResourceService), "ROUTE_TABLE", "VIRTUAL_DESTINATION", "EXTERNAL_SERVICE", "API_DOC",
		"GRAPHQL_RESOLVER_MAP", "GRAPHQL_SCHEMA", "GRAPHQL_STITCHED_SCHEMA", "EXTERNAL_WORKLOAD", "CLOUD_PROVIDER",
	}
}

func (r *rules) options(path *field.Path, o *adminv2.WorkspaceOptions) {
	if f := o.Federation; f != nil {
		path := path.Child("federation")
		r.errs = append(r.errs, clusterDomain(path.Child("hostSuffix"), f.HostSuffix)...)
		for i := range f.ServiceSelector {
			s := securityv2.ObjectSelector(f.ServiceSelector[i])
			r.objectSelector(path.Child("serviceSelector").Index(i), &s, serviceNoun())
		}
		for i, p := range f.Ports {
			r.port(path.Child("ports").Index(i), p.Number, p.Name)
		}
	}
	for i := range o.EastWestGateways {
		r.gateway(path.Child("eastWestGateways").Index(i), &o.EastWestGateways[i])
	}
	if m := o.VirtualDestClientMode; m != nil {
		set := 0
		for _, is := range []bool{m.Auto != nil, m.SniRouting != nil, m.TLSTermination != nil} {
			if is {
				set++
			}
		}
		if set > 1 {
			r.invalid(path.Child("virtualDestClientMode"), field.OmitValueType{}, "write one of auto, sniRouting, tlsTermination, not several")
		}
	}
}

func (r *rules) gateway(path *field.Path, g *adminv2.EastWestGatewaySelector) {
	if g.Selector != nil {
		s := securityv2.ObjectSelector(*g.Selector)
		r.objectSelector(path.Child("selector"), &s, serviceNoun())
	}
	if g.Port != nil {
		r.port(path.Child("port"), g.Port.Number, g.Port.Name)
	}
	if g.TLSTerminationPort != nil {
		r.port(path.Child("tlsTerminationPort"), g.TLSTerminationPort.Number, g.TLSTerminationPort.Name)
	}
	for i, h := range g.HostInfoOverrides {
		path := path.Child("hostInfoOverrides").Index(i)
		if h.Addr == "" {
			r.required(path.Child("addr"), "write the address of the gateway, an IP address or a host name")
		}
		if h.Port > 65535 {
			r.invalid(path.Child("port"), h.Port, "ports are 1 to 65535")
		}
		if h.PortType != "" {
			r.enum(path.Child("portType"), h.PortType, "SNI_PASSTHROUGH", "TLS_TERMINATION")
		}
	}
}

// WarningsOfWorkspaceSettings says what is allowed but has no effect, or is probably not meant.
func WarningsOfWorkspaceSettings(now *adminv2.WorkspaceSettings, _ Options) []string {
	w := &warnings{}
	w.sharing("spec.importFrom", now.Spec.ImportFrom)
	w.sharing("spec.exportTo", now.Spec.ExportTo)
	o := now.Spec.Options
	if o == nil {
		return *w
	}
	const sidecars = "no effect: it is of sidecars, and the ambient data plane has none"
	if s := o.ServiceIsolation; s != nil {
		if s.TrimProxyConfig != nil && *s.TrimProxyConfig {
			w.say("spec.options.serviceIsolation.trimProxyConfig", sidecars)
		}
		if l := s.EnforcementLayers; l != nil {
			if l.CNI != nil && *l.CNI {
				w.say("spec.options.serviceIsolation.enforcementLayers.cni", "not supported: no NetworkPolicy is made")
			}
			if l.Mesh != nil && !*l.Mesh && s.Enabled {
				w.say("spec.options.serviceIsolation.enforcementLayers.mesh", "the mesh is left out: isolation is not enforced anywhere")
			}
		}
	}
	if o.TrimAllProxyConfig != nil && *o.TrimAllProxyConfig {
		w.say("spec.options.trimAllProxyConfig", sidecars)
	}
	if o.Federation != nil && o.Federation.Enabled {
		w.say("spec.options.federation", "not supported: it makes no Service global")
	}
	if o.VirtualDestClientMode != nil {
		w.say("spec.options.virtualDestClientMode", sidecars)
	}
	return *w
}

func (w *warnings) sharing(path string, list []adminv2.Sharing) {
	for i := range list {
		for j, res := range list[i].Resources {
			if k := res.Kind; k != "" && k != adminv2.ResourceAll && k != adminv2.ResourceService {
				w.say(fmt.Sprintf("%s[%d].resources[%d].kind", path, i, j), "no effect: only Services are shared, not resources of kind %s", k)
			}
		}
	}
}
