package rotation

import (
	"context"
	"crypto/x509/pkix"
	"fmt"
	"maps"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"time"

	"ambitmesh.dev/ambit/internal/authority"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/pki"
	"ambitmesh.dev/ambit/internal/trust"
)

const (
	// authorityTimeout bounds one question to an authority.
	authorityTimeout = 30 * time.Second
	// lookAtRoots is how often an external authority is asked whether its root is still the same.
	lookAtRoots = time.Minute
	// maxBackoff bounds the pause after refusals of an authority.
	maxBackoff = 2 * time.Minute
	// maxSigning is how many signatures one authority is asked for at once: one that hangs holds up nobody else's.
	maxSigning = 16
)

// rootAnswer is what an authority said about its root.
type rootAnswer struct {
	authority string // identify, when it was asked
	root      *trust.Root
	passive   []trust.Root // of a passive authority
	asking    bool
	at        time.Time // when it was asked last
	failure   failure
}

// identify names an authority by all that makes it another one: driver, place, and how its root is to be.
func identify(a mesh.Authority) string {
	switch {
	case a.Generated != nil:
		return fmt.Sprintf("generated %s, O=%s, %s", a.Generated.Algorithm, a.Generated.Organization, a.Generated.TTL)
	case a.Secret != "":
		return "Secret " + a.Secret
	case a.Vault != nil:
		place := []string{"Vault", a.Vault.Server}
		for _, part := range []string{a.Vault.Namespace, a.Vault.Mount, a.Vault.SignPath, a.Vault.Issuer} {
			if part != "" {
				place = append(place, part)
			}
		}
		return strings.Join(place, " ")
	case a.AWS != nil:
		return "AWS Private CA " + a.AWS.ARN
	case a.CertManager != nil:
		return fmt.Sprintf("cert-manager %s.%s %s", a.CertManager.Kind, a.CertManager.Group, a.CertManager.Name)
	default:
		return "nothing"
	}
}

// root is the authority's answer, nil while there is none for this authority.
func (k *Keeper) root(policy, authority string) *trust.Root {
	k.mu.Lock()
	defer k.mu.Unlock()
	if a := k.roots[policy]; a.authority == authority {
		return a.root
	}
	return nil
}

// issuing says what authorities refuse for a policy, "" for nothing, and for which clusters. authority is the policy's.
func (k *Keeper) issuing(policy, authority string) (string, map[mesh.ClusterName]string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	refusals := map[mesh.ClusterName]string{}
	var all []string
	for key, f := range k.failures {
		if key.policy == policy {
			refusals[key.cluster] = f.err.Error()
			all = append(all, fmt.Sprintf("cluster %s: %v", key.cluster, f.err))
		}
	}
	if a := k.roots[policy]; a.authority == authority && a.failure.err != nil {
		return a.failure.err.Error(), refusals
	}
	slices.Sort(all)
	if len(all) > 1 {
		return fmt.Sprintf("%s (and %d more)", all[0], len(all)-1), refusals
	}
	return strings.Join(all, ""), refusals
}

// askRoot asks the authority for a root when the decision needs one, and an external one now and then whether its root is still the same.
func (k *Keeper) askRoot(ctx context.Context, t *turn) {
	name, id := t.policy.Source.Name, identify(t.policy.Authority)
	k.mu.Lock()
	defer k.mu.Unlock()
	a := k.roots[name]
	if a.authority != id {
		a = rootAnswer{authority: id}
	}
	external := t.policy.Authority.Generated == nil
	due := t.step.Root != nil || external && t.now.Sub(a.at) > lookAtRoots && !t.step.Rotation.Current.Fingerprint.IsZero()
	if a.asking || !due || a.failure.pauses(t) {
		return
	}
	generation := t.step.Rotation.Generation + 1
	if t.step.Root != nil {
		generation = t.step.Root.Generation
	}
	a.asking, a.at = true, t.now
	k.roots[name] = a
	t.wg.Go(func() {
		root, err := k.fetchRoot(ctx, t, generation)
		k.mu.Lock()
		defer k.mu.Unlock()
		defer k.Ring()
		a := k.roots[name]
		if a.authority != id {
			return // the policy has changed meanwhile
		}
		a.asking = false
		if a.failure = a.failure.next(err, t, time.Now()); err == nil {
			a.root = root
		} else if ctx.Err() == nil {
			k.cfg.Log.Warn("no root from the certificate authority", "policy", name, "authority", id, "error", err)
		}
		k.roots[name] = a
	})
}

