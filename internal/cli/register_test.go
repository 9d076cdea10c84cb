package cli

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/test/kubetest"
)

// refused asserts an exit code and that the message names each of the wanted words; and that nothing was created for the name.
func (w *world) refused(r result, code int, words ...string) {
	w.t.Helper()
	if r.code != code {
		w.t.Errorf("exit %d, want %d", r.code, code)
	}
	for _, word := range words {
		if !strings.Contains(r.err, word) {
			w.t.Errorf("the message does not name %q:\n%s", word, r.err)
		}
	}
}

func (w *world) clusters() []string {
	w.t.Helper()
	var list adminv2.KubernetesClusterList
	w.must(w.mgmt.List(w.t.Context(), &list, client.InNamespace(w.ns)))
	var names []string
	for _, k := range list.Items {
		names = append(names, k.Name)
	}
	return names
}

func TestRegister(t *testing.T) {
	w := newWorld(t)
	w.hub("192.0.2.10")
	redeemed := w.play("prod-eu-west-3")
	other := &adminv2.KubernetesCluster{ObjectMeta: metav1.ObjectMeta{Name: "cluster-1", Namespace: w.ns}}
	w.must(w.mgmt.Create(t.Context(), other))

	start := time.Now()
	r := w.register("prod-eu-west-3", "--version", "2.12.0", "--labels", "region=eu-west-3,env=prod", "--cluster-domain", "cluster.internal")
	t.Logf("registered in %s", time.Since(start))
	if r.code != ExitOK || !strings.Contains(r.out, "prod-eu-west-3 is Connected") || !strings.Contains(r.out, "192.0.2.10:9900") {
		t.Fatalf("exit %d", r.code)
	}
	var kc adminv2.KubernetesCluster
	w.must(w.mgmt.Get(t.Context(), client.ObjectKey{Namespace: w.ns, Name: "prod-eu-west-3"}, &kc))
	if diff := cmp.Diff(adminv2.KubernetesClusterSpec{ClusterDomain: "cluster.internal"}, kc.Spec); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(map[string]string{"region": "eu-west-3", "env": "prod"}, kc.Labels); diff != "" {
		t.Error(diff)
	}
	if redeemed() != 1 {
		t.Errorf("%d tokens redeemed", redeemed())
	}
	var agent appsv1.Deployment
	w.must(w.remote.Get(t.Context(), client.ObjectKey{Namespace: w.ns, Name: agentName}, &agent))
	args := strings.Join(agent.Spec.Template.Spec.Containers[0].Args, " ")
	for _, want := range []string{"--cluster=prod-eu-west-3", "--relay-server-address=192.0.2.10:9900"} {
		if !strings.Contains(args, want) {
			t.Errorf("agent has no %s: %s", want, args)
		}
	}
	var root corev1.Secret
	w.must(w.remote.Get(t.Context(), client.ObjectKey{Namespace: w.ns, Name: secretRoot}, &root))
	if diff := cmp.Diff(map[string][]byte{"ca.crt": w.ca.pem}, root.Data); diff != "" {
		t.Errorf("the workload cluster must get the public root and nothing else:\n%s", diff)
	}
	after := &adminv2.KubernetesCluster{}
	w.must(w.mgmt.Get(t.Context(), client.ObjectKeyFromObject(other), after))
	if after.ResourceVersion != other.ResourceVersion {
		t.Error("another cluster's object was changed")
	}
	if w.token == "" || strings.Contains(r.out+r.err, w.token) {
		t.Error("the token was printed, or there was none")
	}
	w.noSecrets(r)

	// Again: no new token, the same identity, no restart of the agent.
	again := w.register("prod-eu-west-3", "--version", "2.12.0", "-o", "json")
	var report registerReport
	if err := json.Unmarshal([]byte(again.out), &report); err != nil {
		t.Fatalf("-o json: %v in %s", err, again.out)
	}
	if again.code != ExitOK || report.NewToken || report.Status != "Connected" || report.RelayAddress != "192.0.2.10:9900" || redeemed() != 1 {
		t.Errorf("second run: exit %d, %+v, %d tokens", again.code, report, redeemed())
	}
	var agent2 appsv1.Deployment
	w.must(w.remote.Get(t.Context(), client.ObjectKey{Namespace: w.ns, Name: agentName}, &agent2))
	if agent.Generation != agent2.Generation {
		t.Error("the second run changed the agent's Deployment")
	}
	w.must(w.mgmt.Get(t.Context(), client.ObjectKeyFromObject(&kc), &kc))
	if kc.Spec.ClusterDomain != "cluster.internal" || kc.Labels["env"] != "prod" {
		t.Errorf("the second run forgot what the first was told: %+v %v", kc.Spec, kc.Labels)
	}
}

