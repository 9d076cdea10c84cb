package ui

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	networkingv2alpha1 "ambitmesh.dev/ambit/api/networking/v2alpha1"
	securityv2 "ambitmesh.dev/ambit/api/security/v2"
)

// World is what the management cluster's API server has, sorted by namespace and name. Objects in it must not be changed.
type World struct {
	Clusters []adminv2.KubernetesCluster
	Trust    []adminv2.RootTrustPolicy
	Policies []securityv2.AccessPolicy
	Segments []networkingv2alpha1.Segment
}

// Read reads a World from a cache.
func Read(ctx context.Context, r client.Reader, namespace string) (*World, error) {
	var clusters adminv2.KubernetesClusterList
	var trust adminv2.RootTrustPolicyList
	var policies securityv2.AccessPolicyList
	var segments networkingv2alpha1.SegmentList
	for _, l := range []struct {
		list client.ObjectList
		opts []client.ListOption
	}{{&clusters, []client.ListOption{client.InNamespace(namespace)}}, {&trust, []client.ListOption{client.InNamespace(namespace)}}, {&policies, nil}, {&segments, nil}} {
		if err := r.List(ctx, l.list, append(l.opts, client.UnsafeDisableDeepCopy)...); err != nil {
			return nil, fmt.Errorf("read what the API server has: %w", err)
		}
	}
	w := &World{Clusters: slices.Clone(clusters.Items), Trust: slices.Clone(trust.Items), Policies: slices.Clone(policies.Items), Segments: slices.Clone(segments.Items)}
	slices.SortFunc(w.Clusters, func(a, b adminv2.KubernetesCluster) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(w.Trust, func(a, b adminv2.RootTrustPolicy) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(w.Policies, func(a, b securityv2.AccessPolicy) int {
		return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name)
	})
	slices.SortFunc(w.Segments, func(a, b networkingv2alpha1.Segment) int {
		return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name)
	})
	return w, nil
}

// Object is a Kubernetes object as a page shows it.
type Object struct {
	Namespace  string            `json:"namespace"`
	Name       string            `json:"name"`
	Labels     map[string]string `json:"labels,omitempty"`
	Created    time.Time         `json:"created"`
	Generation int64             `json:"generation,omitempty"`
	Deleting   bool              `json:"deleting,omitempty"`
}

func objectOf(m *metav1.ObjectMeta) Object {
	return Object{m.Namespace, m.Name, m.Labels, m.CreationTimestamp.UTC(), m.Generation, m.DeletionTimestamp != nil}
}

// Cluster is a row of the page of clusters; one cluster's page has its status whole.
type Cluster struct {
	Object
	Status adminv2.KubernetesClusterStatus `json:"status"`
}

// brief leaves out what a list does not show: of a thousand clusters it would be megabytes.
func brief(k *adminv2.KubernetesCluster) Cluster {
	c := Cluster{objectOf(&k.ObjectMeta), k.Status}
	c.Status.Peers = slices.DeleteFunc(slices.Clone(c.Status.Peers), func(p adminv2.ClusterPeer) bool { return p.Reachable != "False" })
	if c.Status.CaStatus != nil {
		ca := *c.Status.CaStatus
		ca.Istiods, ca.Verifiers = nil, nil
		c.Status.CaStatus = &ca
	}
	return c
}

// TrustPolicy is a RootTrustPolicy with its rotation.
type TrustPolicy struct {
	Object
	Status adminv2.RootTrustPolicyStatus `json:"status"`
}

func trustOf(p *adminv2.RootTrustPolicy) TrustPolicy {
	t := TrustPolicy{objectOf(&p.ObjectMeta), p.Status}
	t.Status.Rotation = nil // the engine's own record
	return t
}

// Policy is an AccessPolicy and how it stands in each cluster; Spec is there on its own page only.
type Policy struct {
	Object
	Spec   *securityv2.AccessPolicySpec  `json:"spec,omitempty"`
	Status securityv2.AccessPolicyStatus `json:"status"`
}

func policyOf(p *securityv2.AccessPolicy) Policy {
	return Policy{Object: objectOf(&p.ObjectMeta), Status: p.Status}
}

// Segment is a global Service and how it stands in each cluster.
type Segment struct {
	Object
	Spec   networkingv2alpha1.SegmentSpec   `json:"spec"`
	Status networkingv2alpha1.SegmentStatus `json:"status"`
}
