package authority_test

import (
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/acmpca"
	"github.com/aws/aws-sdk-go-v2/service/acmpca/types"

	"ambitmesh.dev/ambit/internal/authority"
	"ambitmesh.dev/ambit/internal/pki"
)

// motoDir is a Python environment with moto and botocore (hack/moto.sh).
func motoDir(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("AMBIT_TEST_MOTO")
	if dir == "" {
		t.Skip("AMBIT_TEST_MOTO is not set: `make unit` sets it where Python and a package index are at hand; by hand: AMBIT_TEST_MOTO=$(hack/moto.sh)")
	}
	return dir
}

// startMoto runs moto until the test ends, and returns its URL.
func startMoto(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	host, port, _ := strings.Cut(address, ":")
	cmd := exec.Command(filepath.Join(motoDir(t), "bin/python"), "-m", "moto.server", "-H", host, "-p", port)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
		c, err := net.Dial("tcp", address)
		if err == nil {
			c.Close()
			return "http://" + address
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// An emulator that others wrote understands what the driver says, and the driver what it answers. moto knows no template for subordinate CAs: with ours it makes leaves, which is
// refused; with the one for roots it makes CAs, without an authority key identifier, which is refused too. So this proves calls, credentials, states and roots; that a good answer is
// taken, TestAWSSigns does.
func TestAWSAgainstMoto(t *testing.T) {
	url := startMoto(t)
	const template = "arn:aws:acm-pca:::template/RootCACertificate/V1"
	c := acmpca.New(acmpca.Options{Region: "eu-west-1", BaseEndpoint: &url, Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
		return aws.Credentials{AccessKeyID: "AKIDTEST", SecretAccessKey: "secret"}, nil
	})})
	ctx := t.Context()
	made, err := c.CreateCertificateAuthority(ctx, &acmpca.CreateCertificateAuthorityInput{
		CertificateAuthorityType: types.CertificateAuthorityTypeRoot,
		CertificateAuthorityConfiguration: &types.CertificateAuthorityConfiguration{
			KeyAlgorithm: types.KeyAlgorithmRsa2048, SigningAlgorithm: types.SigningAlgorithmSha256withrsa, Subject: &types.ASN1Subject{CommonName: aws.String("R1")},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	arn := made.CertificateAuthorityArn
	of := func(template string) authority.Authority { return awsAuthority(url, *arn, template, awsKeys) }
	_, err = of(template).Roots(ctx)
	misconfigured(t, err, "is PENDING_CERTIFICATE")
	csr, err := c.GetCertificateAuthorityCsr(ctx, &acmpca.GetCertificateAuthorityCsrInput{CertificateAuthorityArn: arn})
	if err != nil {
		t.Fatal(err)
	}
	issued, err := c.IssueCertificate(ctx, &acmpca.IssueCertificateInput{
		CertificateAuthorityArn: arn, Csr: []byte(*csr.Csr), SigningAlgorithm: types.SigningAlgorithmSha256withrsa, TemplateArn: aws.String(template),
		Validity: &types.Validity{Type: types.ValidityPeriodTypeDays, Value: aws.Int64(365)},
	})
	if err != nil {
		t.Fatal(err)
	}
	root, err := c.GetCertificate(ctx, &acmpca.GetCertificateInput{CertificateAuthorityArn: arn, CertificateArn: issued.CertificateArn})
	if err != nil {
		t.Fatal(err)
	}
	if _, err = c.ImportCertificateAuthorityCertificate(ctx, &acmpca.ImportCertificateAuthorityCertificateInput{CertificateAuthorityArn: arn, Certificate: []byte(*root.Certificate)}); err != nil {
		t.Fatal(err)
	}
	want, err := pki.ParseCertificates([]byte(*root.Certificate))
	if err != nil {
		t.Fatal(err)
	}
	roots, err := of(template).Roots(ctx)
	if err != nil || len(roots) != 1 || !roots[0].Equal(want[0]) {
		t.Fatalf("roots %v, %v", roots, err)
	}
	_, err = of(template).SignIntermediate(ctx, named(t, "east")) // the right key, CA, name and life; but moto leaves out what real CAs set
	misconfigured(t, err, "CN=east g1,O=gloo-mesh has no authority key identifier")
	_, err = of(awsTemplate).SignIntermediate(ctx, named(t, "west"))
	misconfigured(t, err, "AWS Private CA returned CA:false")
	_, err = awsAuthority(url, awsARN, awsTemplate, awsKeys).Roots(ctx)
	misconfigured(t, err, "is the ARN right")
}

// shapes is a service as AWS publishes it (botocore's service-2.json).
type shapes struct {
	Operations map[string]struct {
		Input, Output struct{ Shape string }
		Errors        []struct{ Shape string }
	}
	Shapes map[string]struct {
		Type     string
		Required []string
		Members  map[string]struct{ Shape string }
		Enum     []string
		Min, Max *float64
		Pattern  string
	}
}

// What our fake takes and gives is what AWS publishes of its API: members, types, lengths, patterns, values and errors.
func TestAWSFakeIsAsPublished(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(motoDir(t), "lib/python3*/site-packages/botocore/data/acm-pca/*/service-2.json.gz"))
	if err != nil || len(files) != 1 {
		t.Fatalf("files %v, %v", files, err)
	}
	file, err := os.Open(files[0])
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	z, err := gzip.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	var s shapes
	if err := json.NewDecoder(z).Decode(&s); err != nil {
		t.Fatal(err)
	}
	f := newSubordinate(t)
	f.busy = 1
	a := f.authority(awsKeys)
	for _, r := range []authority.Request{named(t, "east"), named(t, "west")} {
		if _, err := a.SignIntermediate(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	calls := map[string]bool{}
	for _, e := range f.exchanges {
		op, ok := s.Operations[e.call]
		if !ok {
			t.Errorf("AWS has no call %s", e.call)
			continue
		}
		calls[e.call] = true
		s.check(t.Errorf, e.call+" asks", op.Input.Shape, e.input)
		if e.failed == "" {
			s.check(t.Errorf, e.call+" answers", op.Output.Shape, e.output)
		} else if !slices.ContainsFunc(op.Errors, func(s struct{ Shape string }) bool { return s.Shape == e.failed }) {
			t.Errorf("%s does not fail with %s", e.call, e.failed)
		}
	}
	if len(calls) != 4 {
		t.Errorf("calls made: %v", calls)
	}
	faults := 0
	s.check(func(string, ...any) { faults++ }, "probe", "IssueCertificateRequest", map[string]any{"CertificateAuthorityArn": "x", "Csr": "?"})
	if faults < 4 { // two members are missing, two are wrong
		t.Errorf("the check finds %d faults in a request that has four", faults)
	}
}

// check compares a value with its shape.
func (s shapes) check(fault func(string, ...any), at, shape string, v any) {
	sh, ok := s.Shapes[shape]
	if !ok {
		fault("%s: AWS has no shape %q", at, shape)
		return
	}
	size := -1.0
	switch x := v.(type) {
	case map[string]any:
		if sh.Type != "structure" {
			fault("%s: an object, want %s", at, sh.Type)
			return
		}
		for _, name := range sh.Required {
			if x[name] == nil {
				fault("%s: %s is missing", at, name)
			}
		}
		for name, value := range x {
			m, ok := sh.Members[name]
			if !ok {
				fault("%s: there is no member %s", at, name)
				continue
			}
			s.check(fault, at+"."+name, m.Shape, value)
		}
	case float64:
		if sh.Type != "long" && sh.Type != "integer" {
			fault("%s: a number, want %s", at, sh.Type)
		}
		size = x
	case string:
		size = float64(len(x))
		switch raw, err := base64.StdEncoding.DecodeString(x); {
		case sh.Type == "blob" && err != nil:
			fault("%s: %v", at, err)
		case sh.Type == "blob":
			size = float64(len(raw))
		case sh.Type != "string":
			fault("%s: a string, want %s", at, sh.Type)
		}
		if len(sh.Enum) > 0 && !slices.Contains(sh.Enum, x) {
			fault("%s: %q is none of %v", at, x, sh.Enum)
		}
		if sh.Pattern != "" && !regexp.MustCompile("^(?:"+unicodeEscapes.ReplaceAllString(sh.Pattern, `\x{$1}`)+")$").MatchString(x) {
			fault("%s: %q does not match %s", at, x, sh.Pattern)
		}
	default:
		fault("%s: %T", at, v)
	}
	if size >= 0 && (sh.Min != nil && size < *sh.Min || sh.Max != nil && size > *sh.Max) {
		fault("%s: %v is not within %v", at, size, fmt.Sprint(sh.Min, sh.Max))
	}
}

// unicodeEscapes are written differently in Go.
var unicodeEscapes = regexp.MustCompile(`\\u([0-9A-F]{4})`)