// noSecrets: no key and no token in what was printed, in Helm's releases, or anywhere on the management cluster.
func (w *world) noSecrets(r result) {
	w.t.Helper()
	for _, c := range []client.Client{w.remote, w.mgmt} {
		var list corev1.SecretList
		w.must(c.List(w.t.Context(), &list, client.InNamespace(w.ns)))
		for _, s := range list.Items {
			for key, value := range s.Data {
				if w.token != "" && bytes.Contains(plain(w.t, s.Type, value), []byte(w.token)) {
					w.t.Errorf("the raw token outlives its use: in %s of Secret %s", key, s.Name)
				}
				if (key == "token" || key == "tls.key") && strings.Contains(r.out+r.err, string(value)) {
					w.t.Errorf("printed: %s of Secret %s", key, s.Name)
				}
				if key == "token" && c == w.mgmt {
					w.t.Errorf("the raw token is on the management cluster, in %s", s.Name)
				}
				if key == "tls.key" && c == w.remote {
					w.t.Errorf("a private key of the management cluster is on the workload cluster, in %s", s.Name)
				}
			}
		}
	}
}

// plain is what a Secret's value holds: Helm keeps releases as base64 of gzipped JSON.
func plain(t *testing.T, kind corev1.SecretType, value []byte) []byte {
	t.Helper()
	if kind != "helm.sh/release.v1" {
		return value
	}
	raw, err := base64.StdEncoding.DecodeString(string(value))
	if err != nil {
		t.Fatal(err)
	}
	r, err := gzip.NewReader(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(r)
	if err != nil || !bytes.Contains(out, []byte("gloo-platform")) {
		t.Fatalf("a Helm release that can't be read proves nothing: %v", err)
	}
	return out
}

func TestRegisterRefusals(t *testing.T) {
	w := newWorld(t)
	for name, tc := range map[string]struct {
		args  []string
		code  int
		words []string
	}{
		"name with underscore": {[]string{"cluster", "register", "prod_eu", "--remote-context", "prod-eu-west-3"}, ExitUsage, []string{"'_'"}},
		"no name":              {[]string{"cluster", "register", "--remote-context", "prod-eu-west-3"}, ExitUsage, []string{"which cluster name"}},
		"no remote context":    {[]string{"cluster", "register", "x", "--mgmt-context", "mgmt"}, ExitUsage, []string{"--remote-context"}},
		"context missing":      {[]string{"cluster", "register", "x", "--mgmt-context", "mgnt", "--remote-context", "prod-eu-west-3"}, ExitUsage, []string{"mgnt", `did you mean "mgmt"`, "prod-eu-west-3"}},
		"unknown flag":         {[]string{"cluster", "register", "x", "--wibble"}, ExitUsage, []string{"--wibble", "--help"}},
		"empty host":           {[]string{"cluster", "register", "x", "--mgmt-context", "mgmt", "--remote-context", "prod-eu-west-3", "--relay-server-address", ":9900"}, ExitUsage, []string{":9900", "no host"}},
		"empty host in values": {[]string{"cluster", "register", "x", "--mgmt-context", "mgmt", "--remote-context", "prod-eu-west-3", "--set", "common.cluster=y"}, ExitUsage, []string{"common.cluster"}},
		"bad label":            {[]string{"cluster", "register", "x", "--mgmt-context", "mgmt", "--remote-context", "prod-eu-west-3", "--labels", "a b=c"}, ExitUsage, []string{"a b"}},
		"bad version":          {[]string{"cluster", "register", "x", "--mgmt-context", "mgmt", "--remote-context", "prod-eu-west-3", "--version", "a/b"}, ExitUsage, []string{"a/b"}},
		"no management plane":  {[]string{"cluster", "register", "x", "--mgmt-context", "mgmt", "--remote-context", "prod-eu-west-3"}, ExitFailed, []string{"mgmt", "meshctl install"}},
		"bad output":           {[]string{"cluster", "register", "x", "--mgmt-context", "mgmt", "--remote-context", "prod-eu-west-3", "-o", "xml"}, ExitUsage, []string{"xml", "json"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := *w
			w.t = t
			w.refused(w.meshctl(tc.args...), tc.code, tc.words...)
			if got := w.clusters(); got != nil {
				t.Errorf("left behind: %v", got)
			}
		})
	}
}

func TestRegisterContextsSwapped(t *testing.T) {
	w := newWorld(t)
	w.hub("192.0.2.10")
	w.must(w.mgmt.Create(t.Context(), deployment(w.ns, serverName)))
	remoteNS := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: w.ns}}
	w.must(w.remote.Create(t.Context(), remoteNS))
	w.refused(w.meshctl("cluster", "register", "x", "--mgmt-context", "prod-eu-west-3", "--remote-context", "mgmt"), ExitFailed, "swapped")
}

