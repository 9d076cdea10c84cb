package cli

import (
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/charts"
	"ambitmesh.dev/ambit/internal/mesh"
)

// registerPlan is what registering will do, decided from the facts alone.
type registerPlan struct {
	SameCluster bool                       // the management cluster registers itself
	Existing    *adminv2.KubernetesCluster // nil: to be created
	Connected   bool                       // its agent has a session already
	Release     string                     // Helm release of the agent
	NewToken    bool                       // the agent must enrol
	DropClient  bool                       // ... and what it has for a certificate is of no use
	Why         string                     // why a token is needed, or not
	Notes       []string
}

// planRegister decides, or refuses: a refusal has changed nothing.
func planRegister(f *registerFacts, mgmtContext, remoteContext, mgmtNS string) (*registerPlan, error) {
	if f.Service == nil {
		if f.RemoteHub {
			return nil, fmt.Errorf("context %q has no management plane in namespace %q, but %q has one: are --mgmt-context and --remote-context swapped?", mgmtContext, mgmtNS, remoteContext)
		}
		return nil, fmt.Errorf("context %q has no management plane in namespace %q (no Service %s): install it with\n    meshctl install --kubecontext %s --set glooMgmtServer.serviceType=LoadBalancer", mgmtContext, mgmtNS, serverName, mgmtContext)
	}
	if len(f.RootBundle) == 0 {
		return nil, fmt.Errorf("context %q: Secret %s/%s has no ca.crt: the management server makes it at its first start; see\n    meshctl check --kubecontext %s", mgmtContext, mgmtNS, secretRoot, mgmtContext)
	}
	plan := &registerPlan{SameCluster: f.RemoteUID == f.MgmtUID, Release: charts.Platform}
	if err := f.checkNames(plan, mgmtContext, remoteContext); err != nil {
		return nil, err
	}
	if err := f.checkAgent(plan, remoteContext); err != nil {
		return nil, err
	}
	if err := f.decideIdentity(plan, remoteContext); err != nil {
		return nil, err
	}
	return plan, nil
}

// checkNames refuses a name of another cluster, and a cluster of another name.
func (f *registerFacts) checkNames(plan *registerPlan, mgmtContext, remoteContext string) error {
	for i := range f.Clusters {
		c := &f.Clusters[i]
		uid := mesh.ClusterUID(c.Status.ClusterUID)
		switch {
		case c.Name == string(f.Name) && uid != "" && uid != f.RemoteUID:
			return fmt.Errorf("the name %q is taken by another cluster (kube-system UID %s, registered %s); the cluster of context %q is %s.\n"+
				"Choose another name, or deregister that one first: meshctl cluster deregister %s --mgmt-context %s",
				c.Name, uid, registered(c, f.Now), remoteContext, f.RemoteUID, c.Name, mgmtContext)
		case c.Name == string(f.Name):
			plan.Existing = c
			plan.Connected = uid == f.RemoteUID && c.Status.Connection == adminv2.ConnectionConnected
		case uid != "" && uid == f.RemoteUID:
			return fmt.Errorf("the cluster of context %q (kube-system UID %s) is registered as %q already, %s.\n"+
				"A cluster has one name. To rename it, deregister it first: meshctl cluster deregister %s --mgmt-context %s --remote-context %s",
				remoteContext, uid, c.Name, registered(c, f.Now), c.Name, mgmtContext, remoteContext)
		}
	}
	for _, r := range f.Registrations {
		if f.Now.After(r.Expires) || !f.exists(r.Cluster) {
			continue
		}
		switch {
		case r.Cluster == f.Name && r.UID != "" && r.UID != f.RemoteUID:
			return fmt.Errorf("the name %q is being registered for another cluster (kube-system UID %s) at this moment; the cluster of context %q is %s. Choose another name, or wait until %s",
				f.Name, r.UID, remoteContext, f.RemoteUID, r.Expires.Local().Format(time.TimeOnly))
		case r.Cluster != f.Name && r.UID == f.RemoteUID:
			return fmt.Errorf("the cluster of context %q is being registered as %q already. To give it another name, deregister it first: meshctl cluster deregister %s --mgmt-context %s --remote-context %s",
				remoteContext, r.Cluster, r.Cluster, mgmtContext, remoteContext)
		}
	}
	return nil
}

func (f *registerFacts) exists(name mesh.ClusterName) bool {
	return slices.ContainsFunc(f.Clusters, func(c adminv2.KubernetesCluster) bool { return c.Name == string(name) })
}

