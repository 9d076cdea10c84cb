package traces

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"time"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"ambitmesh.dev/ambit/internal/mesh"
)

// ErrNoIDs is the error of Decode when spans lack a valid trace or span ID; the others are returned beside it.
var ErrNoIDs = errors.New("spans without valid IDs")

// Decode reads an OTLP ExportTraceServiceRequest (protobuf), which on the wire is the same as TracesData. Every span gets cluster: what the bytes say of a
// cluster is an attribute like any other. Values are cut to MaxValue, attributes to MaxAttributes. Malformed bytes are an error; spans without IDs are left
// out and counted in an error that wraps ErrNoIDs.
func Decode(data []byte, cluster mesh.ClusterName) ([]Span, error) {
	var in tracepb.TracesData
	if err := proto.Unmarshal(data, &in); err != nil {
		return nil, fmt.Errorf("cluster %q: OTLP: %w", cluster, err)
	}
	var out []Span
	bad := 0
	for _, rs := range in.GetResourceSpans() {
		var res resource
		res.read(rs.GetResource().GetAttributes())
		for _, ss := range rs.GetScopeSpans() {
			for _, s := range ss.GetSpans() {
				span, ok := res.span(s)
				if !ok {
					bad++
					continue
				}
				span.Cluster = cluster
				out = append(out, span)
			}
		}
	}
	if bad > 0 {
		return out, fmt.Errorf("cluster %q: %d %w", cluster, bad, ErrNoIDs)
	}
	return out, nil
}

// resource is what all spans of a process share.
type resource struct {
	service, namespace string
	attributes         []Attribute
	cut                int
}

func (r *resource) read(in []*commonpb.KeyValue) {
	for _, kv := range in {
		v := text(kv.GetValue())
		switch kv.GetKey() {
		case "service.name":
			r.service = v
		case "k8s.namespace.name":
			r.namespace = v
		case "service.namespace":
			if r.namespace == "" {
				r.namespace = v
			}
		default:
			if len(r.attributes) < MaxAttributes/2 {
				r.attributes = append(r.attributes, Attribute{"resource." + cutTo(kv.GetKey(), 128), v})
			} else {
				r.cut++
			}
		}
	}
	if r.service == "" {
		r.service = "unknown"
	}
}

func (r *resource) span(s *tracepb.Span) (out Span, ok bool) {
	if len(s.GetTraceId()) != 16 || len(s.GetSpanId()) != 8 {
		return out, false
	}
	out = Span{
		Service: r.service, Namespace: r.namespace, Name: cutTo(s.GetName(), MaxValue), Kind: kindOf(s.GetKind()), Cut: r.cut + int(s.GetDroppedAttributesCount()),
		Start: unixNano(s.GetStartTimeUnixNano()), Error: s.GetStatus().GetCode() == tracepb.Status_STATUS_CODE_ERROR, Status: cutTo(s.GetStatus().GetMessage(), MaxValue),
	}
	copy(out.Trace[:], s.GetTraceId())
	copy(out.ID[:], s.GetSpanId())
	if len(s.GetParentSpanId()) == 8 {
		copy(out.Parent[:], s.GetParentSpanId())
	}
	if out.Trace == (TraceID{}) || out.ID == (SpanID{}) || out.Parent == out.ID {
		return out, false
	}
	if end := unixNano(s.GetEndTimeUnixNano()); end.After(out.Start) {
		out.Duration = end.Sub(out.Start)
	}
	out.Attributes = append(out.Attributes, r.attributes...)
	for _, kv := range s.GetAttributes() {
		if len(out.Attributes) >= MaxAttributes {
			out.Cut++
			continue
		}
		out.Attributes = append(out.Attributes, Attribute{cutTo(kv.GetKey(), 128), text(kv.GetValue())})
	}
	for _, e := range s.GetEvents() {
		if len(out.Events) >= MaxAttributes {
			out.Cut++
			continue
		}
		ev := Event{At: unixNano(e.GetTimeUnixNano()), Name: cutTo(e.GetName(), MaxValue)}
		for _, kv := range e.GetAttributes() {
			if len(ev.Attributes) < 16 {
				ev.Attributes = append(ev.Attributes, Attribute{cutTo(kv.GetKey(), 128), text(kv.GetValue())})
			}
		}
		out.Events = append(out.Events, ev)
	}
	return out, true
}

// unixNano bounds what a remote clock may say to what a time.Duration can hold.
func unixNano(n uint64) time.Time {
	const limit = 1 << 62
	return time.Unix(0, int64(min(n, limit))).UTC()
}

func kindOf(k tracepb.Span_SpanKind) Kind {
	switch k {
	case tracepb.Span_SPAN_KIND_SERVER:
		return Server
	case tracepb.Span_SPAN_KIND_CLIENT:
		return Client
	case tracepb.Span_SPAN_KIND_PRODUCER:
		return Producer
	case tracepb.Span_SPAN_KIND_CONSUMER:
		return Consumer
	default:
		return Internal
	}
}

// text writes a value as a person reads it; nested ones are only named.
func text(v *commonpb.AnyValue) string {
	switch x := v.GetValue().(type) {
	case *commonpb.AnyValue_StringValue:
		return cutTo(x.StringValue, MaxValue)
	case *commonpb.AnyValue_BoolValue:
		return strconv.FormatBool(x.BoolValue)
	case *commonpb.AnyValue_IntValue:
		return strconv.FormatInt(x.IntValue, 10)
	case *commonpb.AnyValue_DoubleValue:
		return strconv.FormatFloat(x.DoubleValue, 'g', -1, 64)
	case *commonpb.AnyValue_BytesValue:
		return cutTo(base64.StdEncoding.EncodeToString(x.BytesValue), MaxValue)
	case *commonpb.AnyValue_ArrayValue:
		out := ""
		for i, e := range x.ArrayValue.GetValues() {
			if i > 0 {
				out += ", "
			}
			if len(out) > MaxValue {
				break
			}
			if _, nested := e.GetValue().(*commonpb.AnyValue_ArrayValue); nested {
				out += "[...]"
				continue
			}
			out += text(e)
		}
		return cutTo(out, MaxValue)
	case *commonpb.AnyValue_KvlistValue:
		return "{...}"
	default:
		return ""
	}
}

// cutTo cuts s to n bytes, at the end of a character.
func cutTo(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && s[n]&0xC0 == 0x80 {
		n--
	}
	return s[:n]
}
