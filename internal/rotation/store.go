package rotation

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/trust"
)

// Names of the ConfigMaps that hold certificates: one for each cluster, one for each policy.
const (
	storeLabel    = "trust.gloo.solo.io/record" // "cluster" or "policy"
	clusterPrefix = "trust-cluster-"
	policyPrefix  = "trust-policy-"
	storeKey      = "record.json"
)

// clusterRecord is what is kept of a cluster: certificates, no key.
type clusterRecord struct {
	Issued map[string]trust.Issued `json:"issued,omitempty"` // by slot
	Kept   *trust.Kept             `json:"kept,omitempty"`
}

// policyRecord is what is kept of a policy: who issues under each root that is still of use, which intermediates are revoked, and the lists that say so, by root.
type policyRecord struct {
	Roots   []rootRecord              `json:"roots,omitempty"`
	Revoked []revocation              `json:"revoked,omitempty"`
	Lists   map[mesh.Fingerprint]list `json:"lists,omitempty"`
}

// rootRecord is a root and the configuration, as it was then, by which more can be issued under it.
type rootRecord struct {
	trust.Root
	By mesh.Authority `json:"by"`
}

// store keeps records in ConfigMaps of the admin namespace, and in memory what they hold. Safe for concurrent use.
type store struct {
	client    client.Client
	namespace string

	mu       sync.Mutex
	clusters map[mesh.ClusterName]clusterRecord
	policies map[string]policyRecord
	versions map[string]string // resourceVersion by name of the ConfigMap
}

func newStore(c client.Client, namespace string) *store {
	return &store{client: c, namespace: namespace, clusters: map[mesh.ClusterName]clusterRecord{}, policies: map[string]policyRecord{}, versions: map[string]string{}}
}

// load reads everything. A record that can't be read is an error: to go on without it would be to forget certificates that are in use.
func (s *store) load(ctx context.Context) error {
	var list corev1.ConfigMapList
	if err := s.client.List(ctx, &list, client.InNamespace(s.namespace), client.HasLabels{storeLabel}); err != nil {
		return fmt.Errorf("list records of trust: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range list.Items {
		cm := &list.Items[i]
		var err error
		if name, ok := strings.CutPrefix(cm.Name, clusterPrefix); ok {
			var r clusterRecord
			err = json.Unmarshal([]byte(cm.Data[storeKey]), &r)
			s.clusters[mesh.ClusterName(name)] = r
		} else if name, ok := strings.CutPrefix(cm.Name, policyPrefix); ok {
			var r policyRecord
			err = json.Unmarshal([]byte(cm.Data[storeKey]), &r)
			s.policies[name] = r
		}
		if err != nil {
			return fmt.Errorf("ConfigMap %s/%s, key %s: %w (restore it from a backup; without it the server does not know which certificates are in use)", s.namespace, cm.Name, storeKey, err)
		}
		s.versions[cm.Name] = cm.ResourceVersion
	}
	return nil
}

// cluster is the record of a cluster. It must not be changed.
func (s *store) cluster(c mesh.ClusterName) clusterRecord {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.clusters[c]
}

// policy is the record of a policy. It must not be changed.
func (s *store) policy(name string) policyRecord {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.policies[name]
}

// issue adds a certificate for a slot.
func (s *store) issue(ctx context.Context, c mesh.ClusterName, slot string, cert trust.Issued) error {
	return s.changeCluster(ctx, c, func(r *clusterRecord) {
		r.Issued = maps.Clone(r.Issued)
		if r.Issued == nil {
			r.Issued = map[string]trust.Issued{}
		}
		r.Issued[slot] = cert
	})
}

// keep stores what a cluster came with.
func (s *store) keep(ctx context.Context, c mesh.ClusterName, k trust.Kept) error {
	return s.changeCluster(ctx, c, func(r *clusterRecord) { r.Kept = &k })
}

func (s *store) changeCluster(ctx context.Context, c mesh.ClusterName, change func(*clusterRecord)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := s.clusters[c]
	change(&next)
	if err := s.write(ctx, clusterPrefix+string(c), "cluster", next); err != nil {
		return fmt.Errorf("cluster %q: %w", c, err)
	}
	s.clusters[c] = next
	return nil
}

// setPolicy stores the roots of a policy's record; they are asked for beside the rounds, in which the rest changes.
func (s *store) setPolicy(ctx context.Context, name string, r policyRecord) error {
	return s.changePolicy(ctx, name, func(p *policyRecord) { p.Roots = r.Roots })
}

// changePolicy changes the record of a policy. What it holds must be replaced, not changed.
func (s *store) changePolicy(ctx context.Context, name string, change func(*policyRecord)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := s.policies[name]
	change(&next)
	if err := s.write(ctx, policyPrefix+name, "policy", next); err != nil {
		return fmt.Errorf("policy %q: %w", name, err)
	}
	s.policies[name] = next
	return nil
}

// forget drops the record of a deregistered cluster.
func (s *store) forget(ctx context.Context, c mesh.ClusterName) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := clusterPrefix + string(c)
	if _, has := s.versions[name]; !has {
		return nil
	}
	err := s.client.Delete(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: name}})
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("cluster %q: delete record of trust: %w", c, err)
	}
	delete(s.versions, name)
	delete(s.clusters, c)
	return nil
}

// names are the clusters with a record.
func (s *store) names() []mesh.ClusterName {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []mesh.ClusterName
	for c := range s.clusters {
		out = append(out, c)
	}
	return out
}

// write makes a ConfigMap hold v. Somebody else's change since it was read is a conflict: the caller's round fails, and the server reads all anew. s.mu is held.
func (s *store) write(ctx context.Context, name, kind string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode record: %w", err)
	}
	cm := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: name, ResourceVersion: s.versions[name], Labels: map[string]string{storeLabel: kind}},
		Data:       map[string]string{storeKey: string(raw)},
	}
	if cm.ResourceVersion == "" {
		err = s.client.Create(ctx, cm)
	} else {
		err = s.client.Update(ctx, cm)
	}
	if apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) || apierrors.IsNotFound(err) {
		return fmt.Errorf("%w: ConfigMap %s/%s: %w", errStale, s.namespace, name, err)
	}
	if err != nil {
		return fmt.Errorf("write ConfigMap %s/%s: %w", s.namespace, name, err)
	}
	s.versions[name] = cm.ResourceVersion
	return nil
}