func deployment(ns, name string) *appsv1.Deployment {
	labels := map[string]string{"app": name}
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: ns, Labels: map[string]string{"app.kubernetes.io/part-of": "gloo-platform"}},
		Spec: appsv1.DeploymentSpec{
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: name, Image: "x/" + name + ":2.12.0"}}},
			},
		},
	}
}

func TestRegisterForbidden(t *testing.T) {
	w := newWorld(t)
	w.hub("192.0.2.10")
	w.as("mgmt-as-bob", "mgmt", "bob")
	w.as("prod-as-bob", "prod-eu-west-3", "bob")
	// Bob may do all but create Secrets on the management cluster; on the workload cluster he may read only.
	rule := func(verbs []string, group string, resources ...string) rbacv1.PolicyRule {
		return rbacv1.PolicyRule{Verbs: verbs, APIGroups: []string{group}, Resources: resources}
	}
	grant := func(c client.Client, rules ...rbacv1.PolicyRule) {
		role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "bob-" + w.ns}, Rules: rules}
		binding := &rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: "bob-" + w.ns}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role.Name},
			Subjects: []rbacv1.Subject{{Kind: "User", Name: "bob", APIGroup: rbacv1.GroupName}},
		}
		w.must(c.Create(t.Context(), role))
		w.must(c.Create(t.Context(), binding))
	}
	grant(w.mgmt, rule([]string{"get", "list", "watch", "create", "patch"}, "admin.gloo.solo.io", "kubernetesclusters"), rule([]string{"get", "list", "update"}, "", "secrets"), rule([]string{"get"}, "", "services", "namespaces"))
	grant(w.remote, rule([]string{"get", "list", "watch"}, "", "secrets", "namespaces", "serviceaccounts"), rule([]string{"get", "list", "watch"}, "apps", "deployments"))
	r := w.meshctl("cluster", "register", "x", "--mgmt-context", "mgmt-as-bob", "--remote-context", "prod-as-bob")
	w.refused(r, ExitFailed,
		`context "mgmt-as-bob"`, `create secrets in namespace "`+w.ns+`"`,
		`context "prod-as-bob"`, "create,patch customresourcedefinitions.apiextensions.k8s.io cluster-wide", "create namespaces cluster-wide", "nothing was changed")
	if strings.Contains(r.err, "list secrets") || strings.Contains(r.err, "get,list") {
		t.Error("names rights that he has")
	}
	if got := w.clusters(); got != nil {
		t.Errorf("left behind: %v", got)
	}
}

