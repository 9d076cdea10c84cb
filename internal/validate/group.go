package validate

import (
	"fmt"
	"strings"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	issuancev2 "ambitmesh.dev/ambit/api/issuance/v2"
	securityv2 "ambitmesh.dev/ambit/api/security/v2"
)

// served says in which group each of our kinds is.
func served() map[string]string {
	admin, security, issuance := adminv2.GroupVersion().String(), securityv2.GroupVersion().String(), issuancev2.GroupVersion().String()
	return map[string]string{
		"KubernetesCluster": admin, "Workspace": admin, "WorkspaceSettings": admin, "RootTrustPolicy": admin, "RotationRequest": admin,
		"AccessPolicy": security, "PolicyOverride": security,
		"IssuedCertificate": issuance, "PodBounceDirective": issuance,
	}
}

// Group answers for the apiVersion and kind of a document: what was probably meant, in a sentence, or "" when there is nothing to say
// (it is one of ours as it should be, or none of ours).
func Group(apiVersion, kind string) string {
	kinds := served()
	group, _, _ := strings.Cut(apiVersion, "/")
	if want, ok := kinds[kind]; ok {
		switch {
		case apiVersion == want:
			return ""
		case group == "policy.kagent-enterprise.solo.io":
			return "" // another family's AccessPolicy, for agents behind waypoints
		}
		return fmt.Sprintf("apiVersion %q has no %s: write %q", apiVersion, kind, want)
	}
	if now, ok := preGAKinds()[kind]; ok && strings.HasSuffix(group, "solo.io") {
		return fmt.Sprintf("%s %s is of an older release: %s", apiVersion, kind, now)
	}
	inGroup := false
	for _, gv := range kinds {
		inGroup = inGroup || gv == apiVersion
	}
	now, older := preGA()[apiVersion]
	if !inGroup && !older {
		return ""
	}
	if best, ok := Nearest(kind, sorted(kinds)); ok {
		return fmt.Sprintf("%s has no kind %q: did you mean %q? (apiVersion: %s)", apiVersion, kind, best, kinds[best])
	}
	if older {
		return fmt.Sprintf("apiVersion %q is of an older release: today it is %q", apiVersion, now)
	}
	return ""
}

// preGAKinds are kinds of older releases, with what does their work today.
func preGAKinds() map[string]string {
	return map[string]string{
		"VirtualMesh":      "write a Workspace and WorkspaceSettings (admin.gloo.solo.io/v2)",
		"TrafficTarget":    "write an AccessPolicy (security.policy.gloo.solo.io/v2)",
		"MeshServiceGroup": "write a Workspace (admin.gloo.solo.io/v2)",
		"MeshRoleBinding":  "use the RBAC of the management cluster, and Workspaces (admin.gloo.solo.io/v2)",
	}
}

// preGA maps groups and versions of older releases, still found in published YAML, to today's.
func preGA() map[string]string {
	return map[string]string{
		"security.gloo.solo.io/v2":                        "security.policy.gloo.solo.io/v2",
		"admin.gloo.solo.io/v1":                           "admin.gloo.solo.io/v2",
		"admin.enterprise.mesh.gloo.solo.io/v1":           "admin.gloo.solo.io/v2",
		"multicluster.solo.io/v1alpha1":                   "admin.gloo.solo.io/v2",
		"security.gloo.solo.io/v1":                        "security.policy.gloo.solo.io/v2",
		"policy.gloo.solo.io/v2":                          "security.policy.gloo.solo.io/v2",
		"networking.mesh.gloo.solo.io/v1":                 "security.policy.gloo.solo.io/v2",
		"networking.enterprise.mesh.gloo.solo.io/v1beta1": "security.policy.gloo.solo.io/v2",
		"discovery.mesh.gloo.solo.io/v1":                  "admin.gloo.solo.io/v2",
	}
}

// APIVersion answers for an apiVersion the API server does not know: the one that was probably meant, or "".
func APIVersion(given string, served []string) string {
	if now, ok := preGA()[given]; ok {
		return now
	}
	group, _, _ := strings.Cut(given, "/")
	for _, s := range served {
		if g, _, _ := strings.Cut(s, "/"); g == group {
			return s
		}
	}
	best, _ := Nearest(given, served)
	return best
}
