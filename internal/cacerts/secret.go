package cacerts

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"hash"
	"maps"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"

	"ambitmesh.dev/ambit/internal/mesh"
)

// secret is what matters of a Secret.
type secret struct {
	object      *unstructured.Unstructured
	data        map[string][]byte
	kind        string // type
	immutable   bool
	labels      map[string]string
	annotations map[string]string
}

// read takes a Secret apart.
func read(u *unstructured.Unstructured) (*secret, error) {
	s := &secret{object: u, data: map[string][]byte{}, labels: u.GetLabels(), annotations: u.GetAnnotations()}
	s.kind, _, _ = unstructured.NestedString(u.Object, "type")
	s.immutable, _, _ = unstructured.NestedBool(u.Object, "immutable")
	data, _, err := unstructured.NestedStringMap(u.Object, "data")
	if err != nil {
		return nil, fmt.Errorf("secret %s: %w", u.GetName(), err)
	}
	for k, v := range data {
		if s.data[k], err = base64.StdEncoding.DecodeString(v); err != nil {
			return nil, fmt.Errorf("secret %s, key %s: %w", u.GetName(), k, err)
		}
	}
	return s, nil
}

// get reads a Secret; nil: there is none.
func get(ctx context.Context, client dynamic.ResourceInterface, name string) (*secret, error) {
	u, err := client.Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil //nolint:nilnil // there is none
	case err != nil:
		return nil, fmt.Errorf("read Secret %s: %w", name, err)
	}
	return read(u)
}

// fill puts data into an object for the API server. Nothing but data holds content: what a Secret has under stringData is data by the time it is stored.
func fill(u *unstructured.Unstructured, data map[string][]byte) {
	m := make(map[string]any, len(data))
	for k, v := range data {
		m[k] = base64.StdEncoding.EncodeToString(v)
	}
	u.Object["data"] = m
}

// newSecret is an empty one of ours.
func newSecret(namespace, name string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Secret", "type": "Opaque",
		"metadata": map[string]any{"namespace": namespace, "name": name, "labels": map[string]any{mesh.OwnerLabel: mesh.OwnerValue}},
	}}
}

// contentHash is by what we recognise our own content. It is part of the object, so it says nothing of the key: a hash of 256 random bits and more.
func contentHash(data map[string][]byte) string {
	h := sha256.New()
	for _, k := range slices.Sorted(maps.Keys(data)) {
		part(h, []byte(k))
		part(h, data[k])
	}
	return hex.EncodeToString(h.Sum(nil))
}

func part(h hash.Hash, b []byte) {
	sum := sha256.Sum256(b)
	h.Write(sum[:])
}

func sameData(a, b map[string][]byte) bool { return maps.EqualFunc(a, b, bytes.Equal) }

// hashAnnotation holds contentHash of what we wrote: content that differs is somebody else's.
const hashAnnotation = "admin.gloo.solo.io/cacerts-hash"

// Who owns a cacerts that is not ours, by what such tools put on it. The values are names for people.
func toolMarks() map[string]string {
	return map[string]string{
		"cert-manager.io/certificate-name":        "cert-manager",
		"controller.cert-manager.io/fao":          "cert-manager",
		"argocd.argoproj.io/tracking-id":          "Argo CD",
		"argocd.argoproj.io/instance":             "Argo CD",
		"kustomize.toolkit.fluxcd.io/name":        "Flux",
		"kustomize.toolkit.fluxcd.io/namespace":   "Flux",
		"helm.toolkit.fluxcd.io/name":             "Flux",
		"helm.toolkit.fluxcd.io/namespace":        "Flux",
		"meta.helm.sh/release-name":               "Helm",
		"reconcile.external-secrets.io/managed":   "External Secrets",
		"reconcile.external-secrets.io/data-hash": "External Secrets",
	}
}

// toolManagers are field managers of such tools.
func toolManagers() map[string]string {
	return map[string]string{
		"argocd-controller": "Argo CD", "argocd-application-controller": "Argo CD", "kustomize-controller": "Flux", "helm-controller": "Flux", "helm": "Helm",
		"external-secrets": "External Secrets", "pilot-discovery": "istiod",
	}
}

// istioGenerated is a key by which istiod marks its own self-signed CA in cacerts (istio: security/pkg/pki/ca, USE_CACERTS_FOR_SELF_SIGNED_CA).
const istioGenerated = "istio-generated"

// owner says whose a Secret is: mesh.OwnerValue for us, else a name for people.
func (s *secret) owner() string {
	marks := toolMarks()
	for _, set := range []map[string]string{s.annotations, s.labels} {
		for _, k := range slices.Sorted(maps.Keys(set)) {
			if tool := marks[k]; tool != "" {
				return tool
			}
		}
	}
	if s.labels["app.kubernetes.io/managed-by"] == "Helm" {
		return "Helm"
	}
	if refs := s.object.GetOwnerReferences(); len(refs) > 0 {
		return refs[0].Kind + " " + refs[0].Name
	}
	if _, ok := s.data[istioGenerated]; ok {
		return "istiod"
	}
	if s.labels[mesh.OwnerLabel] == mesh.OwnerValue && s.annotations[hashAnnotation] != "" {
		return mesh.OwnerValue
	}
	return s.writer(cmp.Or(s.labels["reconciler.mesh.gloo.solo.io/name"], "somebody"))
}

// foreign says who changed the content of a Secret of ours since we wrote it; empty: nobody.
func (s *secret) foreign() string {
	if s.annotations[hashAnnotation] == contentHash(s.data) {
		return ""
	}
	return s.writer("somebody")
}

// writer names the last other field manager of the content.
func (s *secret) writer(otherwise string) string {
	name, last := "", time.Time{}
	for _, m := range s.object.GetManagedFields() {
		if m.Manager == mesh.FieldManager || m.FieldsV1 == nil || !bytes.Contains(m.FieldsV1.GetRawBytes(), []byte(`"f:data"`)) {
			continue
		}
		if at := m.Time; name == "" || at != nil && at.After(last) {
			name = m.Manager
			if at != nil {
				last = at.Time
			}
		}
	}
	if tool := toolManagers()[name]; tool != "" {
		return tool
	}
	if name == "" {
		return otherwise
	}
	return "field manager " + name
}

// unmark takes off what makes a Secret somebody else's, for one that is adopted.
func unmark(u *unstructured.Unstructured) {
	marks := toolMarks()
	drop := func(set map[string]string) map[string]string {
		maps.DeleteFunc(set, func(k, v string) bool {
			return marks[k] != "" || k == "app.kubernetes.io/managed-by" && v == "Helm"
		})
		return set
	}
	u.SetLabels(drop(u.GetLabels()))
	u.SetAnnotations(drop(u.GetAnnotations()))
	u.SetOwnerReferences(nil)
	unstructured.RemoveNestedField(u.Object, "immutable")
}
