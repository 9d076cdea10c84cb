package validate

import (
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	networkingv2alpha1 "ambitmesh.dev/ambit/api/networking/v2alpha1"
)

// Segment checks a new or changed Segment; old is not needed.
func Segment(now, _ *networkingv2alpha1.Segment, _ Options) field.ErrorList {
	r, spec := &rules{}, field.NewPath("spec")
	seen := map[string]bool{}
	for i, h := range now.Spec.Hosts {
		path := spec.Child("hosts").Index(i)
		r.segmentHost(path, h, now.Spec.Selector)
		if seen[h] {
			r.errs = append(r.errs, field.Duplicate(path, h))
		}
		seen[h] = true
	}
	sel := now.Spec.Selector
	path := spec.Child("selector")
	if sel.Namespace == "" && len(sel.Labels) == 0 {
		r.required(path, "which Services? write namespace, labels or both: an empty selector would make every Service of the mesh global")
	}
	r.name(path.Child("namespace"), sel.Namespace, namespaceNoun())
	r.labels(path.Child("labels"), sel.Labels, "leave labels out for every Service of the namespace")
	r.segmentPorts(spec.Child("ports"), now.Spec.Ports)
	return r.errs
}

// segmentHost checks a name that callers dial.
func (r *rules) segmentHost(path *field.Path, h string, sel networkingv2alpha1.SegmentSelector) {
	switch {
	case h == "":
		r.required(path, "write the name that callers dial, such as %q, or leave hosts out", exampleHost(sel))
	case strings.Contains(h, "://"):
		r.invalid(path, h, "want a DNS name such as %q, not a URL", exampleHost(sel))
	case strings.Contains(h, "*"):
		r.invalid(path, h, "no wildcards: callers dial one name, such as %q", exampleHost(sel))
	case strings.Contains(h, ":"):
		r.invalid(path, h, "leave the port out: ports has it")
	case strings.Contains(h, "/"):
		r.invalid(path, h, "want a DNS name such as %q, without a path or namespace before it", exampleHost(sel))
	case !strings.Contains(h, "."):
		r.invalid(path, h, "want a whole DNS name, such as %q: a name without dots means another Service in every namespace", exampleHost(sel))
	case strings.HasSuffix(h, ".svc") || strings.Contains(h, ".svc."):
		r.invalid(path, h, "this is the name of a Service itself, which it has already: leave it out, or choose a name outside the cluster's domain, such as %q", exampleHost(sel))
	default:
		r.errs = append(r.errs, clusterDomain(path, h)...)
	}
}

// exampleHost is a name in the domain that the product uses.
func exampleHost(sel networkingv2alpha1.SegmentSelector) string {
	ns := sel.Namespace
	if len(validation.IsDNS1123Label(ns)) > 0 {
		ns = "bookinfo"
	}
	return "productpage." + ns + ".mesh.internal"
}

func (r *rules) segmentPorts(path *field.Path, ports []networkingv2alpha1.SegmentPort) {
	seen := map[uint32]bool{}
	for i, p := range ports {
		at := path.Index(i)
		switch {
		case p.Number == 0:
			r.required(at.Child("number"), "write the Service's port, 1 to 65535")
		case p.Number > 65535:
			r.invalid(at.Child("number"), p.Number, "want 1 to 65535")
		case seen[p.Number]:
			r.errs = append(r.errs, field.Duplicate(at.Child("number"), p.Number))
		}
		seen[p.Number] = true
		switch strings.ToUpper(p.Protocol) {
		case "", "HTTP", "HTTP2", "HTTPS", "GRPC", "GRPC-WEB", "TCP", "TLS", "MONGO":
		case "UDP":
			r.invalid(at.Child("protocol"), p.Protocol, "ambient carries TCP only")
		default:
			r.invalid(at.Child("protocol"), p.Protocol, "want HTTP, HTTP2, HTTPS, GRPC, GRPC-WEB, TCP, TLS or MONGO")
		}
	}
}

// WarningsOfSegment says what is allowed but probably more than is meant.
func WarningsOfSegment(now *networkingv2alpha1.Segment, _ Options) []string {
	w, sel := &warnings{}, now.Spec.Selector
	switch {
	case sel.Namespace == "":
		w.say("spec.selector", "no namespace is given: Services with these labels become global in every namespace of every cluster")
	case len(sel.Labels) == 0:
		w.say("spec.selector", "no labels are given: every Service of namespace %q becomes global", sel.Namespace)
	}
	for i, h := range now.Spec.Hosts {
		if strings.HasSuffix(h, ".local") && !strings.HasSuffix(h, ".cluster.local") {
			w.say(fmt.Sprintf("spec.hosts[%d]", i), "%q is in .local, which some resolvers ask by multicast (RFC 6762 3) and not from DNS", h)
		}
	}
	return *w
}
