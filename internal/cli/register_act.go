package cli

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/charts"
	"ambitmesh.dev/ambit/internal/mesh"
)

// tokenLife is how long a registration token can be redeemed.
const tokenLife = 15 * time.Minute

// act changes the two clusters. The KubernetesCluster comes first: when the webhook refuses it, nothing else has happened.
func (r *registering) act(ctx context.Context) error {
	kc, err := r.ensureCluster(ctx)
	if err != nil {
		return err
	}
	var token, registrationID string
	if r.plan.NewToken {
		token, registrationID = rand.Text()+rand.Text(), rand.Text()[:8] // 2 x 130 bits; held in memory only
	}
	g, gctx := errgroup.WithContext(ctx)
	if r.plan.NewToken {
		g.Go(func() error { return r.announceToken(gctx, kc, token) })
	}
	g.Go(func() error { return r.prepareRemote(gctx, token) })
	if err := g.Wait(); err != nil {
		return err
	}
	return r.installAgent(ctx, registrationID)
}

func (r *registering) ensureCluster(ctx context.Context) (*adminv2.KubernetesCluster, error) {
	if kc := r.plan.Existing; kc != nil {
		before := kc.DeepCopy()
		if r.clusterDomain != "" {
			kc.Spec.ClusterDomain = r.clusterDomain
		}
		if kc.Labels == nil {
			kc.Labels = map[string]string{}
		}
		maps.Copy(kc.Labels, r.labels)
		if kc.Spec != before.Spec || !maps.Equal(kc.Labels, before.Labels) {
			if err := r.mgmt.Patch(ctx, kc, client.MergeFrom(before)); err != nil {
				return nil, r.mgmt.says("change KubernetesCluster "+kc.Name, err)
			}
			r.out.done("changed KubernetesCluster %s/%s on %s", kc.Namespace, kc.Name, r.mgmt.Context)
			return kc, nil
		}
		r.out.fine("KubernetesCluster %s/%s exists on %s", kc.Namespace, kc.Name, r.mgmt.Context)
		return kc, nil
	}
	kc := &adminv2.KubernetesCluster{
		ObjectMeta: metav1.ObjectMeta{Name: string(r.name), Namespace: r.mgmtNamespace, Labels: r.labels},
		Spec:       adminv2.KubernetesClusterSpec{ClusterDomain: r.clusterDomain},
	}
	err := r.mgmt.Create(ctx, kc)
	if apierrors.IsAlreadyExists(err) {
		return nil, fmt.Errorf("context %q: KubernetesCluster %s was created by somebody else at this moment: run the command again", r.mgmt.Context, r.name)
	}
	if err != nil {
		return nil, r.mgmt.says("create KubernetesCluster "+kc.Name, err)
	}
	r.out.done("created KubernetesCluster %s/%s on %s", kc.Namespace, kc.Name, r.mgmt.Context)
	return kc, nil
}

// announceToken leaves the token's hash with the management server. It goes when the KubernetesCluster goes.
func (r *registering) announceToken(ctx context.Context, kc *adminv2.KubernetesCluster, token string) error {
	hash := sha256.Sum256([]byte(token))
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Name: prefixRegistration + kc.Name, Namespace: r.mgmtNamespace,
			Labels: map[string]string{labelCluster: kc.Name},
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: adminv2.GroupVersion().String(), Kind: "KubernetesCluster", Name: kc.Name, UID: kc.UID,
			}},
		},
		Type: typeRegistration,
		Data: map[string][]byte{
			"tokenHash": []byte(hex.EncodeToString(hash[:])),
			"expires":   []byte(time.Now().Add(tokenLife).UTC().Format(time.RFC3339)),
			"uid":       []byte(r.facts.RemoteUID),
		},
	}
	if err := r.mgmt.replace(ctx, secret); err != nil {
		return err
	}
	r.out.done("announced a single-use token to the management server (its hash, good for %s)", short(tokenLife))
	return nil
}

