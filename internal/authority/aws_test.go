package authority_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"ambitmesh.dev/ambit/internal/authority"
	"ambitmesh.dev/ambit/internal/pki"
)

var awsKeys = secrets{"aws": {"aws_access_key_id": []byte("AKIDSECRET\n"), "aws_secret_access_key": []byte("secret")}}

// newSubordinate is AWS with a CA below a root.
func newSubordinate(t *testing.T) *awsFake {
	t.Helper()
	rootKey, root := newRoot(t, "R1")
	key, err := pki.GenerateKey(pki.ECDSAP256)
	if err != nil {
		t.Fatal(err)
	}
	return newAWS(t, signCA(t, root, rootKey, key, "Issuing CA"), root, key)
}

func TestAWSSigns(t *testing.T) {
	f := newSubordinate(t)
	f.busy = 3
	a := f.authority(awsKeys)
	roots, err := a.Roots(t.Context())
	if err != nil || len(roots) != 1 || !roots[0].Equal(f.root) {
		t.Fatalf("roots %v, %v", roots, err)
	}
	r := named(t, "east")
	got, err := a.SignIntermediate(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Chain) != 2 || !got.Chain[1].Equal(f.ca) || !got.Root.Equal(f.root) || got.Note != "" || !got.Chain[0].MaxPathLenZero {
		t.Errorf("chain of %d under %s, note %q", len(got.Chain), got.Root.Subject, got.Note)
	}
	again, err := a.SignIntermediate(t.Context(), r) // after a crash, say
	if err != nil || !again.Chain[0].Equal(got.Chain[0]) || f.issues != 2 {
		t.Errorf("the same request got another certificate: %v", err)
	}
	if keys := slices.Compact(f.keys); len(keys) != 1 || keys[0] != "AKIDSECRET" {
		t.Errorf("keys used: %v", keys)
	}
	key, root := newRoot(t, "R2") // a root of AWS's own
	own := newAWS(t, root, root, key)
	if got, err = own.authority(awsKeys).SignIntermediate(t.Context(), r); err != nil || len(got.Chain) != 1 || !got.Root.Equal(root) {
		t.Errorf("below a root: chain of %d, %v", len(got.Chain), err)
	}
}

// Nothing outlives its issuer, or what the CA's mode allows; people are told.
func TestAWSLifetimes(t *testing.T) {
	f := newSubordinate(t)
	r := named(t, "east")
	r.TTL = 9000 * time.Hour // the CA has 5000
	got, err := f.authority(awsKeys).SignIntermediate(t.Context(), r)
	if err != nil || !got.Chain[0].NotAfter.Equal(f.ca.NotAfter) || got.Note == "" {
		t.Errorf("note %q, %v", got.Note, err)
	}
	f.mode = "SHORT_LIVED_CERTIFICATE"
	got, err = f.authority(awsKeys).SignIntermediate(t.Context(), named(t, "west"))
	if err != nil || got.Note != "" {
		t.Errorf("100 h in short-lived mode: note %q, %v", got.Note, err)
	}
	r = named(t, "south")
	r.TTL = 1000 * time.Hour
	if got, err = f.authority(awsKeys).SignIntermediate(t.Context(), r); err != nil || got.Chain[0].NotAfter.After(time.Now().Add(7*24*time.Hour)) || got.Note == "" {
		t.Errorf("1000 h in short-lived mode: note %q, %v", got.Note, err)
	}
}

func TestAWSRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		status              int
		call, kind, message string
		check               func(*testing.T, error, string)
		want                string
	}{
		"rights":      {400, "IssueCertificate", "AccessDeniedException", "User: x is not authorized", isRefused, "want an IAM policy that allows acm-pca:IssueCertificate"},
		"credentials": {400, "DescribeCertificateAuthority", "UnrecognizedClientException", "The security token included in the request is invalid.", isRefused, "does not take the credentials"},
		"throttled":   {400, "IssueCertificate", "ThrottlingException", "Rate exceeded", unavailable, "IssueCertificate"},
		"quota":       {400, "IssueCertificate", "LimitExceededException", "quota", unavailable, "IssueCertificate"},
		"broken":      {500, "GetCertificate", "InternalFailure", "", unavailable, "GetCertificate"},
		"failed":      {400, "GetCertificate", "RequestFailedException", "The request has failed", isRefused, "RequestFailedException"},
		"no such CA":  {400, "DescribeCertificateAuthority", "ResourceNotFoundException", "Could not find", misconfigured, "is the ARN right"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newSubordinate(t)
			f.fail = func(call string) (int, string, string) {
				if call == c.call {
					return c.status, c.kind, c.message
				}
				return http.StatusOK, "", ""
			}
			_, err := f.authority(awsKeys).SignIntermediate(t.Context(), named(t, "east"))
			c.check(t, err, c.want)
		})
	}
	t.Run("never signed", func(t *testing.T) {
		f := newSubordinate(t)
		f.busy = 1 << 30
		_, err := f.authority(awsKeys, func(a *authority.AWSPrivateCA) { a.Timeout = 5 * time.Second }).SignIntermediate(t.Context(), named(t, "east"))
		unavailable(t, err, "GetCertificate")
	})
	t.Run("not active", func(t *testing.T) {
		f := newSubordinate(t)
		f.status = "PENDING_CERTIFICATE"
		_, err := f.authority(awsKeys).Roots(t.Context())
		misconfigured(t, err, "is PENDING_CERTIFICATE, and has to be ACTIVE")
	})
	t.Run("leaves", func(t *testing.T) {
		f := newSubordinate(t)
		f.leaves = true
		_, err := f.authority(awsKeys).SignIntermediate(t.Context(), named(t, "east"))
		misconfigured(t, err, "AWS Private CA returned CA:false")
	})
	t.Run("nobody is there", func(t *testing.T) {
		f := newSubordinate(t)
		f.Close()
		_, err := f.authority(awsKeys).Roots(t.Context())
		unavailable(t, err, "DescribeCertificateAuthority")
	})
}

// Credentials: a Secret, which may be replaced, or AWS's own chain.
func TestAWSCredentials(t *testing.T) {
	f := newSubordinate(t)
	_, err := f.authority(secrets{}).Roots(t.Context())
	misconfigured(t, err, "there is no Secret aws with aws_access_key_id and aws_secret_access_key")

	now := time.Now()
	s := secrets{"aws": awsKeys["aws"]}
	a := f.authority(s, func(a *authority.AWSPrivateCA) { a.Now = func() time.Time { return now.Add(-time.Hour) } }) // every read is old at once
	if _, err = a.Roots(t.Context()); err != nil {
		t.Fatal(err)
	}
	s["aws"] = map[string][]byte{"aws_access_key_id": []byte("AKIDNEXT"), "aws_secret_access_key": []byte("next")}
	if _, err = a.Roots(t.Context()); err != nil || f.keys[len(f.keys)-1] != "AKIDNEXT" {
		t.Errorf("keys %v, %v", f.keys, err)
	}

	for _, name := range []string{"AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI"} {
		t.Setenv(name, "")
	}
	t.Setenv("AWS_CONFIG_FILE", filepath.Join(t.TempDir(), "none"))
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", filepath.Join(t.TempDir(), "none"))
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	_, err = f.authority(nil).Roots(t.Context())
	misconfigured(t, err, "eks.amazonaws.com/role-arn")
	t.Setenv("AWS_ACCESS_KEY_ID", "AKIDENV")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
	if _, err = f.authority(nil).Roots(t.Context()); err != nil || f.keys[len(f.keys)-1] != "AKIDENV" {
		t.Errorf("keys %v, %v", f.keys, err)
	}

	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("a.b.c"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/ambit")
	t.Setenv("AWS_WEB_IDENTITY_TOKEN_FILE", token)
	t.Setenv("AWS_ENDPOINT_URL_STS", newSTS(t).URL)
	if _, err = f.authority(nil).Roots(t.Context()); err != nil || f.keys[len(f.keys)-1] != "AKIDROLE" {
		t.Errorf("web identity: keys %v, %v", f.keys, err)
	}
}

// newSTS changes a service account's token for credentials, as AWS's does (IRSA).
func newSTS(t *testing.T) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.FormValue("Action") != "AssumeRoleWithWebIdentity" || r.FormValue("WebIdentityToken") != "a.b.c" {
			http.Error(w, "<ErrorResponse><Error><Code>InvalidIdentityToken</Code></Error></ErrorResponse>", http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "text/xml")
		fmt.Fprintf(w, `<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>AKIDROLE</AccessKeyId>`+
			`<SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken><Expiration>%s</Expiration></Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>`,
			time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
	}))
	t.Cleanup(s.Close)
	return s
}