// next is the failure after another answer: with growing pauses, or those that the authority asks for.
func (f failure) next(err error, t *turn, now time.Time) failure {
	if err == nil {
		return failure{}
	}
	if f.spec != t.policy.Generation {
		f.tries = 0
	}
	pause := min(time.Second<<min(f.tries, 10), maxBackoff)
	if u, ok := authority.AsUnavailable(err); ok && u.RetryAfter > 0 {
		pause = u.RetryAfter
	}
	return failure{err: err, tries: f.tries + 1, again: now.Add(pause), spec: t.policy.Generation}
}

// askAgain is how long it takes until an authority may be asked again after a failure, 0 if there is none.
func (k *Keeper) askAgain(policy string, now time.Time) time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	var wait time.Duration
	soon := func(f failure) {
		if f.err != nil {
			wait = soonest(wait, max(f.again.Sub(now), settleFor))
		}
	}
	soon(k.roots[policy].failure)
	for key, f := range k.failures {
		if key.policy == policy {
			soon(f)
		}
	}
	return wait
}

// fetchRoot gets the root that the policy's authority signs under now, and remembers by which authority.
func (k *Keeper) fetchRoot(ctx context.Context, t *turn, generation mesh.Generation) (*trust.Root, error) {
	ctx, cancel := context.WithTimeout(ctx, authorityTimeout)
	defer cancel()
	name, by := t.policy.Source.Name, t.policy.Authority
	record := k.store.policy(name)
	au, err := k.cfg.Issuers.open(ctx, t.policy, by, generation)
	if err != nil {
		return nil, err
	}
	roots, err := au.Roots(ctx)
	if err != nil {
		return nil, err
	}
	if len(roots) == 0 {
		return nil, fmt.Errorf("%s names no root", identify(by))
	}
	der := roots[0].Raw
	if i := slices.IndexFunc(record.Roots, func(r rootRecord) bool { return r.Fingerprint == mesh.FingerprintOf(der) }); i >= 0 {
		root := record.Roots[i].Root
		root.Authority = identify(by)
		if identify(record.Roots[i].By) == root.Authority {
			if reflect.DeepEqual(record.Roots[i].By, by) {
				return &root, nil
			}
			record.Roots = slices.Clone(record.Roots)
			record.Roots[i].By = by // another way to log in
			return &root, k.store.setPolicy(ctx, name, record)
		}
		record.Roots = slices.Delete(slices.Clone(record.Roots), i, i+1)
		generation = root.Generation
	}
	root, err := trust.RootOf(der, generation, identify(by))
	if err != nil {
		return nil, err
	}
	if t.policy.CrossSign {
		root.CrossSigned = k.crossSign(ctx, t, record, &root)
	}
	record.Roots = append(slices.Clone(record.Roots), rootRecord{Root: root, By: by})
	if err := k.store.setPolicy(ctx, name, record); err != nil {
		return nil, err
	}
	return &root, nil
}

// crossSign has the root certified by the one in force. Where that can't be, the rotation goes without: it is a seat belt.
func (k *Keeper) crossSign(ctx context.Context, t *turn, record policyRecord, root *trust.Root) []byte {
	current := t.step.Rotation.Current.Fingerprint
	i := slices.IndexFunc(record.Roots, func(r rootRecord) bool { return r.Fingerprint == current })
	if i < 0 || current == root.Fingerprint {
		return nil
	}
	au, err := k.cfg.Issuers.open(ctx, t.policy, record.Roots[i].By, record.Roots[i].Generation)
	if err == nil {
		if signer, ok := au.(authority.CrossSigner); ok {
			certs, perr := pki.ParseCertificates(pemOf(root.Certificate))
			if err = perr; err == nil {
				cross, cerr := signer.CrossSign(ctx, certs[0])
				if err = cerr; err == nil {
					return cross.Raw
				}
			}
		} else {
			err = fmt.Errorf("%s can't cross-sign", identify(record.Roots[i].By))
		}
	}
	k.cfg.Log.Warn("no cross-signed root: the rotation goes without", "policy", t.policy.Source.Name, "error", err)
	return nil
}

