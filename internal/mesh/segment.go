package mesh

import (
	"strings"
	"time"

	networkingv2alpha1 "ambitmesh.dev/ambit/api/networking/v2alpha1"
)

// ItemSegments is the type and the name of one item each way: a SegmentOrder down, a SegmentState up.
const ItemSegments = "segments"

// Labels about global Services.
const (
	LabelGlobal     = "istio.io/global"        // "true": for upstream istiods, where serviceScopeConfigs honour it
	LabelScope      = "solo.io/service-scope"  // "global": for Solo's
	LabelStub       = "gloo.solo.io/join-stub" // "true": a Service without endpoints of its own, made so that a global name has an address in its cluster
	ScopeGlobal     = "global"
	LabelStubValue  = "true"
	SegmentFragment = "ambit-segments.override" // key in ConfigMap kube-system/coredns-custom
)

// Segment is a Segment as the management cluster has it.
type Segment struct {
	Source     Ref
	UID        string
	Generation int64
	Created    time.Time
	Spec       networkingv2alpha1.SegmentSpec
	Invalid    string
}

// SegmentOrder is what a cluster is to have for all Segments together. It says the whole of itself.
type SegmentOrder struct {
	// Complete: what an earlier order listed and this one does not is to be taken back.
	Complete bool             `json:"complete,omitempty"`
	Services []SegmentService `json:"services,omitempty"` // sorted by namespace and name
	Hosts    []SegmentHost    `json:"hosts,omitempty"`    // sorted by host
}

// SegmentService is a Service that is to be global.
type SegmentService struct {
	Namespace string            `json:"namespace"`
	Name      string            `json:"name"`
	Labels    map[string]string `json:"labels"` // that it is to carry, beside its own
	// Ports of the stub to be made where there is no such Service; empty: there is one.
	Ports []ServicePort `json:"ports,omitempty"`
}

// Key is "namespace/name".
func (s SegmentService) Key() string { return s.Namespace + "/" + s.Name }

// SegmentHost is a name that is to be answered with the address of a Service.
type SegmentHost struct {
	Host    string `json:"host"`
	Service string `json:"service"` // namespace/name
	Target  string `json:"target"`  // the Service's own name in DNS
}

// SegmentState is what a cluster has of its SegmentOrder.
type SegmentState struct {
	Order    Fingerprint                    `json:"order"` // that it speaks of
	Services map[string]SegmentServiceState `json:"services,omitempty"`
	Hosts    map[string]SegmentHostState    `json:"hosts,omitempty"`
	// Problem says why istiod can't be asked; empty: it was.
	Problem string `json:"problem,omitempty"`
}

// SegmentServiceState is one Service, by "namespace/name".
type SegmentServiceState struct {
	Labelled bool   `json:"labelled,omitempty"`
	Stub     bool   `json:"stub,omitempty"`
	Error    string `json:"error,omitempty"` // why it is not labelled
	// VIP, Local and Remote are as istiod serves them to ztunnels: its address, its endpoints of the own network, and other networks that have some.
	VIP    string `json:"vip,omitempty"`
	Local  int32  `json:"local,omitempty"`
	Remote int32  `json:"remote,omitempty"`
}

// SegmentHostState is one host: what a lookup from a Pod of that cluster answers.
type SegmentHostState struct {
	Address string `json:"address,omitempty"`
	Error   string `json:"error,omitempty"`
}

// StubService says whether a Service is a stub of ours: one that has got a selector is a person's by now.
func (s Service) StubService() bool {
	return s.Labels[LabelStub] == LabelStubValue && len(s.Selector) == 0
}

// SoloIstio says whether an istiod of that version is Solo's build.
func SoloIstio(version string) bool { return strings.Contains(version, "solo") }
