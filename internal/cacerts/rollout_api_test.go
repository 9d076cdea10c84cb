package cacerts

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/test/kubetest"
)

func template(labels map[string]string) corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
}

// run makes a workload that is rolled out.
func (s *site) run(o client.Object) client.Object {
	s.t.Helper()
	if err := s.kube.Create(s.t.Context(), o); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = s.kube.Delete(s.t.Context(), o) })
	s.rolled(o)
	return o
}

// rolled does what the workload's controller and the kubelets do.
func (s *site) rolled(o client.Object) {
	s.t.Helper()
	if err := s.kube.Get(s.t.Context(), client.ObjectKeyFromObject(o), o); err != nil {
		s.t.Fatal(err)
	}
	switch w := o.(type) {
	case *appsv1.Deployment:
		w.Status = appsv1.DeploymentStatus{ObservedGeneration: w.Generation, Replicas: 1, UpdatedReplicas: 1, AvailableReplicas: 1, ReadyReplicas: 1}
	case *appsv1.DaemonSet:
		w.Status = appsv1.DaemonSetStatus{ObservedGeneration: w.Generation, DesiredNumberScheduled: 1, UpdatedNumberScheduled: 1, NumberAvailable: 1, CurrentNumberScheduled: 1, NumberReady: 1}
	}
	if err := s.kube.Status().Update(s.t.Context(), o); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) token(o client.Object) string {
	s.t.Helper()
	if err := s.kube.Get(s.t.Context(), client.ObjectKeyFromObject(o), o); err != nil {
		s.t.Fatal(err)
	}
	switch w := o.(type) {
	case *appsv1.Deployment:
		return w.Spec.Template.Annotations[restartAnnotation]
	case *appsv1.DaemonSet:
		return w.Spec.Template.Annotations[restartAnnotation]
	}
	return ""
}

// seen has every replica answer as directed, as a round of probes would.
func (s *site) seen(d mesh.TrustDirective) {
	s.t.Helper()
	raw, err := json.Marshal(d)
	if err != nil {
		s.t.Fatal(err)
	}
	roots, err := parse(d.Bundle)
	if err != nil {
		s.t.Fatal(err)
	}
	signer, err := parse(d.Intermediates[0].Chain)
	if err != nil {
		s.t.Fatal(err)
	}
	s.keeper.Observed(mesh.TrustObservation{
		Applied: mesh.FingerprintOf(raw), ConfigMaps: []mesh.BundleGroup{{Roots: fingerprints(roots), Count: 1}},
		Istiods: []mesh.IstiodProbe{{Pod: "istiod-1", Signer: fingerprints(signer)[0], Roots: fingerprints(roots)}},
	}, time.Now())
}

func TestRestartsInTheCluster(t *testing.T) {
	s := newSite(t)
	meta := func(name string, labels map[string]string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Namespace: s.namespace, Name: name, Labels: labels}
	}
	deployment := func(name string, labels map[string]string) client.Object {
		return s.run(&appsv1.Deployment{ObjectMeta: meta(name, labels), Spec: appsv1.DeploymentSpec{Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: template(labels)}})
	}
	istiod, waypoint := deployment("istiod", map[string]string{"app": "istiod"}), deployment("waypoint", map[string]string{managedLabel: "istio.io-mesh-controller"})
	application := deployment("web", map[string]string{"app": "web"})
	zt := map[string]string{"app": "ztunnel"}
	ztunnel := s.run(&appsv1.DaemonSet{ObjectMeta: meta("ztunnel", nil), Spec: appsv1.DaemonSetSpec{Selector: &metav1.LabelSelector{MatchLabels: zt}, Template: template(zt)}})
	theirs := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: CACertsName, Annotations: map[string]string{"argocd.argoproj.io/tracking-id": "x"}}}
	if err := s.kube.Create(t.Context(), theirs); err != nil {
		t.Fatal(err)
	}

	r1 := newRoot(t, "root g1")
	d := mesh.TrustDirective{Policy: "gloo-mesh/p", Bundle: pemOf(r1.cert)}
	s.issued(&d, order("g1", 1), r1)
	d.Signer, d.Restart = "g1", mesh.RestartOrder{Istiod: "t1", DataPlane: "t1"}
	s.direct(d)
	s.within("the owner is named", func() bool { return s.problems("Argo CD") })
	s.stays("nothing restarts before the new certificate is there", func() bool { return s.token(istiod) == "" && s.token(ztunnel) == "" })

	d.Adopt = true
	s.direct(d)
	s.within("istiod restarts", func() bool { return s.token(istiod) == "t1" })
	s.seen(d) // a round that began before the rollout ended
	s.within("it is said", func() bool { return strings.HasPrefix(s.keeper.State().Restarted.Doing, "istiod: 0 of 1") })
	s.rolled(istiod)
	s.within("istiod has rolled out", func() bool {
		return strings.Contains(s.keeper.State().Restarted.Doing, "waiting for every replica")
	})
	s.stays("ztunnel waits for the probe", func() bool { return s.token(ztunnel) == "" })
	s.seen(d)
	s.within("ztunnel restarts", func() bool { return s.token(ztunnel) == "t1" })
	s.stays("the waypoint waits", func() bool { return s.token(waypoint) == "" })

	generation := func(o client.Object) int64 { s.token(o); return o.GetGeneration() }
	before := generation(istiod)
	s.restart()
	s.direct(d)
	s.seen(d)
	s.rolled(ztunnel)
	s.within("the waypoint restarts, after the agent did", func() bool { s.seen(d); return s.token(waypoint) == "t1" })
	s.rolled(waypoint)
	s.within("done", func() bool {
		s.seen(d)
		st := s.keeper.State().Restarted
		return st.Done == d.Restart && st.Doing == ""
	})
	if generation(istiod) != before || s.token(application) != "" {
		t.Error("istiod was restarted twice, or an application was restarted")
	}
	z := generation(ztunnel)
	s.restart()
	s.direct(d)
	s.within("in force", func() bool { return !s.keeper.State().Signer.IsZero() })
	s.seen(d)
	s.stays("each once per token", func() bool {
		return generation(istiod) == before && generation(ztunnel) == z && s.keeper.State().Restarted.Done == d.Restart
	})
}