// replace creates a Secret, or gives an existing one these labels, owners and data, and no others.
func (c *cluster) replace(ctx context.Context, secret *corev1.Secret) error {
	what := fmt.Sprintf("write Secret %s/%s", secret.Namespace, secret.Name)
	err := c.Create(ctx, secret.DeepCopy())
	if !apierrors.IsAlreadyExists(err) {
		return c.says(what, err)
	}
	var old corev1.Secret
	if err := c.Get(ctx, client.ObjectKeyFromObject(secret), &old); err != nil {
		return c.says(what, err)
	}
	if old.Type == secret.Type || secret.Type == "" {
		old.Labels, old.OwnerReferences, old.Data = secret.Labels, secret.OwnerReferences, secret.Data
		return c.says(what, c.Update(ctx, &old))
	}
	// The type of a Secret can't be changed.
	if err := c.Delete(ctx, &old); err != nil && !apierrors.IsNotFound(err) {
		return c.says(what, err)
	}
	return c.says(what, c.Create(ctx, secret.DeepCopy()))
}

// prepareRemote makes the namespace and gives the new cluster the relay's public root and the token.
func (r *registering) prepareRemote(ctx context.Context, token string) error {
	if err := r.remote.ensureNamespace(ctx, r.remoteNamespace, r.out); err != nil {
		return err
	}
	if err := r.remote.awaitLeaving(ctx, mesh.TokensNamespace(r.remoteNamespace), r.out); err != nil { // the chart makes it
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	if !r.plan.SameCluster {
		g.Go(func() error { return r.copyRoot(ctx) })
	}
	if r.plan.NewToken {
		g.Go(func() error {
			secret := &corev1.Secret{
				ObjectMeta: metav1.ObjectMeta{Name: secretRegistration, Namespace: r.remoteNamespace, Labels: map[string]string{labelCluster: string(r.name)}},
				Type:       corev1.SecretTypeOpaque,
				Data:       map[string][]byte{"token": []byte(token)},
			}
			if err := r.remote.replace(ctx, secret); err != nil {
				return err
			}
			r.out.done("handed the token to %s (Secret %s/%s; the agent deletes it)", r.remote.Context, r.remoteNamespace, secretRegistration)
			return nil
		})
	}
	if r.plan.DropClient {
		g.Go(func() error {
			stale := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: secretClient, Namespace: r.remoteNamespace}}
			if err := r.remote.Delete(ctx, stale); err != nil && !apierrors.IsNotFound(err) {
				return r.remote.says("delete Secret "+secretClient, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	r.out.note("%s", r.plan.Why)
	return nil
}

// copyRoot writes the public certificates only: whoever copied the whole Secret by hand left the root's key there; it goes now.
func (r *registering) copyRoot(ctx context.Context) error {
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: secretRoot, Namespace: r.remoteNamespace, Labels: map[string]string{labelCluster: string(r.name)}},
		Data:       map[string][]byte{"ca.crt": r.facts.RootBundle},
	}
	var old corev1.Secret
	ok, err := r.remote.found(ctx, r.remoteNamespace, secretRoot, &old)
	if err != nil {
		return r.remote.says("read Secret "+secretRoot, err)
	}
	if ok && len(old.Data) == 1 && string(old.Data["ca.crt"]) == string(r.facts.RootBundle) {
		r.out.fine("the relay's root is in %s", r.remote.Context)
		return nil
	}
	if len(old.Data["tls.key"]) > 0 {
		r.out.warn("Secret %s/%s on %s held a copy of the root's private key: replaced by the public certificates. Consider meshctl relay rotate", r.remoteNamespace, secretRoot, r.remote.Context)
	}
	if ok && old.Type == corev1.SecretTypeTLS { // that type demands a key
		secret.Type = corev1.SecretTypeOpaque
	}
	if err := r.remote.replace(ctx, secret); err != nil {
		return err
	}
	r.out.done("gave the relay's root (public certificates) to %s", r.remote.Context)
	return nil
}

func (c *cluster) ensureNamespace(ctx context.Context, name string, out *progress) error {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{annotationMadeBy: "meshctl"}}}
	var old corev1.Namespace
	exists, err := c.found(ctx, "", name, &old)
	if err != nil {
		return c.says("read namespace "+name, err)
	}
	if exists && old.DeletionTimestamp != nil {
		out.note("namespace %s on %s is being deleted: waiting until it is gone", name, c.Context)
		if err := c.awaitNamespaceGone(ctx, name); err != nil {
			return err
		}
		exists = false
	}
	if exists {
		return nil
	}
	if err := c.Create(ctx, ns); apierrors.IsAlreadyExists(err) {
		return nil // somebody else made it at this moment
	} else if err != nil {
		return c.says("create namespace "+name, err)
	}
	out.done("created namespace %s on %s", name, c.Context)
	return nil
}

