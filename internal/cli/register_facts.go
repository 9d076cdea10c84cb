package cli

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/mesh"
)

// The Secrets of the relay, as the programs know them.
const (
	secretRoot         = "relay-root-tls-secret"       //nolint:gosec // a name
	secretServer       = "relay-server-tls-secret"     //nolint:gosec // a name
	secretClient       = "relay-client-tls-secret"     //nolint:gosec // a name
	secretSigning      = "relay-tls-signing-secret"    //nolint:gosec // a name
	secretToken        = "relay-identity-token-secret" //nolint:gosec // a name
	secretRegistration = "relay-registration-token"    //nolint:gosec // a name; on the workload cluster

	prefixRegistration = "relay-registration-" // on the management cluster: the token's hash
	prefixIdentity     = "relay-identity-"     // on the management cluster: the keys the cluster used

	typeRegistration = "ambitmesh.dev/relay-registration"
	labelCluster     = "admin.gloo.solo.io/cluster"
	annotationMadeBy = "admin.gloo.solo.io/created-by" // on a namespace that meshctl made
)

// registration is a token handed out and perhaps not used yet.
type registration struct {
	Cluster mesh.ClusterName
	UID     mesh.ClusterUID
	Expires time.Time
}

// clientCertificate is the agent's certificate as far as it decides whether the agent can connect with it.
type clientCertificate struct {
	Problem string // why it is no certificate at all
	Cert    *x509.Certificate
	Key     mesh.Fingerprint // of its public key
}

// remoteAgent is what runs on the cluster to be registered.
type remoteAgent struct {
	Cluster mesh.ClusterName // --cluster of the Deployment
	Release string           // Helm release it belongs to; empty when Helm does not know it
	Image   string
}

// registerFacts is what is known before anything is changed.
type registerFacts struct {
	Now  time.Time
	Name mesh.ClusterName

	MgmtUID       mesh.ClusterUID
	Clusters      []adminv2.KubernetesCluster
	Registrations []registration
	RevokedKeys   []mesh.Fingerprint  // of this name
	Signers       []*x509.Certificate // that the management server accepts client certificates of
	RootBundle    []byte              // public certificates
	Service       *corev1.Service
	Nodes         []corev1.Node

	RemoteUID   mesh.ClusterUID
	Agent       *remoteAgent
	RemoteHub   bool     // the remote cluster runs a management server
	EastWest    []string // namespaces with an east-west gateway of Istio, sorted
	Certificate *clientCertificate
}

// gatherRegister reads both clusters, side by side; it changes nothing.
func gatherRegister(ctx context.Context, name mesh.ClusterName, mgmt, remote *cluster, mgmtNS, remoteNS string) (*registerFacts, error) {
	f := &registerFacts{Now: time.Now(), Name: name}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) { f.MgmtUID, err = mgmt.uid(ctx); return err })
	g.Go(func() (err error) { f.RemoteUID, err = remote.uid(ctx); return err })
	g.Go(func() error { return f.readClusters(ctx, mgmt, mgmtNS) })
	g.Go(func() error { return f.readMgmtSecrets(ctx, mgmt, mgmtNS) })
	g.Go(func() error { return f.readService(ctx, mgmt, mgmtNS) })
	g.Go(func() error { return f.readRemote(ctx, remote, remoteNS) })
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return f, nil
}

// uid is the UID of kube-system: what the cluster is, whatever it is called.
func (c *cluster) uid(ctx context.Context) (mesh.ClusterUID, error) {
	var ns corev1.Namespace
	if err := c.Get(ctx, types.NamespacedName{Name: "kube-system"}, &ns); err != nil {
		return "", c.says("read namespace kube-system", err)
	}
	return mesh.ClusterUID(ns.UID), nil
}

// found reads an object; ok is false when it does not exist, or its kind doesn't.
func (c *cluster) found(ctx context.Context, namespace, name string, into client.Object) (ok bool, err error) {
	err = c.Get(ctx, types.NamespacedName{Namespace: namespace, Name: name}, into)
	if apierrors.IsNotFound(err) || meta.IsNoMatchError(err) {
		return false, nil
	}
	return err == nil, err
}

func (f *registerFacts) readClusters(ctx context.Context, mgmt *cluster, namespace string) error {
	var list adminv2.KubernetesClusterList
	err := mgmt.List(ctx, &list, client.InNamespace(namespace))
	if meta.IsNoMatchError(err) || apierrors.IsNotFound(err) {
		return nil // no CRD: the missing Service says the same, better
	}
	f.Clusters = list.Items
	return mgmt.says("list KubernetesClusters", err)
}

