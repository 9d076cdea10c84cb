package remotesecrets

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/tokens"
)

// memory is Secret keysName: this agent's keys, the keys of others that it has seen, and which remote secrets it wrote.
type memory struct {
	client    dynamic.ResourceInterface
	namespace string
	object    *unstructured.Unstructured
	keys      *tokens.Keys
	noted     noted
}

// noted is the part of memory that changes.
type noted struct {
	// Pins are the signing keys of peers, as first seen under a registration.
	Pins map[mesh.ClusterName]pin `json:"pins,omitempty"`
	// Written are the remote secrets that are ours, by name: noted before they are made.
	Written map[string]mesh.ClusterName `json:"written,omitempty"`
}

type pin struct {
	Registration string `json:"registration"`
	Sign         []byte `json:"sign"`
}

// loadMemory reads the Secret, or makes it with new keys.
func loadMemory(ctx context.Context, client dynamic.ResourceInterface, namespace string, c mesh.ClusterName) (*memory, error) {
	u, err := client.Get(ctx, keysName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return newMemory(ctx, client, namespace)
	}
	if err != nil {
		return nil, fmt.Errorf("read Secret %s/%s: %w", namespace, keysName, err)
	}
	m := &memory{client: client, namespace: namespace, object: u}
	data, err := dataOf(u)
	if err == nil {
		m.keys, err = tokens.ParseKeys(data["seal"], data["sign"])
	}
	if err == nil && len(data["noted"]) > 0 {
		err = json.Unmarshal(data["noted"], &m.noted)
	}
	if err != nil {
		return nil, fmt.Errorf("read Secret %s/%s of cluster %s: %w (if it can't be restored, delete it and register the cluster anew: peers refuse another key until then)", namespace, keysName, c, err)
	}
	return m, nil
}

func newMemory(ctx context.Context, client dynamic.ResourceInterface, namespace string) (*memory, error) {
	keys, err := tokens.NewKeys()
	if err != nil {
		return nil, err
	}
	m := &memory{client: client, namespace: namespace, keys: keys, object: newSecret(namespace, keysName, nil)}
	seal, sign := keys.Bytes()
	fill(m.object, map[string][]byte{"seal": seal, "sign": sign})
	if m.object, err = client.Create(ctx, m.object, metav1.CreateOptions{FieldManager: mesh.FieldManager}); err != nil {
		return nil, fmt.Errorf("make Secret %s/%s: %w", namespace, keysName, err)
	}
	return m, nil
}

// change notes something, and stores it before it counts.
func (m *memory) change(ctx context.Context, f func(*noted)) error {
	next := noted{Pins: maps.Clone(m.noted.Pins), Written: maps.Clone(m.noted.Written)}
	if next.Pins == nil {
		next.Pins = map[mesh.ClusterName]pin{}
	}
	if next.Written == nil {
		next.Written = map[string]mesh.ClusterName{}
	}
	f(&next)
	raw, err := json.Marshal(next)
	if err != nil {
		return err
	}
	data, err := dataOf(m.object)
	if err != nil {
		return err
	}
	if bytes.Equal(data["noted"], raw) {
		return nil
	}
	data["noted"] = raw
	u := m.object.DeepCopy()
	fill(u, data)
	u, err = m.client.Update(ctx, u, metav1.UpdateOptions{FieldManager: mesh.FieldManager})
	if err != nil {
		if apierrors.IsConflict(err) { // somebody labelled it: take up what it is now
			if fresh, gerr := m.client.Get(ctx, keysName, metav1.GetOptions{}); gerr == nil {
				m.object = fresh
			}
		}
		return fmt.Errorf("change Secret %s/%s: %w", m.namespace, keysName, err)
	}
	m.object, m.noted = u, next
	return nil
}

// pinned is the signing key that counts for a peer. A peer's first key under a registration is taken as it comes; another one is refused.
func (m *memory) pinned(ctx context.Context, p mesh.TokenPeer) (sign []byte, err error) {
	have, known := m.noted.Pins[p.Cluster]
	if p.Key == nil {
		if known && have.Registration == p.Registration {
			return have.Sign, nil
		}
		return nil, nil
	}
	if err := tokens.CheckKey(p.Cluster, *p.Key); err != nil {
		return nil, err
	}
	if known && have.Registration == p.Registration {
		if bytes.Equal(have.Sign, p.Key.Sign) {
			return have.Sign, nil
		}
		return nil, fmt.Errorf("cluster %q shows another key than before (%s, not %s) without having been registered anew: nothing is sealed for it and nothing taken from it. "+
			"If its Secret %s/%s was lost, run `meshctl cluster deregister %s` and register it again; if not, the management server or that cluster is not to be trusted",
			p.Cluster, mesh.FingerprintOf(p.Key.Sign), mesh.FingerprintOf(have.Sign), m.namespace, keysName, p.Cluster)
	}
	if err := m.change(ctx, func(n *noted) { n.Pins[p.Cluster] = pin{p.Registration, p.Key.Sign} }); err != nil {
		return nil, err
	}
	return p.Key.Sign, nil
}

// dataOf decodes a Secret's data.
func dataOf(u *unstructured.Unstructured) (map[string][]byte, error) {
	data, _, err := unstructured.NestedStringMap(u.Object, "data")
	if err != nil {
		return nil, fmt.Errorf("secret %s: %w", u.GetName(), err)
	}
	out := make(map[string][]byte, len(data))
	for k, v := range data {
		if out[k], err = base64.StdEncoding.DecodeString(v); err != nil {
			return nil, fmt.Errorf("secret %s, key %s: %w", u.GetName(), k, err)
		}
	}
	return out, nil
}

// fill puts data into a Secret.
func fill(u *unstructured.Unstructured, data map[string][]byte) {
	m := make(map[string]any, len(data))
	for k, v := range data {
		m[k] = base64.StdEncoding.EncodeToString(v)
	}
	u.Object["data"] = m
}

// newSecret is an empty one of ours.
func newSecret(namespace, name string, annotations map[string]string) *unstructured.Unstructured {
	u := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Secret", "type": "Opaque"}}
	u.SetNamespace(namespace)
	u.SetName(name)
	u.SetLabels(map[string]string{mesh.OwnerLabel: mesh.OwnerValue})
	u.SetAnnotations(annotations)
	return u
}
