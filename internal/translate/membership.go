package translate

import (
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

// membership: every valid KubernetesCluster becomes one ConfigMap in its own cluster.
func membership(s *mesh.Snapshot, r *Result) error {
	for i := range s.Clusters {
		c := &s.Clusters[i]
		if c.Invalid != "" {
			r.Conditions[c.Source] = append(r.Conditions[c.Source], mesh.Condition{Type: "Accepted", Status: mesh.False, Reason: "Invalid", Message: c.Invalid})
			continue
		}
		r.Conditions[c.Source] = append(r.Conditions[c.Source], mesh.Condition{Type: "Accepted", Status: mesh.True, Reason: "Valid", Message: "the cluster is registered"})
		data := map[string]string{"cluster": string(c.Name), "managementServerVersion": s.ServerVersion}
		if c.RegisteredBy != "" {
			data["registeredBy"] = c.RegisteredBy
		}
		if !c.RegisteredAt.IsZero() {
			data["registeredAt"] = c.RegisteredAt.UTC().Format(time.RFC3339)
		}
		ref := mesh.Ref{Version: "v1", Kind: "ConfigMap", Namespace: s.AdminNamespace, Name: MembershipName}
		err := r.add(c.Name, ref, configMap{
			APIVersion: "v1", Kind: "ConfigMap",
			Metadata: objectMeta{Name: ref.Name, Namespace: ref.Namespace, Labels: labels(c.Name, c.Source, s.ManagementCluster)},
			Data:     data,
		})
		if err != nil {
			return err
		}
	}
	return nil
}