func (f *registerFacts) readMgmtSecrets(ctx context.Context, mgmt *cluster, namespace string) error {
	var list corev1.SecretList
	if err := mgmt.List(ctx, &list, client.InNamespace(namespace)); err != nil {
		return mgmt.says("list Secrets in "+namespace, err)
	}
	for _, s := range list.Items {
		switch {
		case s.Name == secretRoot:
			f.RootBundle = s.Data["ca.crt"]
		case s.Name == secretSigning:
			f.Signers = append(parseCertificates(s.Data["tls.crt"]), parseCertificates(s.Data["previous.crt"])...)
		case s.Name == prefixIdentity+string(f.Name) && s.Data["record"] != nil:
			f.RevokedKeys = revokedKeys(s.Data["record"])
		case string(s.Type) == typeRegistration:
			expires, _ := time.Parse(time.RFC3339, string(s.Data["expires"]))
			f.Registrations = append(f.Registrations, registration{
				Cluster: mesh.ClusterName(strings.TrimPrefix(s.Name, prefixRegistration)), UID: mesh.ClusterUID(s.Data["uid"]), Expires: expires,
			})
		}
	}
	return nil
}

func (f *registerFacts) readService(ctx context.Context, mgmt *cluster, namespace string) error {
	var service corev1.Service
	ok, err := mgmt.found(ctx, namespace, serverName, &service)
	if err != nil {
		return mgmt.says("read Service "+serverName, err)
	}
	if !ok {
		return nil
	}
	f.Service = &service
	if service.Spec.Type != corev1.ServiceTypeNodePort {
		return nil
	}
	var nodes corev1.NodeList
	if err := mgmt.List(ctx, &nodes); err != nil && !apierrors.IsForbidden(err) {
		return mgmt.says("list Nodes", err)
	}
	f.Nodes = nodes.Items
	return nil
}

func (f *registerFacts) readRemote(ctx context.Context, remote *cluster, namespace string) error {
	var agent, server appsv1.Deployment
	ok, err := remote.found(ctx, namespace, agentName, &agent)
	if err != nil {
		return remote.says("read Deployment "+agentName, err)
	}
	if ok {
		f.Agent = agentOf(&agent)
	}
	if f.RemoteHub, err = remote.found(ctx, namespace, serverName, &server); err != nil {
		return remote.says("read Deployment "+serverName, err)
	}
	var gateways appsv1.DeploymentList
	if err := remote.List(ctx, &gateways, client.MatchingLabels{"gateway.istio.io/managed": "istio.io-eastwest-controller"}); err != nil && !apierrors.IsForbidden(err) {
		return remote.says("list Deployments", err)
	}
	for i := range gateways.Items {
		f.EastWest = append(f.EastWest, gateways.Items[i].Namespace)
	}
	slices.Sort(f.EastWest)
	f.EastWest = slices.Compact(f.EastWest)
	var secret corev1.Secret
	ok, err = remote.found(ctx, namespace, secretClient, &secret)
	if err != nil {
		return remote.says("read Secret "+secretClient, err)
	}
	if ok && len(secret.Data["tls.crt"]) > 0 { // without one: an agent that has not enrolled yet keeps its pending key there
		f.Certificate = parseClientCertificate(secret.Data["tls.crt"])
	}
	return nil
}

func agentOf(d *appsv1.Deployment) *remoteAgent {
	out := &remoteAgent{Release: d.Annotations["meta.helm.sh/release-name"]}
	for _, c := range d.Spec.Template.Spec.Containers {
		if c.Name != agentName {
			continue
		}
		out.Image = c.Image
		for _, arg := range c.Args {
			if name, ok := strings.CutPrefix(arg, "--cluster="); ok {
				out.Cluster = mesh.ClusterName(name)
			}
		}
	}
	return out
}

func parseCertificates(raw []byte) []*x509.Certificate {
	var out []*x509.Certificate
	for {
		var block *pem.Block
		if block, raw = pem.Decode(raw); block == nil {
			return out
		}
		if cert, err := x509.ParseCertificate(block.Bytes); err == nil {
			out = append(out, cert)
		}
	}
}

func parseClientCertificate(raw []byte) *clientCertificate {
	certs := parseCertificates(raw)
	if len(certs) == 0 {
		return &clientCertificate{Problem: "its tls.crt holds no certificate"}
	}
	return &clientCertificate{Cert: certs[0], Key: mesh.FingerprintOf(certs[0].RawSubjectPublicKeyInfo)}
}

// identityRecord is what the management server records of the keys a cluster used; other fields are its own business.
type identityRecord struct {
	Keys []struct {
		SPKI    mesh.Fingerprint `json:"spki"`
		Revoked bool             `json:"revoked"`
	} `json:"keys"`
}

// revokedKeys reads which keys of a cluster were revoked.
func revokedKeys(raw []byte) []mesh.Fingerprint {
	var record identityRecord
	if json.Unmarshal(raw, &record) != nil {
		return nil
	}
	var out []mesh.Fingerprint
	for _, k := range record.Keys {
		if k.Revoked {
			out = append(out, k.SPKI)
		}
	}
	return out
}

// allRevoked reports whether every key in the record is revoked.
func allRevoked(raw []byte) bool {
	var record identityRecord
	if json.Unmarshal(raw, &record) != nil {
		return false
	}
	for _, k := range record.Keys {
		if !k.Revoked {
			return false
		}
	}
	return true
}
