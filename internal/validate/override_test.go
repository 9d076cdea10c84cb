package validate_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	securityv2 "ambitmesh.dev/ambit/api/security/v2"
	"ambitmesh.dev/ambit/internal/validate"
)

const overrideHead = `
apiVersion: security.policy.gloo.solo.io/v2
kind: PolicyOverride
metadata: {name: incident, namespace: payments}
`

func TestPolicyOverride(t *testing.T) {
	compare(t, overrideHead, map[string]struct {
		rest string
		want verdict
	}{
		"good":       {`spec: {policyRef: {name: p}, clusters: [cluster-2], reason: "INC-4711, costs $US 5", for: 2h}`, verdict{}},
		"bounds":     {`spec: {policyRef: {name: p, namespace: payments}, clusters: [cluster-2], reason: x, for: 24h0m0s}`, verdict{}},
		"everywhere": {`spec: {policyRef: {name: p}, reason: x, for: 1m}`, doubtful(`spec.clusters: not given: policy "p" is suspended in every cluster`)},
		"nothing given": {`spec: {}`, wrong(
			`spec.policyRef.name: Required value: which AccessPolicy? write policyRef: {name: ...}`,
			`spec.reason: Required value: why? It is what others read at night, such as "INC-4711: 503s after the release"`,
			`spec.for: Required value: for how long? write for: 2h (1m to 24h)`)},
		"blank reason": {`spec: {policyRef: {name: p}, reason: "  ", for: 2h}`, wrong(`spec.reason: Required value: why? It is what others read at night, such as "INC-4711: 503s after the release"`)},
		"left in": {`spec: {policyRef: {name: p}, reason: "${REASON}", for: $FOR}`, wrong(
			`spec.for: Invalid value: "$FOR": the placeholder "$FOR" was left in: run the file through envsubst first (is the variable set?), or write the value`,
			`spec.reason: Invalid value: "${REASON}": the placeholder "${REASON}" was left in: run the file through envsubst first (is the variable set?), or write the value`)},
		"too short":      {`spec: {policyRef: {name: p}, reason: x, for: 59s}`, wrong(`spec.for: Invalid value: "59s": too short: at least 1m`)},
		"negative":       {`spec: {policyRef: {name: p}, reason: x, for: -2h}`, wrong(`spec.for: Invalid value: "-2h0m0s": too short: at least 1m`)},
		"too long":       {`spec: {policyRef: {name: p}, reason: x, for: 24h1s}`, wrong(`spec.for: Invalid value: "24h0m1s": too long: at most 24h. What has to last longer is a change of the policy`)},
		"no unit":        {`spec: {policyRef: {name: p}, reason: x, for: 2}`, wrong(`spec.for: Invalid value: 2: want a duration with its unit: write "90s", "30m" or "2h"`)},
		"days":           {`spec: {policyRef: {name: p}, reason: x, for: 1d}`, wrong(`spec.for: Invalid value: "1d": want hours (h), minutes (m) and seconds (s): a duration has no unit "d", write "24h" for a day`)},
		"words":          {`spec: {policyRef: {name: p}, reason: x, for: 2 hours}`, wrong(`spec.for: Invalid value: "2 hours": want a duration such as "90s", "30m" or "2h"`)},
		"policy by name": {`spec: {policyRef: p, reason: x, for: 2h}`, wrong(`spec.policyRef: Invalid value: "p": want an object: write {name: p}`)},
		"other namespace": {`spec: {policyRef: {name: p, namespace: billing}, clusters: [a], reason: x, for: 2h}`, wrong(
			`spec.policyRef.namespace: Invalid value: "billing": create the lease in namespace "billing", where the policy is (or in "gloo-mesh"): who may create leases in "payments" decides over its policies only`)},
		"clusters": {`spec: {policyRef: {name: p}, clusters: ["*", prod_eu, "", a, a], reason: x, for: 2h}`, wrong(
			`spec.clusters[0]: Invalid value: "*": no wildcards here, the name of one cluster is wanted: leave clusters out for every one`,
			`spec.clusters[1]: Invalid value: "prod_eu": no cluster has this name: want lower-case letters, digits and '-', beginning and ending with a letter or digit`,
			`spec.clusters[2]: Required value: write the name of a cluster, or leave clusters out for every one`,
			`spec.clusters[4]: Duplicate value: "a"`)},
		"one cluster": {`spec: {policyRef: {name: p}, clusters: a, reason: x, for: 2h}`, wrong(`spec.clusters: Invalid value: "a": want a list: begin each entry with '- '`)},
	})
	admin := judge(t, strings.Replace(overrideHead, "namespace: payments", "namespace: gloo-mesh", 1)+`spec: {policyRef: {name: p, namespace: billing}, clusters: [a], reason: x, for: 2h}`)
	if diff := cmp.Diff(verdict{}, admin); diff != "" {
		t.Errorf("a lease in the admin namespace is for any policy: %s", diff)
	}
}

func TestPolicyOverrideIsImmutable(t *testing.T) {
	lease := func(change func(*securityv2.PolicyOverride)) *securityv2.PolicyOverride {
		o := &securityv2.PolicyOverride{ObjectMeta: metav1.ObjectMeta{Name: "incident", Namespace: "payments"}, Spec: securityv2.PolicyOverrideSpec{
			PolicyRef: securityv2.PolicyRef{Name: "p"}, Clusters: []string{"a"}, Reason: "x", For: metav1.Duration{Duration: time.Hour},
		}}
		change(o)
		return o
	}
	old, want := lease(func(*securityv2.PolicyOverride) {}), []string{`spec: Forbidden: a lease can't be changed, so that the record stays true: delete it and create another`}
	for name, change := range map[string]func(*securityv2.PolicyOverride){
		"policy":   func(o *securityv2.PolicyOverride) { o.Spec.PolicyRef.Name = "q" },
		"clusters": func(o *securityv2.PolicyOverride) { o.Spec.Clusters = nil },
		"reason":   func(o *securityv2.PolicyOverride) { o.Spec.Reason = "y" },
		"for":      func(o *securityv2.PolicyOverride) { o.Spec.For.Duration++ },
	} {
		if diff := cmp.Diff(want, said(validate.PolicyOverride(lease(change), old, validate.Options{}))); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	if diff := cmp.Diff([]string{}, said(validate.PolicyOverride(lease(func(o *securityv2.PolicyOverride) { o.Labels = map[string]string{"a": "b"} }), old, validate.Options{}))); diff != "" {
		t.Error(diff)
	}
}
