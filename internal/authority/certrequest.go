package authority

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"ambitmesh.dev/ambit/internal/pki"
)

// request makes a CertificateRequest, or finds it again, waits for the answer and takes the request away: the certificate, then what else cert-manager says of its issuers.
func (c *certManager) request(ctx context.Context, o order) ([]*x509.Certificate, error) {
	wait := c.Timeout
	u := c.object(o)
	what := fmt.Sprintf("CertificateRequest %s/%s", c.Namespace, u.GetName())
	if err := c.Client.Create(ctx, u); apierrors.IsAlreadyExists(err) {
		wait = min(wait, certManagerGlance)
	} else if err != nil {
		return nil, c.failure(err)
	}
	until := time.Now().Add(wait)
	for {
		err := c.Client.Get(ctx, client.ObjectKeyFromObject(u), u)
		if err != nil {
			return nil, c.failure(err)
		}
		done, waits, err := verdict(u, what)
		switch {
		case done:
			return c.take(ctx, u, what, err)
		case time.Now().After(until):
			return nil, &Unavailable{Detail: what + " is not answered: " + waits}
		}
		select {
		case <-ctx.Done():
			return nil, &Unavailable{Detail: what + " is not answered: " + waits, Err: ctx.Err()}
		case <-time.After(certManagerPoll):
		}
	}
}

// verdict says whether a request is decided, and how, or else what it waits for.
func verdict(u *unstructured.Unstructured, what string) (done bool, waits string, err error) {
	ready, message := condition(u, "Ready")
	if status, why := condition(u, "Denied"); status == string(metav1.ConditionTrue) {
		return true, "", &Refused{Detail: fmt.Sprintf("%s was denied: %s; delete it to ask again", what, why)}
	}
	if status, why := condition(u, "InvalidRequest"); status == string(metav1.ConditionTrue) {
		return true, "", &Refused{Detail: fmt.Sprintf("%s is not valid: %s", what, why)}
	}
	switch approved, _ := condition(u, "Approved"); {
	case ready == string(metav1.ConditionTrue):
		return true, "", nil
	case ready == "Failed":
		return true, "", &Refused{Detail: fmt.Sprintf("%s has failed: %s", what, message)}
	case message != "":
		return false, message, nil
	case approved != string(metav1.ConditionTrue):
		return false, fmt.Sprintf("nobody has approved it: `cmctl approve -n %s %s`, or let cert-manager's approver, or approver-policy, do it", u.GetNamespace(), u.GetName()), nil
	}
	return false, "it is approved, and no issuer has signed it yet", nil
}

// take reads the answer, and takes the request away, unless it was denied: that is a person's decision, and stands until a person takes it back. One that can't be taken away does no
// harm: it is found again.
func (c *certManager) take(ctx context.Context, u *unstructured.Unstructured, what string, refusal error) ([]*x509.Certificate, error) {
	if status, _ := condition(u, "Denied"); status == string(metav1.ConditionTrue) {
		return nil, refusal
	}
	_ = c.Client.Delete(context.WithoutCancel(ctx), u)
	if refusal != nil {
		return nil, refusal
	}
	var all []*x509.Certificate
	for _, field := range []string{"certificate", "ca"} {
		text, _, _ := unstructured.NestedString(u.Object, "status", field)
		raw, err := base64.StdEncoding.DecodeString(text)
		if err == nil && (len(raw) > 0 || field == "certificate") {
			var certs []*x509.Certificate
			certs, err = pki.ParseCertificates(raw)
			all = append(all, certs...)
		}
		if err != nil {
			return nil, &Misconfigured{Detail: fmt.Sprintf("%s: status.%s can't be read", what, field), Err: err}
		}
	}
	return all, nil
}

// failure sorts errors of the API server.
func (c *certManager) failure(err error) error {
	switch {
	case meta.IsNoMatchError(err), apierrors.HasStatusCause(err, metav1.CauseTypeUnexpectedServerResponse) && apierrors.IsNotFound(err):
		return &Misconfigured{Detail: "there is no cert-manager in the management cluster", Fix: "install it, or use another authority", Err: err}
	case apierrors.IsForbidden(err):
		return &Misconfigured{Detail: c.name(), Fix: "allow the management server to use cert-manager: install the chart with glooMgmtServer.trust.certManager=true", Err: err}
	case apierrors.IsInvalid(err), apierrors.IsBadRequest(err):
		return &Refused{Detail: c.name(), Err: err}
	}
	return &Unavailable{Detail: c.name(), Err: err}
}
