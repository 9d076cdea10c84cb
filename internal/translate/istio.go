package translate

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"ambitmesh.dev/ambit/internal/mesh"
)

// The parts of security.istio.io/v1 that we write. Every list is left out when it is empty, and a rule that would be empty is never made: to Istio,
// `rules: [{}]` and `from: []` mean everybody, while no rules at all mean nobody.

const (
	istioGroup   = "security.istio.io"
	istioVersion = "v1"

	kindAuthorization  = "AuthorizationPolicy"
	kindAuthentication = "PeerAuthentication"
)

type istioObject struct {
	APIVersion string    `json:"apiVersion"`
	Kind       string    `json:"kind"`
	Metadata   istioMeta `json:"metadata"`
	Spec       any       `json:"spec"`
}

type istioMeta struct {
	Name        string            `json:"name"`
	Namespace   string            `json:"namespace,omitempty"`
	Labels      policyLabels      `json:"labels"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type authorizationSpec struct {
	Action     string       `json:"action"`
	Rules      []rule       `json:"rules,omitempty"` // none: nobody
	Selector   *podSelector `json:"selector,omitempty"`
	TargetRefs []targetRef  `json:"targetRefs,omitempty"`
}

type authenticationSpec struct {
	MTLS      *mtls           `json:"mtls,omitempty"`
	PortLevel map[string]mtls `json:"portLevelMtls,omitempty"`
	Selector  *podSelector    `json:"selector,omitempty"`
}

type mtls struct {
	Mode string `json:"mode"`
}

type podSelector struct {
	MatchLabels map[string]string `json:"matchLabels"`
}

type targetRef struct {
	Group string `json:"group"`
	Kind  string `json:"kind"`
	Name  string `json:"name"`
}

type rule struct {
	From []ruleFrom `json:"from,omitempty"`
	To   []ruleTo   `json:"to,omitempty"`
	When []ruleWhen `json:"when,omitempty"`
}

type ruleFrom struct {
	Source source `json:"source"`
}

type ruleTo struct {
	Operation operation `json:"operation"`
}

type ruleWhen struct {
	Key       string   `json:"key"`
	Values    []string `json:"values,omitempty"`
	NotValues []string `json:"notValues,omitempty"`
}

type source struct {
	IPBlocks             []string         `json:"ipBlocks,omitempty"`
	NotRequestPrincipals []string         `json:"notRequestPrincipals,omitempty"`
	Principals           []mesh.Principal `json:"principals,omitempty"`
	RemoteIPBlocks       []string         `json:"remoteIpBlocks,omitempty"`
	RequestPrincipals    []string         `json:"requestPrincipals,omitempty"`
}

type operation struct {
	Methods  []string `json:"methods,omitempty"`
	NotPorts []string `json:"notPorts,omitempty"`
	Paths    []string `json:"paths,omitempty"`
	Ports    []string `json:"ports,omitempty"`
}

// selectorKey is a text that is equal for equal selectors.
func selectorKey(labels map[string]string) string {
	if len(labels) == 0 {
		return "{}" // nil as well
	}
	raw, _ := json.Marshal(labels) //nolint:errchkjson // a map of strings; keys are sorted
	return string(raw)
}

// mayOverlap reports whether one Pod could have both sets of labels: unless they contradict each other on a key.
func mayOverlap(a, b map[string]string) bool {
	for k, v := range a {
		if w, ok := b[k]; ok && v != w {
			return false
		}
	}
	return true
}

func selectorOf(labels map[string]string) *podSelector {
	if len(labels) == 0 {
		return nil // every Pod of the namespace
	}
	return &podSelector{MatchLabels: labels}
}

// objectName is "<prefix>-<name>-<8 hex digits of key>", at most 63 characters.
func objectName(prefix, name, key string) string {
	sum := sha256.Sum256([]byte(key))
	tail := "-" + hex.EncodeToString(sum[:4])
	head := prefix + "-" + name
	if limit := 63 - len(tail); len(head) > limit {
		head = strings.TrimRight(head[:limit], "-.")
	}
	return head + tail
}

func covers(labels, want map[string]string) bool {
	for k, v := range want {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

func keys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
