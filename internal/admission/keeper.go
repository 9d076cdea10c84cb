package admission

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Secret is where the replicas share the webhook's certificates.
const Secret = "gloo-mesh-webhook-tls" //nolint:gosec // a name

// Certificates keeps the webhook's TLS: the shared Secret, the certificate that this process serves, and the caBundle the API server checks it with.
type Certificates struct {
	client        client.Client
	namespace     string
	configuration string
	names         []string
	log           *slog.Logger
	serving       atomic.Pointer[tls.Certificate]
	raw           atomic.Pointer[[]byte]
}

// NewCertificates returns Certificates for a webhook reached under names; configuration is the name of both webhook configurations.
func NewCertificates(c client.Client, namespace, configuration string, names []string, log *slog.Logger) *Certificates {
	return &Certificates{client: c, namespace: namespace, configuration: configuration, names: names, log: log}
}

// ServerNames are the names under which the API server and people's port-forwards reach a Service.
func ServerNames(service, namespace, clusterDomain string) []string {
	q := service + "." + namespace
	return []string{q + ".svc", service, q, q + ".svc." + clusterDomain, "localhost", "127.0.0.1"}
}

// Get is tls.Config.GetCertificate: each handshake gets the certificate of the moment.
func (k *Certificates) Get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c := k.serving.Load()
	if c == nil {
		return nil, fmt.Errorf("the webhook has no certificate yet: Secret %s/%s is not there", k.namespace, Secret)
	}
	return c, nil
}

// Ready reports whether there is a certificate to serve.
func (k *Certificates) Ready() bool { return k.serving.Load() != nil }

// Load takes up what the Secret holds. Every replica calls it when the Secret changes. No Secret is no error: the leader will make it.
func (k *Certificates) Load(ctx context.Context) error {
	s, err := k.secret(ctx)
	if err != nil || s == nil {
		return err
	}
	return k.use(s.Data)
}

func (k *Certificates) secret(ctx context.Context) (*corev1.Secret, error) {
	var s corev1.Secret
	err := k.client.Get(ctx, client.ObjectKey{Namespace: k.namespace, Name: Secret}, &s)
	if errors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("webhook certificate: %w", err)
	}
	return &s, nil
}

func (k *Certificates) use(m material) error {
	if old := k.raw.Load(); old != nil && bytes.Equal(*old, m[keyTLSCert]) {
		return nil
	}
	c, err := tls.X509KeyPair(m[keyTLSCert], m[keyTLSKey])
	if err != nil {
		return fmt.Errorf("webhook certificate in Secret %s/%s: %w", k.namespace, Secret, err)
	}
	k.serving.Store(&c)
	raw := bytes.Clone(m[keyTLSCert])
	k.raw.Store(&raw)
	k.log.Info("webhook certificate loaded", "notAfter", c.Leaf.NotAfter)
	return nil
}

// Keep makes, renews and publishes; only the leader calls it: at its start, when the Secret or a configuration changes, and every few minutes.
func (k *Certificates) Keep(ctx context.Context, now time.Time) error {
	s, err := k.secret(ctx)
	if err != nil {
		return err
	}
	var have material
	if s != nil {
		have = s.Data
	}
	configurations, err := k.configurations(ctx)
	if err != nil {
		return err
	}
	published := true // the API server trusts what the Secret holds
	for _, c := range configurations {
		for _, w := range c.webhooks() {
			published = published && bytes.Equal(*w.caBundle, have[keyCACert])
		}
	}
	want, done, err := next(have, k.names, published, now)
	if err != nil {
		return err
	}
	if done != "" {
		if err := k.store(ctx, s, want); err != nil {
			return err
		}
		k.log.Info("webhook certificates renewed", "what", done)
	}
	for _, c := range configurations {
		if err := k.publish(ctx, c, want[keyCACert]); err != nil {
			return err
		}
	}
	return k.use(want)
}

func (k *Certificates) store(ctx context.Context, s *corev1.Secret, m material) error {
	var err error
	if s == nil {
		err = k.client.Create(ctx, &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: Secret, Namespace: k.namespace, Labels: map[string]string{"app.kubernetes.io/managed-by": "gloo-mesh-mgmt-server"}},
			Type:       corev1.SecretTypeTLS, Data: m,
		})
	} else { // Update carries the resourceVersion: another leader's write is not overwritten
		s.Data = m
		err = k.client.Update(ctx, s)
	}
	if err != nil {
		return fmt.Errorf("write Secret %s/%s: %w", k.namespace, Secret, err)
	}
	return nil
}

// configuration is what the two kinds of webhook configuration have in common.
type configuration struct {
	client.Object
	webhooks func() []hook
}

// hook is what is kept right in each webhook.
type hook struct {
	caBundle *[]byte
	failure  **admissionregistrationv1.FailurePolicyType
}

// configurations reads both; one that is missing is logged: then nothing is checked or recorded, which a person must mend.
func (k *Certificates) configurations(ctx context.Context) ([]configuration, error) {
	mutating, validating := &admissionregistrationv1.MutatingWebhookConfiguration{}, &admissionregistrationv1.ValidatingWebhookConfiguration{}
	all := []configuration{
		{mutating, func() (out []hook) {
			for i := range mutating.Webhooks {
				out = append(out, hook{&mutating.Webhooks[i].ClientConfig.CABundle, &mutating.Webhooks[i].FailurePolicy})
			}
			return out
		}},
		{validating, func() (out []hook) {
			for i := range validating.Webhooks {
				out = append(out, hook{&validating.Webhooks[i].ClientConfig.CABundle, &validating.Webhooks[i].FailurePolicy})
			}
			return out
		}},
	}
	var found []configuration
	for _, c := range all {
		err := k.client.Get(ctx, client.ObjectKey{Name: k.configuration}, c.Object)
		if errors.IsNotFound(err) {
			k.log.Warn("webhook configuration is missing: writes to our kinds are neither checked nor recorded; run `helm upgrade` to restore it",
				"kind", fmt.Sprintf("%T", c.Object)[len("*v1."):], "name", k.configuration)
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("webhook configuration %s: %w", k.configuration, err)
		}
		found = append(found, c)
	}
	return found, nil
}

func (k *Certificates) publish(ctx context.Context, c configuration, bundle []byte) error {
	before := c.DeepCopyObject().(client.Object)
	changed := false
	for _, w := range c.webhooks() {
		if !bytes.Equal(*w.caBundle, bundle) {
			*w.caBundle, changed = bundle, true
		}
		if *w.failure == nil || **w.failure != admissionregistrationv1.Fail { // else a write while no server answers would be neither checked nor recorded
			fail := admissionregistrationv1.Fail
			*w.failure, changed = &fail, true
		}
	}
	if !changed {
		return nil
	}
	if err := k.client.Patch(ctx, c.Object, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}), client.FieldOwner("gloo-mesh-mgmt-server-webhook")); err != nil {
		return fmt.Errorf("webhook configuration %s: set caBundle: %w", k.configuration, err)
	}
	k.log.Info("webhook configuration updated", "name", k.configuration, "kind", fmt.Sprintf("%T", c.Object)[len("*v1."):])
	return nil
}
