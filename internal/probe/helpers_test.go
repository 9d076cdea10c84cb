package probe

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
)

// authority is a CA of a test.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func newAuthority(t testing.TB, name string, parent *authority) *authority {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{Organization: []string{"Ambit test"}, CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	a := &authority{key: newKey(t)}
	a.cert = issue(t, template, parent, a)
	return a
}

func newKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// issue signs template for the key of own; without a parent, own signs itself.
func issue(t testing.TB, template *x509.Certificate, parent, own *authority) *x509.Certificate {
	t.Helper()
	signer, by := own.key, template
	if parent != nil {
		signer, by = parent.key, parent.cert
	}
	der, err := x509.CreateCertificate(rand.Reader, template, by, own.key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// leaf is a server's or workload's certificate.
func (a *authority) leaf(t testing.TB, names ...string) *authority {
	t.Helper()
	l := &authority{key: newKey(t)}
	l.cert = issue(t, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour).Truncate(time.Second),
		DNSNames: names, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, KeyUsage: x509.KeyUsageDigitalSignature,
	}, a, l)
	return l
}

func pemOf(certs ...*x509.Certificate) string {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return string(out)
}

func pool(certs ...*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range certs {
		p.AddCert(c)
	}
	return p
}

func (a *authority) tls(chain ...*x509.Certificate) tls.Certificate {
	c := tls.Certificate{Certificate: [][]byte{a.cert.Raw}, PrivateKey: a.key}
	for _, i := range chain {
		c.Certificate = append(c.Certificate, i.Raw)
	}
	return c
}

// listen accepts TLS as a ztunnel does and counts what connects.
func listen(t testing.TB, cfg *tls.Config) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(10 * time.Second))
				_ = tls.Server(c, cfg).Handshake()
			}()
		}
	}()
	return l.Addr().String()
}

// caSchema is istio.v1.auth as ca.proto has it, for a server that knows nothing of our codec.
func caSchema(t testing.TB) protoreflect.FileDescriptor {
	t.Helper()
	field := func(name string, n int32, typ descriptorpb.FieldDescriptorProto_Type, label descriptorpb.FieldDescriptorProto_Label) *descriptorpb.FieldDescriptorProto {
		return &descriptorpb.FieldDescriptorProto{Name: &name, Number: &n, Type: &typ, Label: &label}
	}
	const optional, repeated = descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL, descriptorpb.FieldDescriptorProto_LABEL_REPEATED
	fd, err := protodesc.NewFile(&descriptorpb.FileDescriptorProto{
		Name: new("ca.proto"), Package: new("istio.v1.auth"), Syntax: new("proto3"),
		MessageType: []*descriptorpb.DescriptorProto{
			{Name: new("IstioCertificateRequest"), Field: []*descriptorpb.FieldDescriptorProto{
				field("csr", 1, descriptorpb.FieldDescriptorProto_TYPE_STRING, optional), field("validity_duration", 3, descriptorpb.FieldDescriptorProto_TYPE_INT64, optional),
			}},
			{Name: new("IstioCertificateResponse"), Field: []*descriptorpb.FieldDescriptorProto{field("cert_chain", 1, descriptorpb.FieldDescriptorProto_TYPE_STRING, repeated)}},
		},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// ca is an istiod's CA.
type ca struct {
	t        testing.TB
	schema   protoreflect.FileDescriptor
	serving  tls.Certificate
	signer   *authority
	elements []string // after the leaf
	token    string   // the one it takes
	asked    []string // tokens and clusters it was shown
	seconds  int64    // of the last request
}

func (c *ca) serve() string {
	c.t.Helper()
	c.schema = caSchema(c.t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		c.t.Fatal(err)
	}
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{c.serving}, ClientAuth: tls.VerifyClientCertIfGiven, MinVersion: tls.VersionTLS12})))
	s.RegisterService(&grpc.ServiceDesc{ServiceName: "istio.v1.auth.IstioCertificateService", HandlerType: (*any)(nil), Methods: []grpc.MethodDesc{{MethodName: "CreateCertificate", Handler: c.create}}}, c)
	go func() { _ = s.Serve(l) }()
	c.t.Cleanup(s.Stop)
	return l.Addr().String()
}

func (c *ca) create(_ any, ctx context.Context, //nolint:revive // as gRPC has it
	decode func(any) error, _ grpc.UnaryServerInterceptor,
) (any, error) {
	in := dynamicpb.NewMessage(c.schema.Messages().ByName("IstioCertificateRequest"))
	if err := decode(in); err != nil {
		return nil, err
	}
	md, _ := metadata.FromIncomingContext(ctx)
	c.asked = append(c.asked, md.Get("authorization")[0]+" "+md.Get("clusterid")[0])
	c.seconds = in.Get(in.Descriptor().Fields().ByName("validity_duration")).Int()
	if md.Get("authorization")[0] != "Bearer "+c.token {
		return nil, status.Error(codes.Unauthenticated, "request authenticate failure")
	}
	b, _ := pem.Decode([]byte(in.Get(in.Descriptor().Fields().ByName("csr")).String()))
	if b == nil {
		return nil, status.Error(codes.InvalidArgument, "no CSR")
	}
	csr, err := x509.ParseCertificateRequest(b.Bytes)
	if err != nil || csr.CheckSignature() != nil {
		return nil, status.Error(codes.InvalidArgument, "bad CSR")
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Duration(c.seconds) * time.Second), KeyUsage: x509.KeyUsageDigitalSignature,
	}, c.signer.cert, csr.PublicKey, c.signer.key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	out := dynamicpb.NewMessage(c.schema.Messages().ByName("IstioCertificateResponse"))
	chain := out.Mutable(out.Descriptor().Fields().ByName("cert_chain")).List()
	for _, e := range append([]string{pemOf(leaf)}, c.elements...) {
		chain.Append(protoreflect.ValueOfString(e))
	}
	return out, nil
}