// awaitLeaving waits for a namespace that is being deleted; one that stays is fine.
func (c *cluster) awaitLeaving(ctx context.Context, name string, out *progress) error {
	var ns corev1.Namespace
	if exists, err := c.found(ctx, "", name, &ns); err != nil || !exists || ns.DeletionTimestamp == nil {
		return c.says("read namespace "+name, err)
	}
	out.note("namespace %s on %s is being deleted: waiting until it is gone", name, c.Context)
	return c.awaitNamespaceGone(ctx, name)
}

// awaitNamespaceGone waits until a namespace that is being deleted is gone; when that takes too long it says what Kubernetes says of it.
func (c *cluster) awaitNamespaceGone(ctx context.Context, name string) error {
	why := ""
	for {
		var ns corev1.Namespace
		exists, err := c.found(ctx, "", name, &ns)
		if err == nil && !exists {
			return nil
		}
		if err != nil && ctx.Err() == nil {
			return c.says("read namespace "+name, err)
		}
		for _, condition := range ns.Status.Conditions {
			if condition.Status == corev1.ConditionTrue {
				why = ": " + condition.Message
			}
		}
		select {
		case <-ctx.Done():
			return notReached(fmt.Errorf("context %q: namespace %s is still being deleted%s", c.Context, name, why))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// installAgent installs the two charts side by side.
func (r *registering) installAgent(ctx context.Context, registrationID string) error {
	h := &helm{cluster: r.remote, namespace: r.remoteNamespace, app: r.app}
	previous, err := h.values(r.plan.Release)
	if err != nil {
		return err
	}
	if len(r.facts.EastWest) > 0 && valueAt(merge(previous, r.values), "glooAgent", "trust", "restartNamespaces") == nil {
		previous = merge(previous, restartValues(r.facts.EastWest))
		r.out.note("the agent may restart the east-west gateway in %s, which a RootTrustPolicy can ask for (glooAgent.trust.restartNamespaces)", strings.Join(r.facts.EastWest, ", "))
	}
	if valueAt(merge(previous, r.values), "glooAgent", "remoteSecrets", "apiServer") == nil {
		previous = merge(previous, apiServerValues(r.remote.config.Host))
	}
	values := merge(previous, agentValues(string(r.name), r.address, r.mgmtNamespace, r.clusterDomain, r.imageTag, registrationID))
	values = merge(values, r.values)
	values = merge(values, map[string]any{"glooAgent": map[string]any{"relay": map[string]any{"serverAddress": r.address}}})
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if _, err := h.apply(ctx, charts.CRDs, charts.CRDs, map[string]any{}); err != nil {
			return err
		}
		r.out.done("installed the CRDs on %s (Helm release %s/%s)", r.remote.Context, r.remoteNamespace, charts.CRDs)
		return nil
	})
	g.Go(func() error {
		if _, err := h.apply(ctx, r.plan.Release, charts.Platform, values); err != nil {
			return err
		}
		r.out.done("installed the agent on %s (Helm release %s/%s)", r.remote.Context, r.remoteNamespace, r.plan.Release)
		return nil
	})
	return g.Wait()
}
