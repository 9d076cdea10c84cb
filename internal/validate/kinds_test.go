package validate_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	networkingv2alpha1 "ambitmesh.dev/ambit/api/networking/v2alpha1"
	securityv2 "ambitmesh.dev/ambit/api/security/v2"
	"ambitmesh.dev/ambit/internal/validate"
)

// verdict is what an author hears of a manifest.
type verdict struct {
	Errors, Warnings []string
}

func wrong(lines ...string) verdict    { return verdict{Errors: lines} }
func doubtful(lines ...string) verdict { return verdict{Warnings: lines} }

// judge reads a manifest as the webhook does.
func judge(t *testing.T, manifest string) verdict {
	t.Helper()
	raw, err := yaml.YAMLToJSON([]byte(manifest))
	if err != nil {
		t.Fatal(err)
	}
	var head struct{ Kind string }
	if err := yaml.Unmarshal(raw, &head); err != nil {
		t.Fatal(err)
	}
	o := validate.Options{AdminNamespace: "gloo-mesh"}
	var errs field.ErrorList
	var v verdict
	switch head.Kind {
	case "AccessPolicy":
		p := &securityv2.AccessPolicy{}
		if errs = validate.Decode(raw, p); len(errs) == 0 {
			errs, v.Warnings = validate.AccessPolicy(p, nil, o), validate.WarningsOfAccessPolicy(p, o)
		}
	case "PolicyOverride":
		p := &securityv2.PolicyOverride{}
		if errs = validate.Decode(raw, p); len(errs) == 0 {
			errs, v.Warnings = validate.PolicyOverride(p, nil, o), validate.WarningsOfPolicyOverride(p, o)
		}
	case "Segment":
		p := &networkingv2alpha1.Segment{}
		if errs = validate.Decode(raw, p); len(errs) == 0 {
			errs, v.Warnings = validate.Segment(p, nil, o), validate.WarningsOfSegment(p, o)
		}
	case "Workspace":
		p := &adminv2.Workspace{}
		if errs = validate.Decode(raw, p); len(errs) == 0 {
			errs, v.Warnings = validate.Workspace(p, nil, o), validate.WarningsOfWorkspace(p, o)
		}
	case "WorkspaceSettings":
		p := &adminv2.WorkspaceSettings{}
		if errs = validate.Decode(raw, p); len(errs) == 0 {
			errs, v.Warnings = validate.WorkspaceSettings(p, nil, o), validate.WarningsOfWorkspaceSettings(p, o)
		}
	case "RootTrustPolicy":
		p := &adminv2.RootTrustPolicy{}
		if errs = validate.Decode(raw, p); len(errs) == 0 {
			errs, v.Warnings = validate.RootTrustPolicy(p, nil, o), validate.WarningsOfRootTrustPolicy(p, o)
		}
	case "RotationRequest":
		p := &adminv2.RotationRequest{}
		if errs = validate.Decode(raw, p); len(errs) == 0 {
			errs, v.Warnings = validate.RotationRequest(p, nil, o), validate.WarningsOfRotationRequest(p, o)
		}
	default:
		t.Fatalf("kind %q", head.Kind)
	}
	switch {
	case len(errs) > 0:
		v = verdict{Errors: said(errs)}
	case len(v.Warnings) == 0:
		v = verdict{}
	}
	return v
}

// compare judges each manifest: head and what the case gives, appended.
func compare(t *testing.T, head string, cases map[string]struct {
	rest string
	want verdict
},
) {
	t.Helper()
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			got := judge(t, head+tc.rest)
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}