// checkAgent refuses a cluster whose agent serves another name, and finds the Helm release to upgrade.
func (f *registerFacts) checkAgent(plan *registerPlan, remoteContext string) error {
	if f.Agent == nil {
		return nil
	}
	if f.Agent.Cluster != "" && f.Agent.Cluster != f.Name {
		return fmt.Errorf("the cluster of context %q runs an agent for the name %q (image %s), so it belongs to this or another management plane already.\n"+
			"Remove it first: meshctl cluster deregister %s --mgmt-context CONTEXT --remote-context %s", remoteContext, f.Agent.Cluster, f.Agent.Image, f.Agent.Cluster, remoteContext)
	}
	if f.Agent.Release != "" {
		plan.Release = f.Agent.Release
		return nil
	}
	plan.Notes = append(plan.Notes, fmt.Sprintf("Deployment %s exists and was not installed by Helm: Helm release %s takes it over", agentName, charts.Platform))
	return nil
}

// decideIdentity: does the agent have to enrol, or can it connect with the certificate it has?
func (f *registerFacts) decideIdentity(plan *registerPlan, remoteContext string) error {
	if plan.Connected {
		plan.Why = "the agent is connected: it keeps its identity, no new token"
		return nil
	}
	if f.Certificate == nil {
		plan.NewToken, plan.Why = true, "the agent has no certificate yet: it enrols with a single-use token"
		return nil
	}
	problem := f.certificateProblem()
	if problem == "" {
		plan.Why = "the cluster has a usable client certificate: no token needed"
		return nil
	}
	if plan.SameCluster {
		return fmt.Errorf("context %q is the management cluster itself, whose own certificate %s: %s. Register it under the name its management server has (common.cluster), or repair the family: meshctl relay repair", remoteContext, secretClient, problem)
	}
	plan.NewToken, plan.DropClient = true, true
	plan.Why = fmt.Sprintf("the certificate in %s can't be used (%s): the agent enrols anew with a single-use token", secretClient, problem)
	return nil
}

// certificateProblem says why the management server would refuse the certificate, "" if it would not.
func (f *registerFacts) certificateProblem() string {
	c := f.Certificate
	switch {
	case c.Problem != "":
		return c.Problem
	case c.Cert.Subject.CommonName != string(f.Name) && !slices.Contains(c.Cert.DNSNames, string(f.Name)):
		return fmt.Sprintf("it is of cluster %q", firstOf(c.Cert.Subject.CommonName, strings.Join(c.Cert.DNSNames, ",")))
	case f.Now.After(c.Cert.NotAfter):
		return "it expired on " + c.Cert.NotAfter.UTC().Format(time.RFC3339)
	case slices.Contains(f.RevokedKeys, c.Key):
		return "its key was revoked when the cluster was deregistered"
	}
	pool := x509.NewCertPool()
	for _, signer := range f.Signers {
		pool.AddCert(signer)
	}
	if _, err := c.Cert.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: f.Now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return "it was not signed by this management plane"
	}
	return ""
}

// registered says by whom and when.
func registered(c *adminv2.KubernetesCluster, now time.Time) string {
	by := firstOf(c.Status.RegisteredBy, c.Annotations[adminv2.AnnotationRegisteredBy])
	at := c.CreationTimestamp.Time
	if c.Status.RegisteredAt != nil {
		at = c.Status.RegisteredAt.Time
	}
	out := fmt.Sprintf("on %s, %s ago", at.UTC().Format(time.RFC3339), short(now.Sub(at)))
	if by != "" {
		out = "by " + by + " " + out
	}
	return out
}

// addressOf settles the relay address: the flag, then the person's values, then the Service.
func addressOf(flag string, values map[string]any, service *corev1.Service, nodes []corev1.Node, sameCluster bool) (address, how string, err error) {
	if flag != "" {
		address, err = parseRelayAddress(flag)
		return address, "--relay-server-address", err
	}
	if v, ok := valueAt(values, "glooAgent", "relay", "serverAddress").(string); ok && v != "" {
		address, err = parseRelayAddress(v)
		return address, "glooAgent.relay.serverAddress", err
	}
	return relayAddress(service, nodes, sameCluster)
}

// checkVersion reads --version; differs tells that the images will not be those this meshctl was built with.
func checkVersion(given, own string) (version string, differs bool, err error) {
	v := strings.TrimPrefix(given, "v")
	if v == "" {
		return "", false, nil
	}
	if len(v) > 128 || strings.ContainsAny(v, " /:@\t\n") {
		return "", false, usageError("--version %q: want a version such as %s", given, own)
	}
	return v, v != own, nil
}
