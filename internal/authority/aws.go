package authority

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/acmpca"
	"github.com/aws/aws-sdk-go-v2/service/acmpca/types"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/pki"
)

const (
	awsTimeout = 25 * time.Second // of a question; AWS signs within seconds
	awsPoll    = 200 * time.Millisecond
	// awsReread is how long credentials of a Secret are used before they are read anew: people replace them.
	awsReread = time.Minute
	// awsSlack rounds the end of a certificate down: a question that is repeated within 5 minutes has to be the same one to get the same answer.
	awsSlack = 10 * time.Minute
	// awsShortLived is the longest certificate of a CA in short-lived mode (AWS Private CA user guide, "CA modes").
	awsShortLived = 7 * 24 * time.Hour
)

// AWSPrivateCA is a CA of AWS Private CA.
type AWSPrivateCA struct {
	mesh.AWSPrivateCA
	Secrets Secrets
	Now     func() time.Time
	// Timeout of a question; 0: 25 s.
	Timeout time.Duration
}

type awsCA struct {
	AWSPrivateCA

	mu     sync.Mutex
	client *acmpca.Client
}

// New returns the authority; keep it, since it keeps its credentials.
func (a AWSPrivateCA) New() Authority {
	a.Timeout = cmp.Or(a.Timeout, awsTimeout)
	return &awsCA{AWSPrivateCA: a}
}

// connection makes the client once. Where the policy names no Secret, credentials are found as AWS's own tools do: environment, web identity (IRSA), Pod identity, instance.
func (a *awsCA) connection(ctx context.Context) (*acmpca.Client, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.client != nil {
		return a.client, nil
	}
	var cfg aws.Config
	if a.Credentials == "" {
		var err error
		if cfg, err = config.LoadDefaultConfig(ctx, config.WithRegion(a.Region)); err != nil {
			return nil, a.noCredentials(err)
		}
	} else {
		cfg = aws.Config{Region: a.Region, Credentials: aws.NewCredentialsCache(aws.CredentialsProviderFunc(a.fromSecret))}
	}
	a.client = acmpca.NewFromConfig(cfg, func(o *acmpca.Options) {
		o.Retryer = aws.NopRetryer{} // callers back off
		if a.Endpoint != "" {
			o.BaseEndpoint = &a.Endpoint
		}
	})
	return a.client, nil
}

func (a *awsCA) fromSecret(ctx context.Context) (aws.Credentials, error) {
	data, err := a.Secrets.Get(ctx, a.Credentials)
	if err != nil {
		return aws.Credentials{}, &Unavailable{Detail: "Secret " + a.Credentials, Err: err}
	}
	text := func(key string) string { return string(bytes.TrimSpace(data[key])) }
	c := aws.Credentials{
		AccessKeyID: text("aws_access_key_id"), SecretAccessKey: text("aws_secret_access_key"), SessionToken: text("aws_session_token"),
		Source: "Secret " + a.Credentials, CanExpire: true, Expires: a.Now().Add(awsReread),
	}
	if c.AccessKeyID == "" || c.SecretAccessKey == "" {
		return aws.Credentials{}, &Misconfigured{Detail: fmt.Sprintf("there is no Secret %s with aws_access_key_id and aws_secret_access_key", a.Credentials), Fix: "make it in the policy's namespace"}
	}
	return c, nil
}

func (a *awsCA) noCredentials(err error) error {
	return &Misconfigured{
		Detail: "AWS gives the management server no credentials", Err: err,
		Fix: "name a role in glooMgmtServer.serviceAccountAnnotations (eks.amazonaws.com/role-arn) or by Pod identity, or a Secret in credentialsSecretRef",
	}
}

// begin is a client with credentials, and the CA as it is.
func (a *awsCA) begin(ctx context.Context) (*acmpca.Client, *awsState, error) {
	c, err := a.connection(ctx)
	if err != nil {
		return nil, nil, err
	}
	if _, err := c.Options().Credentials.Retrieve(ctx); err != nil {
		if bad, ok := errors.AsType[*Misconfigured](err); ok {
			return nil, nil, bad
		}
		if away, ok := AsUnavailable(err); ok || ctx.Err() != nil {
			return nil, nil, cmp.Or(away, &Unavailable{Detail: "credentials of AWS", Err: err})
		}
		return nil, nil, a.noCredentials(err)
	}
	s, err := a.state(ctx, c)
	return c, s, err
}

