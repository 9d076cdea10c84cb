package cacerts

import (
	"context"
	"crypto/x509"
	"fmt"
	"maps"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"ambitmesh.dev/ambit/internal/mesh"
)

// pass is one time through: gather, decide, act.
type pass struct {
	k        *Keeper
	ctx      context.Context //nolint:containedctx // lives as long as the call that made it
	now      time.Time
	d        *directive
	observed mesh.TrustObservation
	began    time.Time

	cacerts *secret // as stored
	keys    *secret
	slots   map[string]slot
	checked map[string]string // why the chain of a slot is no good
	state   State
	wait    time.Duration
}

func (p *pass) problem(err error) {
	text := err.Error()
	if apierrors.IsForbidden(err) {
		text += " (the agent's Role in istiod's namespace is missing or old: install the chart again, after Istio)"
	}
	p.state.Problems = append(p.state.Problems, text)
	p.wait = min(p.wait, retry)
}

func (p *pass) run() {
	ok := p.gather()
	if d := p.d; d != nil && ok {
		p.state.Applied, p.state.Since, p.state.Roots = d.applied, d.since, d.roots
		p.state.Known = append(p.state.Known, d.roots...)
		p.follow()
	} else if d == nil {
		p.k.request(nil, nil)
	}
	p.describe()
}

// gather reads the two Secrets. Nothing is done while either can't be read.
func (p *pass) gather() bool {
	var err error
	if p.cacerts, err = get(p.ctx, p.k.secrets, CACertsName); err != nil {
		p.problem(err)
		return false
	}
	if p.keys, err = get(p.ctx, p.k.secrets, KeysName); err != nil {
		p.problem(err)
		return false
	}
	p.slots, p.state.Problems = readSlots(p.keys)
	p.state.Restarted.Done = doneOf(p.keys)
	return true
}

// follow does what the directive says, as far as it can be done now.
func (p *pass) follow() {
	d, k := p.d, p.k
	p.check()
	plan := planSlots(d, p.slots, len(p.state.Problems) > 0, p.checked, p.inUse())
	if !p.make(plan) {
		return
	}
	p.check()
	k.request(plan.ask, p.slots)
	if d.Signer == "" {
		p.destroy(plan.destroy)
		return
	}
	if !p.write() {
		return
	}
	plan = planSlots(d, p.slots, false, p.checked, p.inUse())
	if !p.destroy(plan.destroy) {
		return
	}
	p.restart()
}

// check looks at the chains that came for the keys at hand.
func (p *pass) check() {
	p.checked = map[string]string{}
	for _, o := range p.d.Intermediates {
		s, ok := p.slots[o.ID]
		if !ok || len(o.Chain) == 0 {
			continue
		}
		if err := checkChain(o, s, p.d.roots, o.ID == p.d.Signer, p.now); err != nil {
			p.checked[o.ID] = err.Error()
		}
	}
}

// inUse is the public key of the CA in cacerts.
func (p *pass) inUse() mesh.Fingerprint {
	if p.cacerts == nil {
		return mesh.Fingerprint{}
	}
	for _, file := range []string{tlsCert, caCertFile} {
		if certs, err := parse(p.cacerts.data[file]); err == nil && len(certs) > 0 {
			return publicOf(certs[0].PublicKey)
		}
	}
	return mesh.Fingerprint{}
}

// make makes the keys and requests that are lacking, and stores them before anybody hears of them.
func (p *pass) make(plan slotPlan) bool {
	changed := false
	for _, o := range plan.make {
		s, err := p.newSlot(o)
		if err != nil {
			p.problem(err)
			continue
		}
		p.slots[o.ID], changed = s, true
		p.k.cfg.Log.Info("a key was made for an intermediate", "intermediate", o.ID, "algorithm", o.Algorithm, "takenFrom", o.Take)
	}
	for _, o := range plan.ask {
		s, ok := p.slots[o.ID]
		if !ok || fits(s.csr, s, o) {
			continue
		}
		var err error
		if s.csr, err = newRequest(s.key, o); err != nil {
			p.problem(fmt.Errorf("intermediate %q: %w", o.ID, err))
			continue
		}
		p.slots[o.ID], changed = s, true
	}
	return !changed || p.saveSlots(nil)
}

func (p *pass) newSlot(o mesh.IntermediateOrder) (slot, error) {
	switch o.Take {
	case mesh.TakeCACerts:
		return taken(o, p.cacerts)
	case mesh.TakeSelfSigned:
		from, err := get(p.ctx, p.k.secrets, SelfSignedName)
		if err != nil {
			return slot{}, err
		}
		return taken(o, from)
	}
	key, raw, err := newKey(o.Algorithm)
	if err != nil {
		return slot{}, fmt.Errorf("intermediate %q: %w", o.ID, err)
	}
	return slot{key: key, keyPEM: raw}, nil
}

// destroy drops keys; true: they are gone.
func (p *pass) destroy(ids []string) bool {
	if len(ids) == 0 {
		return true
	}
	for _, id := range ids {
		delete(p.slots, id)
	}
	if !p.saveSlots(ids) {
		return false
	}
	p.k.cfg.Log.Info("keys that are not wanted any more were destroyed", "intermediates", ids)
	return true
}