// A gateway that the agent may not restart is named, and holds nothing up: it renews by itself, and probes say when. An istiod that it may not restart holds everything up.
func TestMayNotRestart(t *testing.T) {
	s := newSite(t)
	s.stop()
	elsewhere := kubetest.Namespace(t, s.kube)
	rule := func(group, resources, verbs string) rbacv1.PolicyRule {
		return rbacv1.PolicyRule{APIGroups: []string{group}, Resources: strings.Split(resources, ","), Verbs: strings.Split(verbs, ",")}
	}
	user := "agent-of-" + s.namespace
	subject := []rbacv1.Subject{{Kind: "User", Name: user, APIGroup: rbacv1.GroupName}}
	role := &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: user}, Rules: []rbacv1.PolicyRule{rule("", "secrets", "get,list,watch,create,update"), rule("apps", "daemonsets", "patch")}}
	for _, o := range []client.Object{
		role,
		&rbacv1.RoleBinding{ObjectMeta: role.ObjectMeta, Subjects: subject, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: user}},
		&rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: user}, Rules: []rbacv1.PolicyRule{rule("apps", "deployments,daemonsets", "list"), rule("", "namespaces", "get")}},
		&rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: user}, Subjects: subject, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: user}},
	} {
		if err := s.kube.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	labels := map[string]string{managedLabel: "istio.io-gateway-controller"}
	gateway := s.run(&appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: elsewhere, Name: "ingress"}, Spec: appsv1.DeploymentSpec{Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: template(labels)}})
	app := map[string]string{"app": "istiod"}
	istiod := s.run(&appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: "istiod"}, Spec: appsv1.DeploymentSpec{Selector: &metav1.LabelSelector{MatchLabels: app}, Template: template(app)}})
	s.cfg = kubetest.As(s.cfg, user)
	s.start()

	r1 := newRoot(t, "root g1")
	d := mesh.TrustDirective{Policy: "gloo-mesh/p", Bundle: pemOf(r1.cert)}
	s.issued(&d, order("g1", 1), r1)
	d.Signer, d.Restart = "g1", mesh.RestartOrder{DataPlane: "t1"}
	s.direct(d)
	s.within("in force", func() bool { return !s.keeper.State().Signer.IsZero() })
	s.seen(d)
	s.within("the gateway is named", func() bool { return s.problems("may not restart gateway " + elsewhere + "/ingress") })
	s.within("and passed over", func() bool { return s.keeper.State().Restarted.Done.DataPlane == "t1" })
	d.Restart.Istiod = "t2"
	s.direct(d)
	s.within("istiod is named", func() bool { return s.problems("may not restart istiod") })
	s.stays("and waited for", func() bool {
		return s.keeper.State().Restarted.Done.Istiod == "" && s.token(istiod) == "" && s.token(gateway) == ""
	})
}
