package admission_test

import (
	stderrors "errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Every write to our kinds is on record, as what it was, and one that can't be recorded is refused.
func TestWritesAreOnRecord(t *testing.T) {
	w := start(t)
	jane, mallory := w.as(t, "jane.doe@bank.example.com"), w.as(t, "mallory")
	said := func(want ...string) {
		t.Helper()
		w.mu.Lock()
		defer w.mu.Unlock()
		var got []string
		for _, r := range w.records {
			line := fmt.Sprintf("%s %s %s %s %s groups=%d", r.Act, r.User, r.Operation, r.Object, r.Cluster, len(r.Groups))
			if r.DryRun {
				line += " dry run"
			}
			for _, c := range r.Diff {
				if !strings.HasPrefix(c.Path, "metadata.annotations") {
					line += fmt.Sprintf(" %s:%v>%v", c.Path, c.Old != nil, c.New != nil)
				}
			}
			got = append(got, line)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s", diff)
		}
		w.records = nil
	}
	w.mu.Lock()
	w.records = nil // of start
	w.mu.Unlock()

	kc := cluster("prod-eu-west-3")
	if err := jane.Create(t.Context(), kc); err != nil {
		t.Fatal(err)
	}
	said("write.admitted jane.doe@bank.example.com CREATE KubernetesCluster gloo-mesh/prod-eu-west-3 prod-eu-west-3 groups=2 metadata:false>true spec:false>true")

	kc.Spec.ClusterDomain = "eu.example.com"
	if err := jane.Update(t.Context(), kc.DeepCopy(), client.DryRunAll); err != nil {
		t.Fatal(err)
	}
	said("write.admitted jane.doe@bank.example.com UPDATE KubernetesCluster gloo-mesh/prod-eu-west-3 prod-eu-west-3 groups=2 dry run spec.clusterDomain:true>true")

	if err := jane.Update(t.Context(), kc); err != nil {
		t.Fatal(err)
	}
	kc.Spec.ClusterDomain = "no domain"
	if err := mallory.Update(t.Context(), kc.DeepCopy()); !errors.IsInvalid(err) {
		t.Fatalf("want a refusal, got %v", err)
	}
	said(
		"write.admitted jane.doe@bank.example.com UPDATE KubernetesCluster gloo-mesh/prod-eu-west-3 prod-eu-west-3 groups=2 spec.clusterDomain:true>true",
		"write.refused mallory UPDATE KubernetesCluster gloo-mesh/prod-eu-west-3 prod-eu-west-3 groups=2 spec.clusterDomain:true>true")

	if err := w.admin.Get(t.Context(), client.ObjectKeyFromObject(kc), kc); err != nil {
		t.Fatal(err)
	}
	if err := jane.Update(t.Context(), kc.DeepCopy()); err != nil { // changes nothing
		t.Fatal(err)
	}
	said()

	w.mu.Lock()
	w.full = stderrors.New("no space left on device")
	w.mu.Unlock()
	for what, err := range map[string]error{"create": jane.Create(t.Context(), cluster("another")), "delete": jane.Delete(t.Context(), cluster("prod-eu-west-3"))} {
		if !errors.IsServiceUnavailable(err) || !strings.Contains(err.Error(), "no space left on device") {
			t.Errorf("%s without a record: %v", what, err)
		}
	}
	if err := jane.Get(t.Context(), client.ObjectKeyFromObject(kc), kc); err != nil {
		t.Errorf("reads go on: %v", err)
	}
	w.mu.Lock()
	w.full = nil
	w.mu.Unlock()
	if err := mallory.Delete(t.Context(), kc); err != nil {
		t.Fatal(err)
	}
	said("write.admitted mallory DELETE KubernetesCluster gloo-mesh/prod-eu-west-3 prod-eu-west-3 groups=2 metadata:true>false spec:true>false")
}