// awsState is a CA: its certificate, what is above it, the root last, and how long what it signs may live at most (0: until it ends itself).
type awsState struct {
	chain   []*x509.Certificate
	longest time.Duration
}

func (s *awsState) root() *x509.Certificate { return s.chain[len(s.chain)-1] }

func (a *awsCA) state(ctx context.Context, c *acmpca.Client) (*awsState, error) {
	d, err := c.DescribeCertificateAuthority(ctx, &acmpca.DescribeCertificateAuthorityInput{CertificateAuthorityArn: &a.ARN})
	if err != nil {
		return nil, a.failure("DescribeCertificateAuthority", err)
	}
	if ca := d.CertificateAuthority; ca == nil || ca.Status != types.CertificateAuthorityStatusActive {
		status := "unknown"
		if ca != nil {
			status = string(ca.Status)
		}
		return nil, &Misconfigured{Detail: fmt.Sprintf("%s is %s, and has to be ACTIVE", a.ARN, status), Fix: "install its certificate, or enable it (aws acm-pca update-certificate-authority --status ACTIVE)"}
	}
	s := &awsState{}
	if d.CertificateAuthority.UsageMode == types.CertificateAuthorityUsageModeShortLivedCertificate {
		s.longest = awsShortLived
	}
	g, err := c.GetCertificateAuthorityCertificate(ctx, &acmpca.GetCertificateAuthorityCertificateInput{CertificateAuthorityArn: &a.ARN})
	if err != nil {
		return nil, a.failure("GetCertificateAuthorityCertificate", err)
	}
	certs, err := pki.ParseCertificates([]byte(aws.ToString(g.Certificate) + "\n" + aws.ToString(g.CertificateChain)))
	if err != nil {
		return nil, &Misconfigured{Detail: "the certificate of " + a.ARN, Err: err}
	}
	if s.chain = climb(certs); !selfSigned(s.root()) {
		return nil, &Misconfigured{
			Detail: fmt.Sprintf("nobody knows the issuer of %s (%s), so there is no root to trust", s.root().Subject, a.ARN),
			Fix:    "import the CA's certificate again, with a chain that ends in the root",
		}
	}
	return s, nil
}

// Roots implements Authority.
func (a *awsCA) Roots(ctx context.Context) ([]*x509.Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, a.Timeout)
	defer cancel()
	_, s, err := a.begin(ctx)
	if err != nil {
		return nil, err
	}
	return []*x509.Certificate{s.root()}, nil
}

// SignIntermediate implements Authority.
func (a *awsCA) SignIntermediate(ctx context.Context, r Request) (Answer, error) {
	csr, err := pki.ParseCSR(r.CSR)
	if err != nil {
		return Answer{}, &Refused{Err: err}
	}
	ctx, cancel := context.WithTimeout(ctx, a.Timeout)
	defer cancel()
	c, s, err := a.begin(ctx)
	if err != nil {
		return Answer{}, err
	}
	algorithm, err := signingAlgorithm(s.chain[0])
	if err != nil {
		return Answer{}, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: r.CSR})
	hash := sha256.Sum256(slices.Concat([]byte(a.TemplateARN), r.CSR))
	issued, err := c.IssueCertificate(ctx, &acmpca.IssueCertificateInput{
		CertificateAuthorityArn: &a.ARN, Csr: text, SigningAlgorithm: algorithm, TemplateArn: &a.TemplateARN,
		IdempotencyToken: aws.String(hex.EncodeToString(hash[:])[:36]), // the longest there is
		Validity:         &types.Validity{Type: types.ValidityPeriodTypeAbsolute, Value: aws.Int64(a.end(r, s).Unix())},
	})
	if err != nil {
		return Answer{}, a.failure("IssueCertificate", err)
	}
	certs, err := a.fetch(ctx, c, issued.CertificateArn)
	if err != nil {
		return Answer{}, err
	}
	return a.answer(r, csr, s, certs)
}

// end is when the certificate ends. AWS refuses one that outlives its issuer.
func (a *awsCA) end(r Request, s *awsState) time.Time {
	ttl := r.TTL
	if s.longest > 0 {
		ttl = min(ttl, s.longest)
	}
	until := a.Now().Truncate(awsSlack).Add(ttl)
	for _, above := range s.chain {
		if until.After(above.NotAfter) {
			until = above.NotAfter
		}
	}
	return until
}

