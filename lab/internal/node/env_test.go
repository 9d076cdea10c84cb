package node

import (
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// config is a configSource in memory.
type config struct {
	secrets map[string]map[string][]byte
	maps    map[string]map[string]string
}

func (c config) Secret(_, name string) (*corev1.Secret, error) {
	if d, ok := c.secrets[name]; ok {
		return &corev1.Secret{Data: d}, nil
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "secrets"}, name)
}

func (c config) ConfigMap(_, name string) (*corev1.ConfigMap, error) {
	if d, ok := c.maps[name]; ok {
		return &corev1.ConfigMap{Data: d}, nil
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "configmaps"}, name)
}

func TestEnvironment(t *testing.T) {
	yes := true
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "pod-1", Namespace: "ns"}, Status: corev1.PodStatus{PodIP: "10.10.1.1"}}
	ref := corev1.LocalObjectReference{Name: "c"}
	c := &corev1.Container{
		Name:      "main",
		Resources: corev1.ResourceRequirements{Limits: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("64Mi")}},
		EnvFrom: []corev1.EnvFromSource{
			{Prefix: "P_", ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: ref}},
			{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "none"}, Optional: &yes}},
		},
		Env: []corev1.EnvVar{
			{Name: "A", Value: "1"},
			{Name: "B", Value: "$(A)-$(P_key)-$(LATER)-$(WEB_SERVICE_HOST)"},
			{Name: "LATER", Value: "x"},
			{Name: "IP", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "status.podIP"}}},
			{Name: "MEM", ValueFrom: &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "limits.memory"}}},
			{Name: "S", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "s"}, Key: "k"}}},
			{Name: "OPT", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: ref, Key: "none", Optional: &yes}}},
			{Name: "HOSTNAME", Value: "overridden"},
		},
	}
	pod.Spec.Containers = []corev1.Container{*c}
	services := []*corev1.Service{
		{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "ns"}, Spec: corev1.ServiceSpec{ClusterIP: "10.10.128.7", Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}}}},
		{ObjectMeta: metav1.ObjectMeta{Name: "other", Namespace: "elsewhere"}, Spec: corev1.ServiceSpec{ClusterIP: "10.10.128.8", Ports: []corev1.ServicePort{{Port: 80}}}},
		{ObjectMeta: metav1.ObjectMeta{Name: "headless", Namespace: "ns"}, Spec: corev1.ServiceSpec{ClusterIP: "None", Ports: []corev1.ServicePort{{Port: 80}}}},
	}
	src := config{secrets: map[string]map[string][]byte{"s": {"k": []byte("secret")}}, maps: map[string]map[string]string{"c": {"key": "value"}}}
	api := netip.MustParseAddrPort("10.10.128.1:443")
	got, err := environment(pod, c, services, api, src)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "HOSTNAME": "overridden",
		"P_key": "value", "A": "1", "B": "1-value-$(LATER)-10.10.128.7", "LATER": "x", "IP": "10.10.1.1", "MEM": "67108864", "S": "secret",
		"KUBERNETES_SERVICE_HOST": "10.10.128.1", "KUBERNETES_SERVICE_PORT": "443", "KUBERNETES_SERVICE_PORT_HTTPS": "443", "KUBERNETES_PORT": "tcp://10.10.128.1:443",
		"KUBERNETES_PORT_443_TCP": "tcp://10.10.128.1:443", "KUBERNETES_PORT_443_TCP_PROTO": "tcp", "KUBERNETES_PORT_443_TCP_PORT": "443", "KUBERNETES_PORT_443_TCP_ADDR": "10.10.128.1",
		"WEB_SERVICE_HOST": "10.10.128.7", "WEB_SERVICE_PORT": "80", "WEB_SERVICE_PORT_HTTP": "80", "WEB_PORT": "tcp://10.10.128.7:80",
		"WEB_PORT_80_TCP": "tcp://10.10.128.7:80", "WEB_PORT_80_TCP_PROTO": "tcp", "WEB_PORT_80_TCP_PORT": "80", "WEB_PORT_80_TCP_ADDR": "10.10.128.7",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}

	// enableServiceLinks: false leaves the API server's variables only.
	no := false
	pod.Spec.EnableServiceLinks = &no
	got, err = environment(pod, c, services, api, src)
	if err != nil {
		t.Fatal(err)
	}
	if slices.Contains(slices.Collect(maps.Keys(got)), "WEB_SERVICE_HOST") || got["KUBERNETES_SERVICE_HOST"] == "" {
		t.Errorf("without service links: %v", got)
	}

	c.Env = append(c.Env, corev1.EnvVar{Name: "REQ", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "s"}, Key: "none"}}})
	if _, err := environment(pod, c, services, api, src); err == nil {
		t.Error("a missing key of a Secret is no error")
	}
}

func TestImageName(t *testing.T) {
	for ref, want := range map[string]string{
		"testapp": "testapp", "docker.io/istio/pilot:1.31": "pilot", "localhost:5000/a/b": "b",
		"localhost:5000/a/b:c@sha256:0123": "b", "registry.k8s.io/pause@sha256:0123": "pause",
	} {
		if got := imageName(ref); got != want {
			t.Errorf("%s: %s, want %s", ref, got, want)
		}
	}
}

func TestResolvConf(t *testing.T) {
	two := "2"
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns"}, Spec: corev1.PodSpec{
		DNSPolicy: corev1.DNSClusterFirst,
		DNSConfig: &corev1.PodDNSConfig{Searches: []string{"x.y"}, Options: []corev1.PodDNSConfigOption{{Name: "timeout", Value: &two}}},
	}}
	want := "search ns.svc.cluster.local svc.cluster.local cluster.local x.y\nnameserver 10.10.128.10\noptions ndots:5 timeout:2\n"
	if got := resolvConf(pod, netip.MustParseAddr("10.10.128.10"), "cluster.local"); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}
