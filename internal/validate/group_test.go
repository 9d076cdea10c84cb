package validate_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"ambitmesh.dev/ambit/internal/validate"
)

func TestGroup(t *testing.T) {
	for in, want := range map[[2]string]string{
		{"security.policy.gloo.solo.io/v2", "AccessPolicy"}:           "",
		{"admin.gloo.solo.io/v2", "WorkspaceSettings"}:                "",
		{"security.gloo.solo.io/v2", "AccessPolicy"}:                  `apiVersion "security.gloo.solo.io/v2" has no AccessPolicy: write "security.policy.gloo.solo.io/v2"`,
		{"admin.gloo.solo.io/v2", "AccessPolicy"}:                     `apiVersion "admin.gloo.solo.io/v2" has no AccessPolicy: write "security.policy.gloo.solo.io/v2"`,
		{"networking.mesh.gloo.solo.io/v1", "AccessPolicy"}:           `apiVersion "networking.mesh.gloo.solo.io/v1" has no AccessPolicy: write "security.policy.gloo.solo.io/v2"`,
		{"security.policy.gloo.solo.io/v1", "AccessPolicy"}:           `apiVersion "security.policy.gloo.solo.io/v1" has no AccessPolicy: write "security.policy.gloo.solo.io/v2"`,
		{"policy.kagent-enterprise.solo.io/v1alpha1", "AccessPolicy"}: "",
		{"security.policy.gloo.solo.io/v2", "AccesPolicy"}:            `security.policy.gloo.solo.io/v2 has no kind "AccesPolicy": did you mean "AccessPolicy"? (apiVersion: security.policy.gloo.solo.io/v2)`,
		{"admin.gloo.solo.io/v2", "Workspaces"}:                       `admin.gloo.solo.io/v2 has no kind "Workspaces": did you mean "Workspace"? (apiVersion: admin.gloo.solo.io/v2)`,
		{"networking.mesh.gloo.solo.io/v1", "VirtualMesh"}:            `networking.mesh.gloo.solo.io/v1 VirtualMesh is of an older release: write a Workspace and WorkspaceSettings (admin.gloo.solo.io/v2)`,
		{"security.gloo.solo.io/v2", "WAFPolicy"}:                     `apiVersion "security.gloo.solo.io/v2" is of an older release: today it is "security.policy.gloo.solo.io/v2"`,
		{"admin.gloo.solo.io/v2", "RootTrustPolicy"}:                  "",
		{"admin.gloo.solo.io/v2", "RootTrustPolcy"}:                   `admin.gloo.solo.io/v2 has no kind "RootTrustPolcy": did you mean "RootTrustPolicy"? (apiVersion: admin.gloo.solo.io/v2)`,
		{"security.policy.gloo.solo.io/v2", "RootTrustPolicy"}:        `apiVersion "security.policy.gloo.solo.io/v2" has no RootTrustPolicy: write "admin.gloo.solo.io/v2"`,
		{"cert-manager.io/v1", "CertificateRequest"}:                  "",
		{"apps/v1", "Deployment"}:                                     "",
		{"v1", "Namespace"}:                                           "",
	} {
		if diff := cmp.Diff(want, validate.Group(in[0], in[1])); diff != "" {
			t.Errorf("Group(%q, %q): %s", in[0], in[1], diff)
		}
	}
}