func TestRegisterNameTaken(t *testing.T) {
	w := newWorld(t)
	w.hub("192.0.2.10")
	for name, uid := range map[string]string{"cluster-1": "another-uid", "cluster-2": uidOf(t, w.remote)} {
		kc := &adminv2.KubernetesCluster{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: w.ns}}
		w.must(w.mgmt.Create(t.Context(), kc))
		at := metav1.NewTime(time.Date(2026, 5, 15, 8, 14, 33, 0, time.UTC))
		kc.Status = adminv2.KubernetesClusterStatus{ClusterUID: uid, RegisteredBy: "jane.doe@bank.example.com", RegisteredAt: &at}
		w.must(w.mgmt.Status().Update(t.Context(), kc))
	}
	w.refused(w.register("cluster-1"), ExitFailed, "cluster-1", "taken", "another-uid", uidOf(t, w.remote), "jane.doe@bank.example.com", "2026-05-15T08:14:33Z")
	w.refused(w.register("new-name"), ExitFailed, "cluster-2", "jane.doe@bank.example.com", "meshctl cluster deregister cluster-2")
	if diff := cmp.Diff([]string{"cluster-1", "cluster-2"}, w.clusters()); diff != "" {
		t.Error(diff)
	}
}

// TestRegisterHalfWay: the agent can't be installed; the message says what exists, and the same command goes on once the cause is mended.
func TestRegisterHalfWay(t *testing.T) {
	w := newWorld(t)
	w.hub("192.0.2.10")
	// Somebody's quota: no Deployment may be created.
	w.must(w.remote.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: w.ns}}))
	policy := denyDeployments(w.ns)
	for _, o := range policy {
		w.must(w.remote.Create(t.Context(), o))
	}
	w.eventually(func() bool {
		return w.remote.Create(t.Context(), deployment(w.ns, "probe"), client.DryRunAll) != nil
	})
	r := w.register("prod-eu-west-3", "--timeout", "20s")
	w.refused(r, ExitFailed, "half-way", "no deployments today", "created KubernetesCluster", "run the same command again", "meshctl cluster deregister prod-eu-west-3")
	w.noSecrets(r)
	for _, o := range policy {
		w.must(w.remote.Delete(t.Context(), o))
	}
	w.eventually(func() bool {
		return w.remote.Create(t.Context(), deployment(w.ns, "probe"), client.DryRunAll) == nil
	})
	w.play("prod-eu-west-3")
	if r := w.register("prod-eu-west-3"); r.code != ExitOK {
		t.Errorf("going on: exit %d", r.code)
	}
}

func (w *world) eventually(ok func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if ok() {
			return
		}
	}
	w.t.Fatal("not reached in 15 s")
}

// TestRegisterNotConnected: everything is installed, the agent's image is not there; exit code 3 and the reason.
func TestRegisterNotConnected(t *testing.T) {
	w := newWorld(t)
	w.hub("192.0.2.10")
	stop := make(chan struct{})
	go func() { // the kubelet, as far as it goes
		defer close(stop)
		for t.Context().Err() == nil {
			pod := &corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Name: agentName + "-abc", Namespace: w.ns, Labels: map[string]string{"app": agentName}},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: agentName, Image: "x/gloo-mesh-agent:9.9.9"}}},
			}
			if w.remote.Create(t.Context(), pod) == nil {
				pod.Status = corev1.PodStatus{Phase: corev1.PodPending, ContainerStatuses: []corev1.ContainerStatus{{
					Name: agentName, Image: "x/gloo-mesh-agent:9.9.9",
					State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff", Message: "manifest unknown"}},
				}}}
				_ = w.remote.Status().Update(t.Context(), pod)
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
	}()
	r := w.register("prod-eu-west-3", "--version", "9.9.9", "--timeout", "4s")
	<-stop
	w.refused(r, ExitNotReached, "not Connected", "x/gloo-mesh-agent:9.9.9", "ImagePullBackOff", "manifest unknown", "--version", "run the same command again", "meshctl cluster deregister")
	if !strings.Contains(r.out, "version 9.9.9 asked for") {
		t.Error("does not say that the version differs from the chart's")
	}
}