// saveSlots stores the keys as they are now, without those named. What else is in the Secret stays.
func (p *pass) saveSlots(without []string) bool {
	data := map[string][]byte{}
	if p.keys != nil {
		data = maps.Clone(p.keys.data)
	}
	for _, id := range without {
		delete(data, id+keySuffix)
		delete(data, id+csrSuffix)
	}
	for id, s := range p.slots {
		data[id+keySuffix] = s.keyPEM
		if len(s.csr) > 0 {
			data[id+csrSuffix] = s.csr
		}
	}
	return p.saveKeys(data, p.state.Restarted.Done)
}

// saveKeys writes the Secret of keys, if it is still as it was read.
func (p *pass) saveKeys(data map[string][]byte, done mesh.RestartOrder) bool {
	u := newSecret(p.k.cfg.IstioNamespace, KeysName)
	if p.keys != nil {
		u = p.keys.object.DeepCopy()
	}
	fill(u, data)
	setDone(u, done)
	var err error
	if p.keys == nil {
		u, err = p.k.secrets.Create(p.ctx, u, metav1.CreateOptions{FieldManager: mesh.FieldManager})
	} else {
		u, err = p.k.secrets.Update(p.ctx, u, metav1.UpdateOptions{FieldManager: mesh.FieldManager})
	}
	if err == nil {
		p.keys, err = read(u)
	}
	if err != nil {
		p.problem(fmt.Errorf("write Secret %s: %w", KeysName, err))
		p.wait = time.Second
		return false
	}
	return true
}

// write makes cacerts as directed; true: it is.
func (p *pass) write() bool {
	files, err := wanted(p.d, p.slots, p.cacerts, p.now)
	if err != nil {
		p.problem(fmt.Errorf("secret %s is not written: %w", CACertsName, err))
		return false
	}
	chain, err := parse(p.d.order(p.d.Signer).Chain)
	if err != nil {
		p.problem(err)
		return false
	}
	k := p.k
	act, held := decide(p.cacerts, files, p.d.Adopt, k.overwritten == p.d.applied)
	if held != "" {
		p.state.Problems = append(p.state.Problems, held)
		return false
	}
	if act == create && k.wrote {
		p.state.Problems = append(p.state.Problems, fmt.Sprintf("somebody deleted Secret %s; it is written anew", CACertsName))
		if since := p.now.Sub(k.remade); since < remakeEvery {
			p.wait = min(p.wait, remakeEvery-since)
			return false
		}
		k.remade = p.now
	}
	if act != nothing {
		foreign := p.cacerts != nil && (p.cacerts.owner() != mesh.OwnerValue || p.cacerts.foreign() != "")
		if err := p.put(act, files); err != nil {
			p.problem(fmt.Errorf("%s Secret %s: %w", act, CACertsName, err))
			p.wait = time.Second
			return false
		}
		if foreign {
			k.overwritten = p.d.applied
		}
		k.cfg.Log.Info("cacerts was written", "intermediate", p.d.Signer, "signer", mesh.FingerprintOf(chain[0].Raw).String(), "roots", len(p.d.roots), "policy", p.d.Policy, "adopted", foreign)
	}
	k.wrote = true
	p.state.Signer = mesh.FingerprintOf(chain[0].Raw)
	return true
}

// put writes cacerts in one update, if it is still as it was read.
func (p *pass) put(act action, files map[string][]byte) error {
	u := newSecret(p.k.cfg.IstioNamespace, CACertsName)
	if act == update {
		u = p.cacerts.object.DeepCopy()
		unmark(u)
	}
	dress(u, files, p.k.cfg.Cluster, p.d.Policy)
	if act == replace {
		uid, version := p.cacerts.object.GetUID(), p.cacerts.object.GetResourceVersion()
		if err := p.k.secrets.Delete(p.ctx, CACertsName, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid, ResourceVersion: &version}}); err != nil {
			return err
		}
	}
	var err error
	if act == update {
		u, err = p.k.secrets.Update(p.ctx, u, metav1.UpdateOptions{FieldManager: mesh.FieldManager})
	} else {
		u, err = p.k.secrets.Create(p.ctx, u, metav1.CreateOptions{FieldManager: mesh.FieldManager})
	}
	if err != nil {
		return err
	}
	p.cacerts, err = read(u)
	return err
}

// describe fills in what the observation says.
func (p *pass) describe() {
	var certs []*x509.Certificate
	var problems []string
	p.state.Secret, certs, problems = describe(p.cacerts)
	p.state.Problems = append(p.state.Problems, problems...)
	p.state.Mentioned = slices.Clone(certs)
	p.state.Known = append(p.state.Known, certs...)
	for _, id := range slices.Sorted(maps.Keys(p.slots)) {
		s := mesh.Slot{ID: id, PublicKey: p.slots[id].public(), Checked: p.checked[id]}
		if p.d != nil {
			if o := p.d.order(id); o != nil && len(o.Chain) > 0 && s.Checked == "" {
				chain, err := parse(o.Chain)
				if err == nil && len(chain) > 0 {
					s.Signer = mesh.FingerprintOf(chain[0].Raw)
					p.state.Mentioned = append(p.state.Mentioned, chain...)
					p.state.Known = append(p.state.Known, chain...)
				}
			}
		}
		p.state.Slots = append(p.state.Slots, s)
	}
	slices.Sort(p.state.Problems)
	p.state.Problems = slices.Compact(p.state.Problems)
}
