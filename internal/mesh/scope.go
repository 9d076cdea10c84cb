package mesh

import "slices"

// ScopeConfigs is the part of Istio's MeshConfig that says which Services are global.
type ScopeConfigs struct {
	ServiceScopeConfigs []ServiceScope `json:"serviceScopeConfigs"`
}

// ServiceScope is one rule: Services with those labels, in namespaces with those.
type ServiceScope struct {
	Scope             string        `json:"scope"`
	ServicesSelector  ScopeSelector `json:"servicesSelector"`
	NamespaceSelector ScopeSelector `json:"namespaceSelector"`
}

// ScopeSelector is a label selector as MeshConfig has it.
type ScopeSelector struct {
	MatchLabels      map[string]string `json:"matchLabels"`
	MatchExpressions []struct {
		Key, Operator string
		Values        []string
	} `json:"matchExpressions"`
}

// Matches reports whether those labels are selected; an operator that is not known matches nothing.
func (s *ScopeSelector) Matches(labels map[string]string) bool {
	for k, v := range s.MatchLabels {
		if labels[k] != v {
			return false
		}
	}
	for _, e := range s.MatchExpressions {
		value, has := labels[e.Key]
		ok := false
		switch e.Operator {
		case "In":
			ok = has && slices.Contains(e.Values, value)
		case "NotIn":
			ok = !has || !slices.Contains(e.Values, value)
		case "Exists":
			ok = has
		case "DoesNotExist":
			ok = !has
		}
		if !ok {
			return false
		}
	}
	return true
}

// Honours reports whether istiod makes a Service with those labels global (istio: pilot/pkg/serviceregistry/ambient, matchServiceScope).
func (m *ScopeConfigs) Honours(service, namespace map[string]string) bool {
	return slices.ContainsFunc(m.ServiceScopeConfigs, func(s ServiceScope) bool {
		return s.Scope == "GLOBAL" && s.ServicesSelector.Matches(service) && s.NamespaceSelector.Matches(namespace)
	})
}
