package apply

import (
	"slices"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
)

// wish is one desired object.
type wish struct {
	manifest []byte
	hash     mesh.Fingerprint // of manifest
	hold     hold             // an override that suspends it
}

func newWish(manifest []byte) wish {
	return wish{manifest: manifest, hash: mesh.FingerprintOf(manifest), hold: holdOf(manifest)}
}

// known is what we know of an object that we applied, or tried to.
type known struct {
	hash    mesh.Fingerprint // of the manifest applied or tried last
	ok      bool             // the cluster took it
	drifted bool             // it has been changed or deleted since
	drifts  int              // times in a row, less than a minute apart, that it had drifted
	drift   time.Time        // the last time
	tries   int              // failures in a row
	next    time.Time        // not before; zero: at once
	err     string           // the last failure; empty: ok
	held    bool             // it was left as found, by wish.hold
	differs bool             // held, and not as desired
	absent  bool             // held, and not there
	taken   bool             // somebody took our owner label off
	told    time.Time        // when the last Event was written
	last    *mesh.Drift      // the last drift, put back or not; never changed in place
}

// outcome is what is reported. Pure.
func (k known) outcome(refused string) mesh.Outcome {
	return mesh.Outcome{
		Hash: k.hash, OK: k.ok, Error: k.err, Drift: k.last, Drifted: k.drifted || k.differs || k.taken,
		TakenOver: k.taken, Held: k.held, Refused: refused,
	}
}

// holdCheck bounds how long a hold is waited for in one go: a clock that is set must not make it longer.
const holdCheck = 30 * time.Second

// plan is what to do now.
type plan struct {
	Record []mesh.Ref // to be added to the inventory before anything else happens
	Apply  []mesh.Ref
	Prune  []mesh.Ref
	// Drop are lines of the inventory that name an object by a version it is no longer applied as: the object itself stays.
	Drop []mesh.Ref
	Wake time.Time // when a failed one is due again; zero: nothing waits
}

// decide compares what is desired with what is known. Pure. It prunes only what the inventory lists, and only by a complete desired state: what is absent from
// an incomplete one may merely not have arrived.
func decide(desired map[mesh.Ref]wish, complete bool, inventory map[mesh.Ref]bool, state map[mesh.Ref]known, now time.Time) plan {
	var p plan
	wake := func(at time.Time) {
		if p.Wake.IsZero() || at.Before(p.Wake) {
			p.Wake = at
		}
	}
	for ref, w := range desired {
		k, tried := state[ref]
		current := tried && k.hash == w.hash
		held := w.hold.at(now)
		if current && k.ok && !k.drifted && k.held == held {
			if held {
				wake(earlier(w.hold.until, now.Add(holdCheck)))
			}
			continue
		}
		if current && k.next.After(now) {
			wake(k.next)
			continue
		}
		if !inventory[ref] {
			p.Record = append(p.Record, ref)
		}
		p.Apply = append(p.Apply, ref)
	}
	if complete {
		wanted := make(map[mesh.Ref]bool, len(desired))
		for ref := range desired {
			wanted[anyVersion(ref)] = true
		}
		for ref := range inventory {
			if _, same := desired[ref]; same {
				continue
			}
			if wanted[anyVersion(ref)] {
				p.Drop = append(p.Drop, ref)
				continue
			}
			if k := state[ref]; k.next.After(now) {
				wake(k.next)
				continue
			}
			p.Prune = append(p.Prune, ref)
		}
	}
	for _, refs := range [][]mesh.Ref{p.Record, p.Apply, p.Prune, p.Drop} {
		slices.SortFunc(refs, mesh.Ref.Compare)
	}
	return p
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// anyVersion names the object, which is the same in whichever version it is read or written.
func anyVersion(r mesh.Ref) mesh.Ref {
	r.Version = ""
	return r
}

// withDrift notes that an object is not as we left it. The first few times it is put back at once; whoever fights on waits longer each time.
func (k known) withDrift(now time.Time) known {
	if now.Sub(k.drift) > time.Minute {
		k.drifts = 0
	}
	k.drifted, k.drift = true, now
	if k.drifts++; k.drifts > 3 {
		k.next = now.Add(backOff(k.drifts - 3))
	}
	return k
}

// backOff is how long to wait after a number of failures in a row: 1 s, doubling, at most a minute.
func backOff(failures int) time.Duration {
	return min(time.Second<<min(max(failures-1, 0), 6), time.Minute)
}
