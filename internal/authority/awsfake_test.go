package authority_test

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"ambitmesh.dev/ambit/internal/authority"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/pki"
)

const (
	awsARN      = "arn:aws:acm-pca:eu-west-1:123456789012:certificate-authority/12345678-1234-1234-1234-123456789012"
	awsTemplate = "arn:aws:acm-pca:::template/SubordinateCACertificate_PathLen0/V1"
)

// awsFake is our own reading of AWS Private CA's API: four calls, signed by a CA of ours. Against what AWS publishes of it is checked in TestAWSFakeIsAsPublished.
type awsFake struct {
	*httptest.Server
	t         *testing.T
	ca, root  *x509.Certificate
	key       crypto.Signer
	status    string
	mode      string
	leaves    bool // as if by a template of leaves
	busy      int  // answers with RequestInProgressException first
	fail      func(call string) (status int, kind, message string)
	mu        sync.Mutex
	issued    map[string]string // certificate by ARN
	tokens    map[string]string // ARN by idempotency token
	issues    int
	keys      []string // access keys that were used
	exchanges []exchange
}

// exchange is one call as it went over the wire.
type exchange struct {
	call, failed  string
	input, output map[string]any
}

func newAWS(t *testing.T, ca, root *x509.Certificate, key crypto.Signer) *awsFake {
	f := &awsFake{t: t, ca: ca, root: root, key: key, status: "ACTIVE", mode: "GENERAL_PURPOSE", issued: map[string]string{}, tokens: map[string]string{}}
	f.Server = httptest.NewServer(http.HandlerFunc(f.serve))
	t.Cleanup(f.Close)
	return f
}

func (f *awsFake) serve(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, call, _ := strings.Cut(r.Header.Get("X-Amz-Target"), "ACMPrivateCA.")
	raw, _ := io.ReadAll(r.Body)
	e := exchange{call: call}
	if err := json.Unmarshal(raw, &e.input); err != nil {
		f.t.Errorf("%s: %v", call, err)
	}
	if _, after, ok := strings.Cut(r.Header.Get("Authorization"), "Credential="); ok {
		key, _, _ := strings.Cut(after, "/")
		f.keys = append(f.keys, key)
	}
	status, kind, message := http.StatusOK, "", ""
	if f.fail != nil {
		status, kind, message = f.fail(call)
	}
	if kind == "" {
		e.output, kind, message = f.answer(call, e.input)
		if status = http.StatusOK; kind != "" {
			status = http.StatusBadRequest
		}
	}
	if kind != "" {
		e.failed, e.output = kind, map[string]any{"__type": kind, "message": message}
	}
	f.exchanges = append(f.exchanges, e)
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(e.output)
}

func (f *awsFake) answer(call string, in map[string]any) (out map[string]any, kind, message string) {
	if in["CertificateAuthorityArn"] != awsARN {
		return nil, "ResourceNotFoundException", fmt.Sprintf("Could not find Certificate Authority %v", in["CertificateAuthorityArn"])
	}
	chain := ""
	if !f.ca.Equal(f.root) {
		chain = string(pki.EncodeCertificates(f.root))
	}
	switch call {
	case "DescribeCertificateAuthority":
		return map[string]any{"CertificateAuthority": map[string]any{"Arn": awsARN, "Status": f.status, "UsageMode": f.mode, "Type": "SUBORDINATE"}}, "", ""
	case "GetCertificateAuthorityCertificate":
		out = map[string]any{"Certificate": string(pki.EncodeCertificates(f.ca))}
		if chain != "" {
			out["CertificateChain"] = chain
		}
		return out, "", ""
	case "IssueCertificate":
		return f.issue(in)
	case "GetCertificate":
		if f.busy > 0 {
			f.busy--
			return nil, "RequestInProgressException", "The request to issue the certificate is in progress"
		}
		c, ok := f.issued[fmt.Sprint(in["CertificateArn"])]
		if !ok {
			return nil, "ResourceNotFoundException", "no such certificate"
		}
		return map[string]any{"Certificate": c, "CertificateChain": string(pki.EncodeCertificates(f.ca)) + chain}, "", ""
	}
	return nil, "UnknownOperationException", call
}

func (f *awsFake) issue(in map[string]any) (out map[string]any, kind, message string) {
	f.issues++
	token := fmt.Sprint(in["IdempotencyToken"])
	if arn := f.tokens[token]; arn != "" {
		return map[string]any{"CertificateArn": arn}, "", ""
	}
	var typed struct {
		Csr      []byte
		Validity struct {
			Type  string
			Value int64
		}
		TemplateArn, SigningAlgorithm string
	}
	raw, _ := json.Marshal(in)
	if err := json.Unmarshal(raw, &typed); err != nil {
		return nil, "InvalidArgsException", err.Error()
	}
	block, _ := pem.Decode(typed.Csr)
	if block == nil {
		return nil, "MalformedCSRException", "The CSR is not PEM"
	}
	csr, err := pki.ParseCSR(block.Bytes)
	until := time.Unix(typed.Validity.Value, 0)
	switch {
	case err != nil:
		return nil, "MalformedCSRException", err.Error()
	case typed.TemplateArn != awsTemplate || typed.Validity.Type != "ABSOLUTE" || typed.SigningAlgorithm != "SHA256WITHECDSA":
		return nil, "InvalidArgsException", fmt.Sprintf("%+v", typed)
	case until.After(f.ca.NotAfter), f.mode == "SHORT_LIVED_CERTIFICATE" && until.After(time.Now().Add(7*24*time.Hour)):
		return nil, "InvalidArgsException", "The certificate validity specified exceeds that of the certificate authority, or of its mode"
	}
	t := &x509.Certificate{ // name and key of the CSR, and nothing else
		Subject: csr.Subject, IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	if f.leaves {
		t = &x509.Certificate{Subject: csr.Subject, BasicConstraintsValid: true}
	}
	c := signKey(f.t, f.ca, f.key, csr.PublicKey, t, until)
	arn := fmt.Sprintf("%s/certificate/%x", awsARN, sha256.Sum256(c.Raw))[:len(awsARN)+len("/certificate/")+32]
	f.issued[arn], f.tokens[token] = string(pki.EncodeCertificates(c)), arn
	return map[string]any{"CertificateArn": arn}, "", ""
}

// authority is what a policy leads to; without Secrets the credentials are the process's own.
func (f *awsFake) authority(s secrets, change ...func(*authority.AWSPrivateCA)) authority.Authority {
	return awsAuthority(f.URL, awsARN, awsTemplate, s, change...)
}

func awsAuthority(url, arn, template string, s secrets, change ...func(*authority.AWSPrivateCA)) authority.Authority {
	a := authority.AWSPrivateCA{AWSPrivateCA: mesh.AWSPrivateCA{ARN: arn, Region: "eu-west-1", TemplateARN: template, Endpoint: url}, Secrets: s, Now: time.Now}
	if s != nil {
		a.Credentials = "aws"
	}
	for _, c := range change {
		c(&a)
	}
	return a.New()
}
