package cli

import (
	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// denyDeployments is an admission policy that refuses every Deployment of a namespace.
func denyDeployments(ns string) []client.Object {
	return []client.Object{
		&admissionv1.ValidatingAdmissionPolicy{
			ObjectMeta: metav1.ObjectMeta{Name: "deny-" + ns},
			Spec: admissionv1.ValidatingAdmissionPolicySpec{
				MatchConstraints: &admissionv1.MatchResources{ResourceRules: []admissionv1.NamedRuleWithOperations{{RuleWithOperations: admissionv1.RuleWithOperations{
					Operations: []admissionv1.OperationType{admissionv1.Create}, Rule: admissionv1.Rule{APIGroups: []string{"apps"}, APIVersions: []string{"v1"}, Resources: []string{"deployments"}},
				}}}},
				Validations: []admissionv1.Validation{{Expression: "request.namespace != '" + ns + "'", Message: "no deployments today"}},
			},
		},
		&admissionv1.ValidatingAdmissionPolicyBinding{
			ObjectMeta: metav1.ObjectMeta{Name: "deny-" + ns},
			Spec:       admissionv1.ValidatingAdmissionPolicyBindingSpec{PolicyName: "deny-" + ns, ValidationActions: []admissionv1.ValidationAction{admissionv1.Deny}},
		},
	}
}

// move gives a context another API server.
func (w *world) move(contextName, server string) {
	w.t.Helper()
	config, err := clientcmd.LoadFromFile(w.kubeconfig)
	w.must(err)
	config.Clusters[contextName] = &clientcmdapi.Cluster{Server: server}
	config.Contexts[contextName].Cluster = contextName
	w.save(config)
}