// sign has slots certified, several at once; a slow authority keeps nobody else waiting.
func (k *Keeper) sign(ctx context.Context, t *turn) {
	k.outdated(t)
	for _, o := range t.step.Sign {
		key := signKey{policy: t.policy.Source.Name, cluster: o.Cluster, slot: o.Slot, root: o.Root}
		csr := k.cfg.Board.look(o.Cluster).requests[o.Slot]
		k.mu.Lock()
		skip := k.signing[key] || k.failures[key].pauses(t) || csr == nil
		if !skip {
			k.signing[key] = true
		}
		k.mu.Unlock()
		if skip {
			continue
		}
		order := slot(t.step.Directives[o.Cluster], o.Slot)
		t.wg.Go(func() {
			err := k.signOne(ctx, t, o, order, csr)
			k.mu.Lock()
			defer k.mu.Unlock()
			delete(k.signing, key)
			if f := k.failures[key].next(err, t, time.Now()); err == nil {
				delete(k.failures, key)
			} else if ctx.Err() == nil {
				k.failures[key] = f
				k.cfg.Log.Warn("intermediate not signed", "policy", key.policy, "cluster", o.Cluster, "slot", o.Slot, "error", err)
			}
			k.Ring()
		})
	}
}

// outdated drops failures of what nobody wants signed any more.
func (k *Keeper) outdated(t *turn) {
	name := t.policy.Source.Name
	k.mu.Lock()
	defer k.mu.Unlock()
	maps.DeleteFunc(k.failures, func(key signKey, _ failure) bool {
		return key.policy == name && !slices.ContainsFunc(t.step.Sign, func(o trust.SignOrder) bool {
			return key == signKey{policy: name, cluster: o.Cluster, slot: o.Slot, root: o.Root}
		})
	})
}

// place waits until the authority may be asked for one more signature; the function returned gives the place back.
func (k *Keeper) place(ctx context.Context, authority string) (func(), error) {
	k.mu.Lock()
	free := k.free[authority]
	if free == nil {
		free = make(chan struct{}, maxSigning)
		k.free[authority] = free
	}
	k.mu.Unlock()
	select {
	case free <- struct{}{}:
		return func() { <-free }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func slot(d *mesh.TrustDirective, id string) mesh.IntermediateOrder {
	if d != nil {
		for _, o := range d.Intermediates {
			if o.ID == id {
				return o
			}
		}
	}
	return mesh.IntermediateOrder{ID: id}
}

// signOne has one slot certified and stores the result.
func (k *Keeper) signOne(ctx context.Context, t *turn, o trust.SignOrder, order mesh.IntermediateOrder, csr []byte) error {
	record := k.store.policy(t.policy.Source.Name)
	i := slices.IndexFunc(record.Roots, func(r rootRecord) bool { return r.Fingerprint == o.Root })
	if i < 0 {
		return fmt.Errorf("it is not on record who issues under root %s", o.Root)
	}
	root := record.Roots[i]
	if identify(root.By) == identify(t.policy.Authority) {
		root.By = t.policy.Authority // logins change
	}
	done, err := k.place(ctx, identify(root.By))
	if err != nil {
		return err
	}
	defer done()
	ctx, cancel := context.WithTimeout(ctx, authorityTimeout)
	defer cancel()
	au, err := k.cfg.Issuers.open(ctx, t.policy, root.By, root.Generation)
	if err != nil {
		return err
	}
	req := authority.Request{
		Cluster: o.Cluster, Generation: o.Slot, CSR: csr, TTL: o.TTL, Root: o.Root,
		Subject: pkix.Name{Organization: []string{order.Organization}, CommonName: order.CommonName},
	}
	for _, text := range order.URIs {
		u, err := url.Parse(text)
		if err != nil {
			return fmt.Errorf("URI %q: %w", text, err)
		}
		req.URIs = append(req.URIs, u)
	}
	answer, err := au.SignIntermediate(ctx, req)
	if err != nil {
		return err
	}
	if got := mesh.FingerprintOf(answer.Root.Raw); got != o.Root {
		return fmt.Errorf("%s signs under root %s now (%s), and root %s was asked for: somebody has switched its issuer; pin the issuer, or let the policy rotate to the new root", answer.Issuer, got, answer.Root.Subject, o.Root)
	}
	cert, err := trust.IssuedOf(pki.EncodeCertificates(answer.Chain...), o.Root)
	if err != nil {
		return err
	}
	if err := k.store.issue(ctx, o.Cluster, o.Slot, cert); err != nil {
		return err
	}
	k.cfg.Record(issueRecord(t.policy, o.Cluster, o.Slot, answer.Issuer, cert, time.Now()))
	return nil
}