func TestRegisterAddressPending(t *testing.T) {
	w := newWorld(t)
	w.hub("")
	w.refused(w.register("x", "--timeout", "1s"), ExitNotReached, "got no address", "--relay-server-address")
	if got := w.clusters(); got != nil {
		t.Errorf("left behind: %v", got)
	}
}

func TestRegisterDryRun(t *testing.T) {
	w := newWorld(t)
	w.hub("192.0.2.10")
	r := w.register("x", "--dry-run")
	if r.code != ExitOK || !strings.Contains(r.out, "nothing was changed") || w.clusters() != nil {
		t.Errorf("exit %d, clusters %v", r.code, w.clusters())
	}
	if err := w.remote.Get(t.Context(), client.ObjectKey{Name: w.ns}, &corev1.Namespace{}); !apierrors.IsNotFound(err) {
		t.Errorf("namespace after a dry run: %v", err)
	}
}

// TestRegisterAfterRevocation: the KubernetesCluster was deleted by hand and its keys revoked; what is left in the cluster is of no use and is replaced.
func TestRegisterAfterRevocation(t *testing.T) {
	w := newWorld(t)
	w.hub("192.0.2.10")
	redeemed := w.play("prod-eu-west-3")
	if r := w.register("prod-eu-west-3"); r.code != ExitOK {
		t.Fatal("first registration failed")
	}
	w.must(w.mgmt.Delete(t.Context(), &adminv2.KubernetesCluster{ObjectMeta: metav1.ObjectMeta{Name: "prod-eu-west-3", Namespace: w.ns}}))
	var secret corev1.Secret
	w.must(w.remote.Get(t.Context(), client.ObjectKey{Namespace: w.ns, Name: secretClient}, &secret))
	key := parseClientCertificate(secret.Data["tls.crt"]).Key
	w.record("prod-eu-west-3", key, true)
	r := w.register("prod-eu-west-3")
	if r.code != ExitOK || redeemed() != 2 || !strings.Contains(r.out, "revoked") {
		t.Errorf("exit %d, %d tokens redeemed", r.code, redeemed())
	}
	w.must(w.remote.Get(t.Context(), client.ObjectKey{Namespace: w.ns, Name: secretClient}, &secret))
	if parseClientCertificate(secret.Data["tls.crt"]).Key == key {
		t.Error("the revoked key is still there")
	}
}

// record is what the hub writes of the keys of a cluster.
func (w *world) record(name string, key mesh.Fingerprint, revoked bool) {
	w.t.Helper()
	raw, _ := json.Marshal(map[string]any{"keys": []any{map[string]any{"spki": key, "revoked": revoked}}})
	w.must(client.IgnoreAlreadyExists(w.mgmt.Create(w.t.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: prefixIdentity + name, Namespace: w.ns}, Data: map[string][]byte{"record": raw},
	})))
}

