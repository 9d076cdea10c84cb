package downward

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The cases are those of third_party/forked/golang/expansion in Kubernetes.
func TestExpand(t *testing.T) {
	vars := map[string]string{"VAR_A": "A", "VAR_B": "B", "VAR_C": "C", "VAR_REF": "$(VAR_A)", "VAR_EMPTY": ""}
	for in, want := range map[string]string{
		"$(VAR_A)":              "A",
		"___$(VAR_B)___":        "___B___",
		"$(VAR_A)_$(VAR_B)":     "A_B",
		"$(VAR_REF)":            "$(VAR_A)",
		"$$(VAR_A)":             "$(VAR_A)",
		"$$$(VAR_A)":            "$A",
		"$$$$$(VAR_A)":          "$$A",
		"$(VAR_MISSING)":        "$(VAR_MISSING)",
		"f00-$(VAR_EMPTY)-bar":  "f00--bar",
		"$VAR_A":                "$VAR_A",
		"$(VAR_A":               "$(VAR_A",
		"$(":                    "$(",
		"$":                     "$",
		"foo$":                  "foo$",
		"$()":                   "$()",
		"--domain=$(X).$(VAR_C": "--domain=$(X).$(VAR_C",
		"\n$(VAR_A)\n":          "\nA\n",
		"$?$(VAR_A)":            "$?A",
	} {
		if got := Expand(in, vars); got != want {
			t.Errorf("Expand(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestField(t *testing.T) {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "n", Namespace: "ns", UID: "u", Labels: map[string]string{"app": "a", "b": `q"`}, Annotations: map[string]string{"x/y": "z"}},
		Spec:       corev1.PodSpec{NodeName: "node", ServiceAccountName: "sa"},
		Status:     corev1.PodStatus{PodIP: "10.10.1.1", HostIP: "10.10.0.1", PodIPs: []corev1.PodIP{{IP: "10.10.1.1"}}},
	}
	for path, want := range map[string]string{
		"metadata.name": "n", "metadata.namespace": "ns", "metadata.uid": "u", "spec.nodeName": "node", "spec.serviceAccountName": "sa",
		"status.podIP": "10.10.1.1", "status.podIPs": "10.10.1.1", "status.hostIP": "10.10.0.1",
		"metadata.labels": "app=\"a\"\nb=\"q\\\"\"", "metadata.labels['app']": "a", "metadata.annotations['x/y']": "z", "metadata.labels['none']": "",
	} {
		if got, err := Field(pod, path); got != want || err != nil {
			t.Errorf("Field(%s) = %q, %v; want %q", path, got, err, want)
		}
	}
	for _, path := range []string{"metadata.generation", "status.phase", "spec.x['y']"} {
		if _, err := Field(pod, path); err == nil {
			t.Errorf("Field(%s) succeeded", path)
		}
	}
}

func TestResource(t *testing.T) {
	pod := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Resources: corev1.ResourceRequirements{
		Limits:   corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1500m"), corev1.ResourceMemory: resource.MustParse("100Mi")},
		Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("250m")},
	}}, {Name: "free"}}}}
	for _, c := range []struct{ container, resource, divisor, want string }{
		{"c", "limits.cpu", "", "2"},
		{"c", "limits.cpu", "1m", "1500"},
		{"c", "requests.cpu", "1", "1"},
		{"c", "limits.memory", "", "104857600"},
		{"c", "limits.memory", "1Mi", "100"},
		{"c", "requests.memory", "", "0"},
		{"free", "limits.cpu", "", "4"},
	} {
		ref := &corev1.ResourceFieldSelector{Resource: c.resource}
		if c.divisor != "" {
			ref.Divisor = resource.MustParse(c.divisor)
		}
		if got, err := Resource(pod, c.container, ref); got != c.want || err != nil {
			t.Errorf("%s of %s in %s: %q, %v; want %q", c.resource, c.container, c.divisor, got, err, c.want)
		}
	}
}
