package translate

import (
	"encoding/json"
	"fmt"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
)

// MembershipName is the ConfigMap by which a cluster can tell that it is a member, of what, and since when.
const MembershipName = "ambit-membership"

// configMap is the part of core/v1 ConfigMap we write; its JSON has no empty fields, so a re-encoding changes nothing.
type configMap struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Metadata   objectMeta        `json:"metadata"`
	Data       map[string]string `json:"data,omitempty"`
}

type objectMeta struct {
	Name        string            `json:"name"`
	Namespace   string            `json:"namespace,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// memberKey is all that a cluster's ConfigMap is made of.
type memberKey struct {
	cluster       mesh.ClusterName
	source        mesh.Ref
	by, at        string
	version       string
	admin, parent string
}

func memberOf(s *mesh.Snapshot, c *mesh.Cluster) memberKey {
	k := memberKey{cluster: c.Name, source: c.Source, by: c.RegisteredBy, version: s.ServerVersion, admin: s.AdminNamespace, parent: s.ManagementCluster}
	if !c.RegisteredAt.IsZero() {
		k.at = c.RegisteredAt.UTC().Format(time.RFC3339)
	}
	return k
}

func (k memberKey) ref() mesh.Ref {
	return mesh.Ref{Version: "v1", Kind: "ConfigMap", Namespace: k.admin, Name: MembershipName}
}

// object is the ConfigMap.
func (k memberKey) object() (mesh.Object, error) {
	data := map[string]string{"cluster": string(k.cluster), "managementServerVersion": k.version}
	if k.by != "" {
		data["registeredBy"] = k.by
	}
	if k.at != "" {
		data["registeredAt"] = k.at
	}
	ref := k.ref()
	raw, err := json.Marshal(configMap{
		APIVersion: "v1", Kind: "ConfigMap", Metadata: objectMeta{Name: ref.Name, Namespace: ref.Namespace, Labels: labels(k.cluster, k.source, k.parent)}, Data: data,
	})
	if err != nil {
		return mesh.Object{}, fmt.Errorf("cluster %q: encode %s: %w", k.cluster, ref, err)
	}
	return mesh.Object{Ref: ref, Manifest: raw, Hash: mesh.FingerprintOf(raw)}, nil
}

// membership: every valid KubernetesCluster becomes one ConfigMap in its own cluster. This is what is to be said of them.
func membership(s *mesh.Snapshot) map[mesh.Ref][]mesh.Condition {
	out := make(map[mesh.Ref][]mesh.Condition, len(s.Clusters))
	for i := range s.Clusters {
		c := &s.Clusters[i]
		one := mesh.Condition{Type: "Accepted", Status: mesh.True, Reason: "Valid", Message: "the cluster is registered"}
		if c.Invalid != "" {
			one = mesh.Condition{Type: "Accepted", Status: mesh.False, Reason: "Invalid", Message: c.Invalid}
		}
		out[c.Source] = append(out[c.Source], one)
	}
	return out
}
