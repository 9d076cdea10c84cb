package agent

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/relay"
)

// Keys of the Secrets.
const (
	certKey    = "tls.crt"
	keyKey     = "tls.key"
	pendingKey = "pending.key"
	rootKey    = "ca.crt"
	tokenKey   = "token"
)

// identityStore keeps the agent's identity in Secrets: the private key never leaves the cluster, nor this process but for its Secret.
type identityStore struct {
	secrets dynamic.ResourceInterface
	names   Secrets

	mu    sync.Mutex
	mine  map[string][]string // what each Secret held when we last read it, and what we wrote since: the watch may tell of it late
	token string              // the registration token as last read, to know when it is used up
}

func newIdentityStore(client dynamic.Interface, namespace string, names Secrets) *identityStore {
	return &identityStore{secrets: client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "secrets"}).Namespace(namespace), names: names, mine: map[string][]string{}}
}

// Load reads what is there; a missing Secret is empty, not an error.
func (s *identityStore) Load(ctx context.Context) (relay.StoredIdentity, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	data := map[string]map[string][]byte{}
	for _, name := range []string{s.names.Client, s.names.Root, s.names.Registration, s.names.Identity} {
		u, err := s.secrets.Get(ctx, name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			u = nil
		case err != nil:
			return relay.StoredIdentity{}, fmt.Errorf("secret %s: %w", name, err)
		}
		if data[name], err = decode(u); err != nil {
			return relay.StoredIdentity{}, err
		}
		s.mine[name] = []string{content(u)}
	}
	client := data[s.names.Client]
	s.token = strings.TrimSpace(string(data[s.names.Registration][tokenKey]))
	id := relay.StoredIdentity{KeyPEM: client[keyKey], ChainPEM: client[certKey], PendingKey: client[pendingKey], Roots: data[s.names.Root][rootKey], Token: s.token}
	if id.Token == "" {
		id.Token = strings.TrimSpace(string(data[s.names.Identity][s.names.IdentityKey]))
	}
	if len(id.Roots) == 0 {
		return id, fmt.Errorf("secret %s has no %s, by which the management server is verified: copy it from the management cluster's Secret of the same name, or run `meshctl cluster register`", s.names.Root, rootKey)
	}
	return id, nil
}

// Save writes what changed: first the key and certificate, then the roots, last it deletes a registration token that has served.
func (s *identityStore) Save(ctx context.Context, id relay.StoredIdentity) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.put(ctx, s.names.Client, map[string][]byte{certKey: id.ChainPEM, keyKey: id.KeyPEM, pendingKey: id.PendingKey})
	if err != nil {
		return err
	}
	if len(id.Roots) > 0 {
		if err := s.put(ctx, s.names.Root, map[string][]byte{rootKey: id.Roots}); err != nil {
			return err
		}
	}
	if !id.TokenUsed || s.token == "" || id.Token != s.token {
		return nil // not used up, or the shared token, which stays
	}
	if err := s.secrets.Delete(ctx, s.names.Registration, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete the used registration token in secret %s: %w", s.names.Registration, err)
	}
	s.token = ""
	s.wrote(s.names.Registration, nil)
	return nil
}

// put sets keys of a Secret (an empty value removes the key) and leaves its other keys alone. Unchanged is not written.
func (s *identityStore) put(ctx context.Context, name string, set map[string][]byte) error {
	for attempt := 0; ; attempt++ {
		u, err := s.secrets.Get(ctx, name, metav1.GetOptions{})
		missing := apierrors.IsNotFound(err)
		if err != nil && !missing {
			return fmt.Errorf("secret %s: %w", name, err)
		}
		if missing {
			u = &unstructured.Unstructured{Object: map[string]any{
				"apiVersion": "v1", "kind": "Secret", "type": "Opaque",
				"metadata": map[string]any{"name": name, "labels": map[string]any{"app": "gloo-mesh-agent"}},
			}}
		}
		old, err := decode(u)
		if err != nil {
			return err
		}
		next := maps.Clone(old)
		for k, v := range set {
			if next[k] = v; len(v) == 0 {
				delete(next, k)
			}
		}
		if !missing && maps.EqualFunc(old, next, bytes.Equal) {
			s.wrote(name, u)
			return nil
		}
		encode(u, next)
		var written *unstructured.Unstructured
		if missing {
			written, err = s.secrets.Create(ctx, u, metav1.CreateOptions{FieldManager: "gloo-mesh-agent"})
		} else {
			written, err = s.secrets.Update(ctx, u, metav1.UpdateOptions{FieldManager: "gloo-mesh-agent"})
		}
		switch {
		case err == nil:
			s.wrote(name, written)
			return nil
		case (apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err)) && attempt < 5:
		default:
			return fmt.Errorf("secret %s: %w", name, err)
		}
	}
}

// wrote notes what a Secret holds by our own doing. s.mu is held.
func (s *identityStore) wrote(name string, u *unstructured.Unstructured) {
	const enough = 4 // a key, its certificate, a renewal: no watch is that late
	all := append(s.mine[name], content(u))
	s.mine[name] = all[max(0, len(all)-enough):]
}

// foreign reports whether a Secret holds what we neither read nor wrote: somebody replaced it.
func (s *identityStore) foreign(name string, u *unstructured.Unstructured) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	last, read := s.mine[name]
	return read && !slices.Contains(last, content(u))
}

// decode reads a Secret's data.
func decode(u *unstructured.Unstructured) (map[string][]byte, error) {
	out := map[string][]byte{}
	if u == nil {
		return out, nil
	}
	data, _, err := unstructured.NestedStringMap(u.Object, "data")
	if err != nil {
		return nil, fmt.Errorf("secret %s: %w", u.GetName(), err)
	}
	for k, v := range data {
		raw, err := base64.StdEncoding.DecodeString(v)
		if err != nil {
			return nil, fmt.Errorf("secret %s, key %s: %w", u.GetName(), k, err)
		}
		out[k] = raw
	}
	return out, nil
}

func encode(u *unstructured.Unstructured, data map[string][]byte) {
	m := make(map[string]any, len(data))
	for k, v := range data {
		m[k] = base64.StdEncoding.EncodeToString(v)
	}
	u.Object["data"] = m
}

// content tells two states of a Secret's data apart, without keeping the data; empty for none.
func content(u *unstructured.Unstructured) string {
	if u == nil {
		return ""
	}
	return mesh.FingerprintOf([]byte(fmt.Sprint(u.Object["data"]))).String() // fmt prints maps sorted by key
}
