package validate_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/validate"
	"ambitmesh.dev/ambit/test/golist"
)

func TestPure(t *testing.T) { golist.Pure(t) }

// said renders errors as people see them: the whole text is the contract here, so tests compare it whole.
func said(errs field.ErrorList) []string {
	out := []string{}
	for _, e := range errs {
		out = append(out, e.Error())
	}
	return out
}

func cluster(name string, change ...func(*adminv2.KubernetesCluster)) *adminv2.KubernetesCluster {
	c := &adminv2.KubernetesCluster{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "gloo-mesh"}, Spec: adminv2.KubernetesClusterSpec{ClusterDomain: "cluster.local"}}
	for _, f := range change {
		f(c)
	}
	return c
}

func domain(d string) func(*adminv2.KubernetesCluster) {
	return func(c *adminv2.KubernetesCluster) { c.Spec.ClusterDomain = d }
}

func by(who string) func(*adminv2.KubernetesCluster) {
	return func(c *adminv2.KubernetesCluster) {
		c.Annotations = map[string]string{adminv2.AnnotationRegisteredBy: who}
	}
}

func TestKubernetesCluster(t *testing.T) {
	long := strings.Repeat("x", 64)
	for name, tc := range map[string]struct {
		new, old *adminv2.KubernetesCluster
		want     []string
	}{
		"the page's":      {new: cluster("prod-eu-west-3"), want: []string{}},
		"empty domain":    {new: cluster("a", domain("")), want: []string{}},
		"underscore":      {new: cluster("prod_eu"), want: []string{`metadata.name: Invalid value: "prod_eu": cluster name "prod_eu": want lower-case letters, digits and '-', beginning and ending with a letter or digit (no '_' or '.'), because it becomes a DNS name in the agent's certificate`}},
		"dot":             {new: cluster("prod.eu"), want: []string{`metadata.name: Invalid value: "prod.eu": cluster name "prod.eu": want lower-case letters, digits and '-', beginning and ending with a letter or digit (no '_' or '.'), because it becomes a DNS name in the agent's certificate`}},
		"long name":       {new: cluster(long), want: []string{fmt.Sprintf("metadata.name: Invalid value: %q: cluster name %q has 64 characters: at most 63, because it becomes a DNS name in the agent's certificate", long, long)}},
		"other namespace": {new: cluster("a", func(c *adminv2.KubernetesCluster) { c.Namespace = "default" }), want: []string{`metadata.namespace: Invalid value: "default": create it in namespace "gloo-mesh": the management server reads KubernetesClusters of its admin namespace only`}},
		"upper case":      {new: cluster("a", domain("Cluster.Local")), want: []string{`spec.clusterDomain: Invalid value: "Cluster.Local": write it in lower case: "cluster.local"`}},
		"spaces":          {new: cluster("a", domain("not a domain")), want: []string{`spec.clusterDomain: Invalid value: "not a domain": the part "not a domain" may have only lower-case letters, digits and '-', beginning and ending with a letter or digit, as in "cluster.local"`}},
		"URL":             {new: cluster("a", domain("https://cluster.local")), want: []string{`spec.clusterDomain: Invalid value: "https://cluster.local": want a DNS domain such as "cluster.local", not a URL`}},
		"final dot":       {new: cluster("a", domain("cluster.local.")), want: []string{`spec.clusterDomain: Invalid value: "cluster.local.": leave the final '.' out: "cluster.local"`}},
		"svc":             {new: cluster("a", domain("svc.cluster.local")), want: []string{`spec.clusterDomain: Invalid value: "svc.cluster.local": leave "svc." out: want the domain itself, "cluster.local"`}},
		"two dots":        {new: cluster("a", domain("a..b")), want: []string{`spec.clusterDomain: Invalid value: "a..b": it has two '.' in a row: remove one`}},
		"same annotation": {new: cluster("a", by("jane")), old: cluster("a", by("jane")), want: []string{}},
		"forged registrar": {new: cluster("a", by("mallory")), old: cluster("a", by("jane")), want: []string{
			`metadata.annotations[admin.gloo.solo.io/registered-by]: Forbidden: it records who registered the cluster and can't be changed (was "jane", would be "mallory"): leave it as it is, or leave it out`,
		}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, said(validate.KubernetesCluster(tc.new, tc.old, validate.Options{AdminNamespace: "gloo-mesh"}))); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestDecode(t *testing.T) {
	for name, tc := range map[string]struct {
		spec string // what follows the metadata
		want []string
	}{
		"good":          {`"spec":{"clusterDomain":"cluster.local","skipWarming":true},"status":{"anything":1}`, []string{}},
		"misspelt":      {`"spec":{"clusterDomian":"cluster.local"}`, []string{`spec.clusterDomian: Forbidden: unknown field: did you mean "clusterDomain"?`}},
		"case":          {`"spec":{"clusterdomain":"cluster.local"}`, []string{`spec.clusterdomain: Forbidden: unknown field: did you mean "clusterDomain"?`}},
		"two":           {`"spec":{"skipWarmin":true,"clusterDomin":"x"}`, []string{`spec.clusterDomin: Forbidden: unknown field: did you mean "clusterDomain"?`, `spec.skipWarmin: Forbidden: unknown field: did you mean "skipWarming"?`}},
		"indentation":   {`"clusterDomain":"x"`, []string{`clusterDomain: Forbidden: unknown field here: did you mean "clusterDomain" inside "spec"? (indent it further)`}},
		"spce":          {`"spce":{}`, []string{`spce: Forbidden: unknown field: did you mean "spec"?`}},
		"nothing near":  {`"spec":{"network":"n"}`, []string{`spec.network: Forbidden: unknown field: KubernetesCluster has clusterDomain, skipWarming`}},
		"quoted bool":   {`"spec":{"skipWarming":"true"}`, []string{`spec.skipWarming: Invalid value: "true": want a boolean: write true without quotes`}},
		"number":        {`"spec":{"clusterDomain":7}`, []string{`spec.clusterDomain: Invalid value: 7: want a string: put it in quotes`}},
		"spec a string": {`"spec":"x"`, []string{`spec: Invalid value: "x": want an object (clusterDomain, skipWarming)`}},
		"null":          {`"spec":null`, []string{}},
	} {
		t.Run(name, func(t *testing.T) {
			raw := `{"apiVersion":"admin.gloo.solo.io/v2","kind":"KubernetesCluster","metadata":{"name":"a","unknown":"is the API server's business"},` + tc.spec + `}`
			var c adminv2.KubernetesCluster
			if diff := cmp.Diff(tc.want, said(validate.Decode([]byte(raw), &c))); diff != "" {
				t.Error(diff)
			}
			if len(tc.want) == 0 && c.Name != "a" {
				t.Errorf("not decoded: %+v", c)
			}
		})
	}
}

func TestNearest(t *testing.T) {
	words := []string{"clusterDomain", "exportTo", "importFrom", "name", "selector", "serviceIsolation"}
	for in, want := range map[string]string{"exportTpo": "exportTo", "selctor": "selector", "NAME": "name", "nmae": "name", "zone": "", "x": "", "": "", "clusterDomainName": "clusterDomain"} {
		if got, _ := validate.Nearest(in, words); got != want {
			t.Errorf("Nearest(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestAPIVersion(t *testing.T) {
	served := []string{"admin.gloo.solo.io/v2", "security.policy.gloo.solo.io/v2"}
	for in, want := range map[string]string{
		"security.gloo.solo.io/v2": "security.policy.gloo.solo.io/v2", "admin.gloo.solo.io/v2alpha1": "admin.gloo.solo.io/v2",
		"admin.glo.solo.io/v2": "admin.gloo.solo.io/v2", "apps/v1": "",
	} {
		if got := validate.APIVersion(in, served); got != want {
			t.Errorf("APIVersion(%q) = %q, want %q", in, got, want)
		}
	}
}
