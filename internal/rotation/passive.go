package rotation

import (
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"ambitmesh.dev/ambit/internal/authority"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/pki"
	"ambitmesh.dev/ambit/internal/trust"
)

// passive are the roots that a policy wants trusted besides. Until every one of them is known, those of before count: a Secret that can't be read for a moment takes no trust away.
func (k *Keeper) passive(ctx context.Context, t *turn, before []trust.Root) []trust.Root {
	var out []trust.Root
	known := true
	for i, a := range t.policy.Passive {
		roots := k.passiveRoots(ctx, t, i, a)
		if roots == nil {
			known = false
			continue
		}
		for _, root := range roots {
			if !slices.ContainsFunc(out, func(o trust.Root) bool { return o.Fingerprint == root.Fingerprint }) {
				out = append(out, root)
			}
		}
	}
	if !known {
		return before
	}
	return out
}

// passiveRoots are those of one entry, nil while they are not known. They are looked at again now and then: people replace Secrets.
func (k *Keeper) passiveRoots(ctx context.Context, t *turn, i int, by mesh.Authority) []trust.Root {
	id := identify(by)
	key := fmt.Sprintf("%s/%d", t.policy.Source.Name, i)
	k.mu.Lock()
	defer k.mu.Unlock()
	a := k.passives[key]
	if a.authority != id {
		a = rootAnswer{authority: id}
	}
	if !a.asking && t.now.Sub(a.at) > lookAtRoots && !a.failure.pauses(t) {
		a.asking, a.at = true, t.now
		t.wg.Go(func() {
			roots, err := k.fetchPassive(ctx, t, i, by)
			k.mu.Lock()
			defer k.mu.Unlock()
			defer k.Ring()
			a := k.passives[key]
			if a.authority != id {
				return // the policy has changed meanwhile
			}
			a.asking = false
			if a.failure = a.failure.next(err, t, time.Now()); err == nil {
				a.passive = roots
			} else if ctx.Err() == nil {
				k.cfg.Log.Warn("a passive root is not known", "policy", t.policy.Source.Name, "authority", id, "error", err)
			}
			k.passives[key] = a
		})
	}
	k.passives[key] = a
	return a.passive
}

func (k *Keeper) fetchPassive(ctx context.Context, t *turn, i int, by mesh.Authority) ([]trust.Root, error) {
	ctx, cancel := context.WithTimeout(ctx, authorityTimeout)
	defer cancel()
	roots, err := k.cfg.Issuers.passive(ctx, t.policy, by, i)
	if err != nil {
		return nil, err
	}
	if len(roots) == 0 {
		return nil, &authority.Misconfigured{Detail: identify(by) + " names no root"}
	}
	out := make([]trust.Root, len(roots))
	for n, c := range roots {
		if out[n], err = trust.RootOf(c.Raw, 0, identify(by)); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// passive are the roots of the i-th passive authority: of a Secret its roots only, whose keys are not looked at and may be elsewhere.
func (i *Issuers) passive(ctx context.Context, p *mesh.RootTrustPolicy, by mesh.Authority, n int) ([]*x509.Certificate, error) {
	if by.Secret == "" {
		au, err := i.open(ctx, p, by, mesh.Generation(-1-n))
		if err != nil {
			return nil, err
		}
		return au.Roots(ctx)
	}
	data, err := (&secrets{i.client, i.namespace, p}).Get(ctx, by.Secret)
	if err != nil {
		return nil, err
	}
	for _, key := range []string{"root-cert.pem", "ca.crt"} {
		if len(data[key]) == 0 {
			continue
		}
		certs, err := pki.ParseCertificates(data[key])
		if err != nil {
			return nil, &authority.Misconfigured{Detail: fmt.Sprintf("Secret %s, key %s", by.Secret, key), Err: err}
		}
		return certs, nil
	}
	return nil, &authority.Misconfigured{Detail: fmt.Sprintf("Secret %s has neither root-cert.pem nor ca.crt, or does not exist", by.Secret), Fix: "put the root certificate there; its key is not needed"}
}