func TestDeregister(t *testing.T) {
	w := newWorld(t)
	w.hub("192.0.2.10")
	w.play("prod-eu-west-3")
	if r := w.register("prod-eu-west-3"); r.code != ExitOK {
		t.Fatal("registration failed")
	}
	w.record("prod-eu-west-3", mesh.Fingerprint{1}, true)
	// What the agent applied, as it listed it; and something of somebody else's, in another namespace.
	elsewhere := kubetest.Namespace(t, w.remote)
	for _, name := range []string{"applied", "strangers"} {
		w.must(w.remote.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: elsewhere}}))
	}
	w.must(w.remote.Create(t.Context(), &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: inventoryName, Namespace: w.ns},
		Data:       map[string]string{"objects": "/v1/ConfigMap/" + elsewhere + "/applied\nno.such.group/v1/Wibble/x/y\nrubbish\n"},
	}))
	r := w.meshctl("cluster", "deregister", "prod-eu-west-3", "--mgmt-context", "mgmt", "--remote-context", "prod-eu-west-3")
	for name, want := range map[string]bool{"applied": false, "strangers": true} {
		if err := w.remote.Get(t.Context(), client.ObjectKey{Namespace: elsewhere, Name: name}, &corev1.ConfigMap{}); (err == nil) != want {
			t.Errorf("ConfigMap %s: %v", name, err)
		}
	}
	if r.code != ExitOK || !strings.Contains(r.out, "revoked every key") || w.clusters() != nil {
		t.Errorf("exit %d, clusters %v", r.code, w.clusters())
	}
	for _, o := range []client.Object{&appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: agentName}}, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: secretRoot}}, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: secretClient}}, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: agentName}}} {
		if err := w.remote.Get(t.Context(), client.ObjectKey{Namespace: w.ns, Name: o.GetName()}, o); !apierrors.IsNotFound(err) {
			t.Errorf("%T %s is still there: %v", o, o.GetName(), err)
		}
	}
	if err := w.remote.Get(t.Context(), client.ObjectKey{Name: w.ns}, &corev1.Namespace{}); !apierrors.IsNotFound(err) {
		t.Errorf("the namespace that meshctl made: %v", err)
	}
	w.refused(w.meshctl("cluster", "deregister", "prod-eu-west-3", "--mgmt-context", "mgmt"), ExitFailed, "no cluster", "prod-eu-west-3")
	// What a namespace on its way out does not stop: registering waits for it.
	w.must(client.IgnoreAlreadyExists(w.remote.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: w.ns}})))
	w.must(w.remote.Delete(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: w.ns}}))
	w.must(client.IgnoreNotFound(w.mgmt.Delete(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: prefixIdentity + "prod-eu-west-3", Namespace: w.ns}})))
	if r := w.register("prod-eu-west-3"); r.code != ExitOK {
		t.Errorf("registering again at once: exit %d", r.code)
	}
}

func TestDeregisterUnreachable(t *testing.T) {
	w := newWorld(t)
	w.hub("192.0.2.10")
	w.play("prod-eu-west-3")
	if r := w.register("prod-eu-west-3"); r.code != ExitOK {
		t.Fatal("registration failed")
	}
	w.record("prod-eu-west-3", mesh.Fingerprint{1}, true)
	w.as("gone", "prod-eu-west-3", "")
	w.move("gone", "https://127.0.0.1:1")
	r := w.meshctl("cluster", "deregister", "prod-eu-west-3", "--mgmt-context", "mgmt", "--remote-context", "gone")
	if r.code != ExitOK || w.clusters() != nil {
		t.Errorf("exit %d, clusters %v", r.code, w.clusters())
	}
	for _, want := range []string{"can't be reached", "revoked", "left over", "when it can be reached again: meshctl cluster deregister prod-eu-west-3"} {
		if !strings.Contains(r.out, want) {
			t.Errorf("does not say %q", want)
		}
	}
	// Later, reachable again: the rest goes.
	if r := w.meshctl("cluster", "deregister", "prod-eu-west-3", "--mgmt-context", "mgmt", "--remote-context", "prod-eu-west-3"); r.code != ExitOK || !strings.Contains(r.out, "uninstalled") {
		t.Errorf("second time: exit %d", r.code)
	}
}
