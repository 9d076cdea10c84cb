package cli

import (
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/mesh"
)

func TestParseRelayAddress(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.10:9900":           "192.0.2.10:9900",
		"192.0.2.10":                "192.0.2.10:9900",
		"relay.example.com":         "relay.example.com:9900",
		"Relay.example.com:443":     "Relay.example.com:443",
		"[2001:db8::1]:9900":        "[2001:db8::1]:9900",
		"2001:db8::1":               "[2001:db8::1]:9900",
		"gloo-mesh-mgmt-server.x:1": "gloo-mesh-mgmt-server.x:1",
		"":                          "no host",
		":9900":                     "no host",
		"https://relay:9900":        "https://",
		"relay:0":                   "1..65535",
		"relay:99999":               "1..65535",
		"relay:grpc":                "1..65535",
		"a:b:c":                     "HOST:PORT",
		"0.0.0.0:9900":              "the Pod itself",
		"127.0.0.1:9900":            "the Pod itself",
		"localhost:9900":            "the Pod itself",
		"under_score:9900":          "neither an IP address nor a DNS name",
		"two words:9900":            "neither an IP address nor a DNS name",
	} {
		got, err := parseRelayAddress(in)
		if err != nil {
			got = err.Error()
		}
		if err == nil && got != want || err != nil && !strings.Contains(got, want) {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestRelayAddress(t *testing.T) {
	service := func(kind corev1.ServiceType, ports []corev1.ServicePort, ingress ...corev1.LoadBalancerIngress) *corev1.Service {
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: serverName, Namespace: "gloo-mesh"}, Spec: corev1.ServiceSpec{Type: kind, Ports: ports}}
		s.Status.LoadBalancer.Ingress = ingress
		return s
	}
	grpc := []corev1.ServicePort{{Name: "grpc", Port: 9900, NodePort: 31900}}
	node := func(kind corev1.NodeAddressType, address string, ready corev1.ConditionStatus) corev1.Node {
		return corev1.Node{Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: kind, Address: address}}, Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}}}}
	}
	for name, tc := range map[string]struct {
		service *corev1.Service
		nodes   []corev1.Node
		same    bool
		want    string // an address, or a part of the error
	}{
		"load balancer with an IP":       {service: service("LoadBalancer", grpc, corev1.LoadBalancerIngress{IP: "192.0.2.10"}), want: "192.0.2.10:9900"},
		"load balancer with a hostname":  {service: service("LoadBalancer", grpc, corev1.LoadBalancerIngress{Hostname: "x.elb.example.com"}), want: "x.elb.example.com:9900"},
		"load balancer being made":       {service: service("LoadBalancer", grpc), want: errAddressPending.Error()},
		"empty ingress":                  {service: service("LoadBalancer", grpc, corev1.LoadBalancerIngress{}), want: errAddressPending.Error()},
		"node port, external address":    {service: service("NodePort", grpc), nodes: []corev1.Node{node(corev1.NodeInternalIP, "10.0.0.1", "True"), node(corev1.NodeExternalIP, "198.51.100.7", "True")}, want: "198.51.100.7:31900"},
		"node port, ready node first":    {service: service("NodePort", grpc), nodes: []corev1.Node{node(corev1.NodeInternalIP, "10.0.0.1", "False"), node(corev1.NodeInternalIP, "10.0.0.2", "True")}, want: "10.0.0.2:31900"},
		"node port, no nodes":            {service: service("NodePort", grpc), want: "--relay-server-address"},
		"cluster IP":                     {service: service("ClusterIP", grpc), want: `patch service gloo-mesh-mgmt-server -p '{"spec":{"type":"LoadBalancer"}}'`},
		"cluster IP, in the cluster":     {service: service("ClusterIP", grpc), same: true, want: "gloo-mesh-mgmt-server.gloo-mesh:9900"},
		"another port number":            {service: service("LoadBalancer", []corev1.ServicePort{{Name: "grpc", Port: 443}}, corev1.LoadBalancerIngress{IP: "192.0.2.10"}), want: "192.0.2.10:443"},
		"port without the name":          {service: service("LoadBalancer", []corev1.ServicePort{{Name: "x", Port: 9900}}, corev1.LoadBalancerIngress{IP: "192.0.2.10"}), want: "192.0.2.10:9900"},
		"not the management server's":    {service: service("LoadBalancer", []corev1.ServicePort{{Name: "http", Port: 80}}, corev1.LoadBalancerIngress{IP: "192.0.2.10"}), want: "no port named grpc"},
		"IPv6 address of load balancer":  {service: service("LoadBalancer", grpc, corev1.LoadBalancerIngress{IP: "2001:db8::5"}), want: "[2001:db8::5]:9900"},
		"hostname wins where both given": {service: service("LoadBalancer", grpc, corev1.LoadBalancerIngress{IP: "192.0.2.10", Hostname: "h.example.com"}), want: "h.example.com:9900"},
	} {
		t.Run(name, func(t *testing.T) {
			got, _, err := relayAddress(tc.service, tc.nodes, tc.same)
			if err != nil {
				got = err.Error()
			}
			if err == nil && got != tc.want || err != nil && !strings.Contains(got, tc.want) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestChooseContext(t *testing.T) {
	config := clientcmdapi.NewConfig()
	for _, n := range []string{"mgmt", "prod-eu-west-3", "cluster-1"} {
		config.Contexts[n] = &clientcmdapi.Context{}
	}
	for in, want := range map[string]string{
		"mgmt":           "mgmt",
		"mgnt":           `did you mean "mgmt"`,
		"prod-eu-west3":  `did you mean "prod-eu-west-3"`,
		"PROD-EU-WEST-3": `did you mean "prod-eu-west-3"`,
		"zzzzzzzzz":      "it has: cluster-1, mgmt, prod-eu-west-3",
		"":               "no current context",
	} {
		got, err := chooseContext(config, in, "--mgmt-context")
		if err != nil {
			got = err.Error()
			if exit := (*exitError)(nil); !errors.As(err, &exit) || exit.code != ExitUsage {
				t.Errorf("%q: not a usage error: %v", in, err)
			}
		}
		if err == nil && got != want || err != nil && !strings.Contains(got, want) {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	if near := nearest("zzzzzzzzz", []string{"mgmt"}); near != "" {
		t.Errorf("nearest to zzzzzzzzz is %q", near)
	}
}

func TestPlanRegister(t *testing.T) {
	ca, stranger := newAuthority(t), newAuthority(t)
	now := time.Now()
	_, good := ca.issue(t, "prod", now.Add(time.Hour))
	_, old := ca.issue(t, "prod", now.Add(-time.Minute))
	_, other := ca.issue(t, "cluster-1", now.Add(time.Hour))
	_, foreign := stranger.issue(t, "prod", now.Add(time.Hour))
	held := func(c *x509.Certificate) *clientCertificate {
		return &clientCertificate{Cert: c, Key: mesh.FingerprintOf(c.RawSubjectPublicKeyInfo)}
	}
	cluster := func(name, uid string, connection adminv2.ConnectionState) adminv2.KubernetesCluster {
		return adminv2.KubernetesCluster{
			ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{adminv2.AnnotationRegisteredBy: "jane"}},
			Status:     adminv2.KubernetesClusterStatus{ClusterUID: uid, Connection: connection},
		}
	}
	base := func(change func(*registerFacts)) *registerFacts {
		f := &registerFacts{
			Now: now, Name: "prod", MgmtUID: "uid-mgmt", RemoteUID: "uid-prod", Service: &corev1.Service{}, RootBundle: []byte("pem"), Signers: []*x509.Certificate{ca.cert},
		}
		change(f)
		return f
	}
	for name, tc := range map[string]struct {
		facts *registerFacts
		want  registerPlan
		no    string // a part of the refusal
	}{
		"new cluster":       {facts: base(func(*registerFacts) {}), want: registerPlan{Release: "gloo-platform", NewToken: true}},
		"already connected": {facts: base(func(f *registerFacts) { f.Clusters = append(f.Clusters, cluster("prod", "uid-prod", "Connected")) }), want: registerPlan{Release: "gloo-platform", Connected: true}},
		"registered, agent never came": {
			facts: base(func(f *registerFacts) { f.Clusters = append(f.Clusters, cluster("prod", "", "Pending")) }), want: registerPlan{Release: "gloo-platform", NewToken: true},
		},
		"disconnected with a good certificate": {
			facts: base(func(f *registerFacts) {
				f.Clusters, f.Certificate = append(f.Clusters, cluster("prod", "uid-prod", "Disconnected")), held(good)
			}), want: registerPlan{Release: "gloo-platform"},
		},
		"minted by hand":      {facts: base(func(f *registerFacts) { f.Certificate = held(good) }), want: registerPlan{Release: "gloo-platform"}},
		"expired certificate": {facts: base(func(f *registerFacts) { f.Certificate = held(old) }), want: registerPlan{Release: "gloo-platform", NewToken: true, DropClient: true}},
		"of another cluster":  {facts: base(func(f *registerFacts) { f.Certificate = held(other) }), want: registerPlan{Release: "gloo-platform", NewToken: true, DropClient: true}},
		"of another root":     {facts: base(func(f *registerFacts) { f.Certificate = held(foreign) }), want: registerPlan{Release: "gloo-platform", NewToken: true, DropClient: true}},
		"revoked": {
			facts: base(func(f *registerFacts) {
				f.Certificate = held(good)
				f.RevokedKeys = []mesh.Fingerprint{f.Certificate.Key}
			}),
			want: registerPlan{Release: "gloo-platform", NewToken: true, DropClient: true},
		},
		"no certificate in the Secret": {facts: base(func(f *registerFacts) { f.Certificate = parseClientCertificate([]byte("rubbish")) }), want: registerPlan{Release: "gloo-platform", NewToken: true, DropClient: true}},
		"the management cluster itself": {
			facts: base(func(f *registerFacts) { f.RemoteUID = f.MgmtUID; f.Certificate = held(good) }), want: registerPlan{Release: "gloo-platform", SameCluster: true},
		},
		"the management cluster under another name": {facts: base(func(f *registerFacts) { f.RemoteUID = f.MgmtUID; f.Certificate = held(other) }), no: "common.cluster"},
		"agent of a release of another name":        {facts: base(func(f *registerFacts) { f.Agent = &remoteAgent{Cluster: "prod", Release: "gloo-agent"} }), want: registerPlan{Release: "gloo-agent", NewToken: true}},
		"agent of another name":                     {facts: base(func(f *registerFacts) { f.Agent = &remoteAgent{Cluster: "elsewhere"} }), no: "elsewhere"},
		"name taken":                                {facts: base(func(f *registerFacts) { f.Clusters = append(f.Clusters, cluster("prod", "uid-x", "Connected")) }), no: "by jane"},
		"cluster has another name":                  {facts: base(func(f *registerFacts) { f.Clusters = append(f.Clusters, cluster("old-name", "uid-prod", "Connected")) }), no: "old-name"},
		"being registered by somebody else": {
			facts: base(func(f *registerFacts) {
				f.Clusters = append(f.Clusters, cluster("prod", "", ""))
				f.Registrations = []registration{{Cluster: "prod", UID: "uid-y", Expires: now.Add(time.Minute)}}
			}), no: "being registered for another cluster",
		},
		"being registered under another name": {
			facts: base(func(f *registerFacts) {
				f.Clusters = append(f.Clusters, cluster("typo", "", ""))
				f.Registrations = []registration{{Cluster: "typo", UID: "uid-prod", Expires: now.Add(time.Minute)}}
			}), no: `"typo" already`,
		},
		"an expired registration under another name": {
			facts: base(func(f *registerFacts) {
				f.Clusters = append(f.Clusters, cluster("typo", "", ""))
				f.Registrations = []registration{{Cluster: "typo", UID: "uid-prod", Expires: now.Add(-time.Minute)}}
			}), want: registerPlan{Release: "gloo-platform", NewToken: true},
		},
		"no management plane": {facts: base(func(f *registerFacts) { f.Service = nil }), no: "meshctl install"},
		"contexts swapped":    {facts: base(func(f *registerFacts) { f.Service, f.RemoteHub = nil, true }), no: "swapped"},
		"no root yet":         {facts: base(func(f *registerFacts) { f.RootBundle = nil }), no: "meshctl check"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := planRegister(tc.facts, "mgmt", "prod", "gloo-mesh")
			if tc.no != "" {
				if err == nil || !strings.Contains(err.Error(), tc.no) {
					t.Errorf("want a refusal that names %q, got %+v, %v", tc.no, got, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, *got, cmpopts.IgnoreFields(registerPlan{}, "Why", "Existing", "Notes")); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestDiagnose(t *testing.T) {
	running := []corev1.Pod{{Status: corev1.PodStatus{Phase: corev1.PodRunning, ContainerStatuses: []corev1.ContainerStatus{{State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}}}}
	waiting := func(reason string) []corev1.Pod {
		return []corev1.Pod{{Status: corev1.PodStatus{Phase: corev1.PodPending, ContainerStatuses: []corev1.ContainerStatus{{Image: "x:1", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason}}}}}}}
	}
	kc := func(approval adminv2.ApprovalState, conditions ...metav1.Condition) *adminv2.KubernetesCluster {
		k := &adminv2.KubernetesCluster{}
		k.Status.Common.State.Approval, k.Status.Conditions = approval, conditions
		return k
	}
	d := &appsv1.Deployment{}
	for name, tc := range map[string]struct {
		facts programFacts
		want  string
	}{
		"Deployment removed": {programFacts{}, "Deployment is gone"},
		"no Pod":             {programFacts{Deployment: d}, "no Pod"},
		"Pod refused": {
			programFacts{Deployment: &appsv1.Deployment{Status: appsv1.DeploymentStatus{Conditions: []appsv1.DeploymentCondition{{Type: appsv1.DeploymentReplicaFailure, Status: "True", Message: "exceeded quota"}}}}}, "exceeded quota",
		},
		"image":         {programFacts{Deployment: d, Pods: waiting("ErrImagePull")}, "can't be pulled"},
		"crash loop":    {programFacts{Deployment: d, Pods: waiting("CrashLoopBackOff")}, "CrashLoopBackOff"},
		"still starts":  {programFacts{Deployment: d, Pods: waiting("ContainerCreating")}, "still starting"},
		"no cluster":    {programFacts{Deployment: d, Pods: running}, "KubernetesCluster is not there"},
		"refused":       {programFacts{Deployment: d, Pods: running, Cluster: kc("ACCEPTED", metav1.Condition{Type: adminv2.ConditionIdentityVerified, Status: "False", Reason: "Refused", Message: "it is cluster-1"})}, "it is cluster-1"},
		"server asleep": {programFacts{Deployment: d, Pods: running, Cluster: kc("")}, "has not looked"},
		"unreachable":   {programFacts{Deployment: d, Pods: running, Cluster: kc("ACCEPTED"), Address: "192.0.2.1:9900"}, "has not heard"},
	} {
		t.Run(name, func(t *testing.T) {
			if why, hints := diagnose(&tc.facts); !strings.Contains(why, tc.want) {
				t.Errorf("%q %q, want %q", why, hints, tc.want)
			}
		})
	}
}

func TestPlanInstall(t *testing.T) {
	on := map[string]any{"enabled": true}
	for name, tc := range map[string]struct {
		options  installOptions
		given    map[string]any
		previous map[string]any
		context  string
		want     *installPlan
		no       string
	}{
		"default": {context: "mgmt", want: &installPlan{Server: true, Cluster: "mgmt", Values: map[string]any{"glooMgmtServer": on, "common": map[string]any{"cluster": "mgmt"}}}},
		"context is no cluster name": {
			context: "arn:aws:eks:cluster/mgmt", want: &installPlan{Server: true, Cluster: "mgmt", Values: map[string]any{"glooMgmtServer": on, "common": map[string]any{"cluster": "mgmt"}}},
		},
		"values given earlier stay": {
			context: "mgmt", previous: map[string]any{"glooMgmtServer": map[string]any{"enabled": true, "serviceType": "LoadBalancer"}, "common": map[string]any{"cluster": "hub"}},
			options: installOptions{version: "v2.12.4"},
			want: &installPlan{Server: true, Cluster: "hub", Values: map[string]any{
				"glooMgmtServer": map[string]any{"enabled": true, "serviceType": "LoadBalancer"}, "common": map[string]any{"cluster": "hub", "imageTag": "2.12.4"},
			}},
		},
		"agent": {
			options: installOptions{profiles: []string{"gloo-mesh-agent"}}, context: "x",
			given: map[string]any{"common": map[string]any{"cluster": "prod"}, "glooAgent": map[string]any{"relay": map[string]any{"serverAddress": "192.0.2.1"}}},
			want: &installPlan{Agent: true, Cluster: "prod", Values: map[string]any{
				"common": map[string]any{"cluster": "prod"}, "glooAgent": map[string]any{"enabled": true, "relay": map[string]any{"serverAddress": "192.0.2.1:9900"}},
			}},
		},
		"agent without a name": {options: installOptions{profiles: []string{"agent"}}, context: "x", no: "common.cluster"},
		"agent with :9900": {
			options: installOptions{profiles: []string{"agent"}}, no: "no host",
			given: map[string]any{"common": map[string]any{"cluster": "prod"}, "glooAgent": map[string]any{"relay": map[string]any{"serverAddress": ":9900"}}},
		},
		"unknown profile": {options: installOptions{profiles: []string{"wibble"}}, no: "gloo-mesh-single"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := planInstall(&tc.options, tc.given, tc.previous, tc.context)
			if tc.no != "" {
				if err == nil || !strings.Contains(err.Error(), tc.no) {
					t.Errorf("want an error that names %q, got %v", tc.no, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestAgentValuesHoldNoSecret(t *testing.T) {
	want := map[string]any{
		"common":    map[string]any{"cluster": "prod", "clusterDomain": "d", "imageTag": "1"},
		"glooAgent": map[string]any{"enabled": true, "registration": "id", "relay": map[string]any{"serverAddress": "a:1"}},
	}
	if diff := cmp.Diff(want, agentValues("prod", "a:1", "gloo-mesh", "d", "1", "id")); diff != "" {
		t.Error(diff)
	}
}

func TestTagOf(t *testing.T) {
	for in, want := range map[string]string{"a/b:1.2": "1.2", "host:5000/a/b": "latest", "host:5000/a/b:3@sha256:00": "3"} {
		if got := tagOf(in); got != want {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
}

// TestHelp: every verb has a short text, and every verb that does something has an example and says its exit codes.
func TestHelp(t *testing.T) {
	for _, c := range newRoot(Streams{}).Commands() {
		for _, verb := range append(c.Commands(), c) {
			if verb.Short == "" {
				t.Errorf("%s has no short text", verb.CommandPath())
			}
			if verb.HasSubCommands() || verb.Name() == "help" || verb.Name() == "completion" {
				continue
			}
			if verb.Example == "" || !strings.Contains(verb.Long, "Exit codes") {
				t.Errorf("%s has no example, or does not say its exit codes", verb.CommandPath())
			}
		}
	}
}

func TestMissingRotation(t *testing.T) {
	of := func(name string, c adminv2.ConnectionState) adminv2.KubernetesCluster {
		return adminv2.KubernetesCluster{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: adminv2.KubernetesClusterStatus{Connection: c}}
	}
	got := missingRotation([]adminv2.KubernetesCluster{of("a", adminv2.ConnectionConnected), of("b", adminv2.ConnectionDisconnected), of("c", adminv2.ConnectionPending), of("d", "")})
	if diff := cmp.Diff([]string{"b"}, got); diff != "" {
		t.Errorf("who has connected before and is away now (-want +got):\n%s", diff)
	}
}
