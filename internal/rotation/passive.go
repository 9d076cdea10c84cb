package rotation

import (
	"context"
	"fmt"
	"time"

	"ambitmesh.dev/ambit/internal/authority"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/trust"
)

// passive are the roots that a policy wants trusted besides. Until every one of them is known, those of before count: a Secret that can't be read for a moment takes no trust away.
func (k *Keeper) passive(ctx context.Context, t *turn, before []trust.Root) []trust.Root {
	var out []trust.Root
	known := true
	for i, a := range t.policy.Passive {
		root := k.passiveRoot(ctx, t, i, a)
		if root == nil {
			known = false
			continue
		}
		out = append(out, *root)
	}
	if !known {
		return before
	}
	return out
}

// passiveRoot is one of them, nil while it is not known. It is looked at again now and then: people replace Secrets.
func (k *Keeper) passiveRoot(ctx context.Context, t *turn, i int, by mesh.Authority) *trust.Root {
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
			root, err := k.fetchPassive(ctx, t, i, by)
			k.mu.Lock()
			defer k.mu.Unlock()
			defer k.Ring()
			a := k.passives[key]
			if a.authority != id {
				return // the policy has changed meanwhile
			}
			a.asking = false
			if a.failure = a.failure.next(err, t, time.Now()); err == nil {
				a.root = root
			} else if ctx.Err() == nil {
				k.cfg.Log.Warn("a passive root is not known", "policy", t.policy.Source.Name, "authority", id, "error", err)
			}
			k.passives[key] = a
		})
	}
	k.passives[key] = a
	return a.root
}

func (k *Keeper) fetchPassive(ctx context.Context, t *turn, i int, by mesh.Authority) (*trust.Root, error) {
	ctx, cancel := context.WithTimeout(ctx, authorityTimeout)
	defer cancel()
	au, err := k.cfg.Issuers.open(ctx, t.policy, by, mesh.Generation(-1-i))
	if err != nil {
		return nil, err
	}
	roots, err := au.Roots(ctx)
	if err != nil {
		return nil, err
	}
	if len(roots) == 0 {
		return nil, &authority.Misconfigured{Detail: identify(by) + " names no root"}
	}
	root, err := trust.RootOf(roots[0].Raw, 0, identify(by))
	if err != nil {
		return nil, err
	}
	return &root, nil
}