// fetch waits for the certificate.
func (a *awsCA) fetch(ctx context.Context, c *acmpca.Client, arn *string) ([]*x509.Certificate, error) {
	for pause := awsPoll; ; pause = min(2*pause, 2*time.Second) {
		g, err := c.GetCertificate(ctx, &acmpca.GetCertificateInput{CertificateAuthorityArn: &a.ARN, CertificateArn: arn})
		if err == nil {
			certs, err := pki.ParseCertificates([]byte(aws.ToString(g.Certificate) + "\n" + aws.ToString(g.CertificateChain)))
			if err != nil {
				return nil, &Misconfigured{Detail: "the certificate that AWS answers with", Err: err}
			}
			return certs, nil
		}
		if _, busy := errors.AsType[*types.RequestInProgressException](err); !busy {
			return nil, a.failure("GetCertificate", err)
		}
		select {
		case <-ctx.Done():
			return nil, &Unavailable{Detail: fmt.Sprintf("%s: GetCertificate: it was not signed in %s", a.ARN, a.Timeout), Err: ctx.Err()}
		case <-time.After(pause):
		}
	}
}

// answer checks what AWS has signed.
func (a *awsCA) answer(r Request, csr *x509.CertificateRequest, s *awsState, certs []*x509.Certificate) (Answer, error) {
	chain := append(certs[:1:1], s.chain[:len(s.chain)-1]...)
	out := Answer{Chain: chain, Root: s.root(), Issuer: "AWS Private CA " + a.ARN}
	if !certs[0].IsCA {
		return Answer{}, &Misconfigured{Detail: fmt.Sprintf("AWS Private CA returned CA:false: template %s makes leaves", a.TemplateARN), Fix: "use arn:aws:acm-pca:::template/SubordinateCACertificate_PathLen0/V1 (the default)"}
	}
	if err := check(out, r, csr, a.Now()); err != nil {
		return Answer{}, err
	}
	if got := certs[0].NotAfter.Sub(a.Now()); got < r.TTL-2*awsSlack {
		out.Note = fmt.Sprintf("asked for %s, AWS grants %s: the CA ends then, or is in short-lived mode", r.TTL, got.Round(time.Minute))
	}
	return out, nil
}

// signingAlgorithm is that of the CA's own key.
func signingAlgorithm(ca *x509.Certificate) (types.SigningAlgorithm, error) {
	switch k := ca.PublicKey.(type) {
	case *rsa.PublicKey:
		return types.SigningAlgorithmSha256withrsa, nil
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P384():
			return types.SigningAlgorithmSha384withecdsa, nil
		case elliptic.P521():
			return types.SigningAlgorithmSha512withecdsa, nil
		}
		return types.SigningAlgorithmSha256withecdsa, nil
	}
	return "", &Misconfigured{Detail: fmt.Sprintf("the key of %s is %s", ca.Subject, ca.PublicKeyAlgorithm), Fix: "proxies know RSA and ECDSA: use a CA of one of these"}
}

// failure sorts what went wrong. What AWS says holds no secrets.
func (a *awsCA) failure(call string, err error) error {
	what := a.ARN + ": " + call
	said, ok := errors.AsType[smithy.APIError](err)
	if !ok {
		return &Unavailable{Detail: what, Err: err}
	}
	words := fmt.Errorf("%s: %.300s", said.ErrorCode(), said.ErrorMessage())
	switch said.ErrorCode() {
	case "AccessDeniedException", "AccessDenied":
		return &Refused{Detail: what + ": want an IAM policy that allows acm-pca:" + call + " on this CA", Err: words}
	case "UnrecognizedClientException", "InvalidClientTokenId", "InvalidSignatureException", "SignatureDoesNotMatch", "ExpiredTokenException", "IncompleteSignature", "MissingAuthenticationTokenException":
		return &Refused{Detail: what + ": AWS does not take the credentials", Err: words}
	case "ResourceNotFoundException", "InvalidArnException":
		return &Misconfigured{Detail: what, Fix: "is the ARN right, and are the credentials of the account that has it, or that it is shared with?", Err: words}
	case "InvalidStateException":
		return &Misconfigured{Detail: what, Fix: "the CA has to be ACTIVE", Err: words}
	case "LimitExceededException", "ThrottlingException", "Throttling", "TooManyRequestsException", "RequestLimitExceeded":
		return &Unavailable{Detail: what, Err: words}
	}
	if r, ok := errors.AsType[*smithyhttp.ResponseError](err); ok && r.HTTPStatusCode() >= 500 {
		return &Unavailable{Detail: what, Err: words}
	}
	return &Refused{Detail: what, Err: words}
}
