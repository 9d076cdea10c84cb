package probe

import (
	"errors"
	"fmt"

	"google.golang.org/grpc/encoding"
	"google.golang.org/protobuf/encoding/protowire"
)

// createCertificate is the one method of istiod's CA (istio.io/api security/v1alpha1/ca.proto). Its two messages are written by hand: they have three fields that we use, and
// the generated package would bring the whole of istio.io/api into every agent.
const createCertificate = "/istio.v1.auth.IstioCertificateService/CreateCertificate"

// certificateRequest is istio.v1.auth.IstioCertificateRequest.
type certificateRequest struct {
	csr     string // PEM; field 1
	seconds int64  // validity_duration; field 3
}

func (r certificateRequest) marshal() []byte {
	b := protowire.AppendTag(nil, 1, protowire.BytesType)
	b = protowire.AppendString(b, r.csr)
	b = protowire.AppendTag(b, 3, protowire.VarintType)
	return protowire.AppendVarint(b, uint64(r.seconds)) //nolint:gosec // never negative
}

// certificateResponse is istio.v1.auth.IstioCertificateResponse.
type certificateResponse struct {
	chain []string // PEM, the leaf first, the roots last; field 1
}

// maxElements bounds a chain: leaf, a few intermediates, roots.
const maxElements = 64

func (r *certificateResponse) unmarshal(b []byte) error {
	r.chain = nil
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return fmt.Errorf("istiod's answer: %w", protowire.ParseError(n))
		}
		b = b[n:]
		if num == 1 && typ == protowire.BytesType {
			s, n := protowire.ConsumeString(b)
			if n < 0 {
				return fmt.Errorf("istiod's answer: %w", protowire.ParseError(n))
			}
			if len(r.chain) == maxElements {
				return fmt.Errorf("istiod's answer has more than %d elements", maxElements)
			}
			r.chain, b = append(r.chain, s), b[n:]
			continue
		}
		if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
			return fmt.Errorf("istiod's answer: %w", protowire.ParseError(n))
		}
		b = b[n:]
	}
	return nil
}

// codec lets gRPC carry the messages that are written by hand.
type codec struct{}

var _ encoding.Codec = codec{}

// Name is that of protobuf: it is what is on the wire.
func (codec) Name() string { return "proto" }

// Marshal writes a request.
func (codec) Marshal(v any) ([]byte, error) {
	r, ok := v.(interface{ marshal() []byte })
	if !ok {
		return nil, fmt.Errorf("can't write a %T", v)
	}
	return r.marshal(), nil
}

// Unmarshal reads an answer.
func (codec) Unmarshal(b []byte, v any) error {
	r, ok := v.(interface{ unmarshal(b []byte) error })
	if !ok {
		return errors.New("can't read into anything but an answer")
	}
	return r.unmarshal(b)
}
