package registry

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	relayv1 "ambitmesh.dev/ambit/api/relay/v1"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/relay"
)

// record is what Secret relay-identity-<cluster> holds: who the cluster is, and every key that may still prove it. Fields are optional; unknown ones are ignored.
type record struct {
	// UID of kube-system, from the first session.
	UID mesh.ClusterUID `json:"uid,omitempty"`
	// Registration is the metadata.uid of the KubernetesCluster under which the keys were accepted. Another one means: deregistered and registered again.
	Registration string      `json:"registration,omitempty"`
	Keys         []recordKey `json:"keys"`
}

type recordKey struct {
	SPKI     mesh.Fingerprint `json:"spki"`
	Serial   string           `json:"serial"`
	NotAfter time.Time        `json:"notAfter"`
	Revoked  bool             `json:"revoked,omitempty"`
}

func parseRecord(raw []byte) (record, error) {
	var r record
	if len(raw) == 0 {
		return r, nil
	}
	if err := json.Unmarshal(raw, &r); err != nil {
		return r, fmt.Errorf("identity record: %w", err)
	}
	return r, nil
}

// with returns r with id's key among the keys, and without those that have expired. A revoked key stays revoked.
func (r record) with(id relay.Identity, now time.Time) record {
	out := record{UID: r.UID, Registration: r.Registration}
	known := false
	for _, k := range r.Keys {
		if now.After(k.NotAfter) && k.SPKI != id.Key {
			continue
		}
		if k.SPKI == id.Key {
			known = true
			if id.NotAfter.After(k.NotAfter) {
				k.Serial, k.NotAfter = id.Serial, id.NotAfter.UTC()
			}
		}
		out.Keys = append(out.Keys, k)
	}
	if !known {
		out.Keys = append(out.Keys, recordKey{SPKI: id.Key, Serial: id.Serial, NotAfter: id.NotAfter.UTC()})
	}
	return out
}

// revoked returns r as it is after deregistration: no key is good, and the name may go to another cluster.
func (r record) revoked() record {
	out := record{Keys: slices.Clone(r.Keys)}
	for i := range out.Keys {
		out.Keys[i].Revoked = true
	}
	return out
}

func (r record) key(f mesh.Fingerprint) (recordKey, bool) {
	i := slices.IndexFunc(r.Keys, func(k recordKey) bool { return k.SPKI == f })
	if i < 0 {
		return recordKey{}, false
	}
	return r.Keys[i], true
}

// live: some key may still be in use.
func (r record) live(now time.Time) bool {
	return slices.ContainsFunc(r.Keys, func(k recordKey) bool { return !k.Revoked && now.Before(k.NotAfter) })
}

func equalRecords(a, b record) bool {
	return a.UID == b.UID && a.Registration == b.Registration && slices.EqualFunc(a.Keys, b.Keys, func(x, y recordKey) bool {
		return x.SPKI == y.SPKI && x.Serial == y.Serial && x.Revoked == y.Revoked && x.NotAfter.Equal(y.NotAfter)
	})
}

// token is what Secret relay-registration-<cluster> holds.
type token struct {
	Hash    string          // hex SHA-256 of the token
	Expires time.Time       // by the hub's clock
	UID     mesh.ClusterUID // of the cluster it was made for
	UsedBy  string          // fingerprint of the key it was redeemed for; empty: unused
	// Owner is the metadata.uid of the KubernetesCluster it was made for; empty: not said.
	Owner string
}

func (t *token) matches(given string) bool {
	sum := sha256.Sum256([]byte(given))
	want, err := hex.DecodeString(t.Hash)
	return err == nil && subtle.ConstantTimeCompare(sum[:], want) == 1
}

// facts is all that a decision about a cluster's agent depends on.
type facts struct {
	Cluster mesh.ClusterName
	// Registration is the metadata.uid of its KubernetesCluster; empty: there is none.
	Registration string
	Namespace    string
	// UID known for the cluster, by record or by status; empty: none yet.
	UID mesh.ClusterUID
	// NameOfUID is the cluster registered with the UID that the agent gives, if it is another one.
	NameOfUID mesh.ClusterName
	Record    record
	Token     *token // nil: no registration token was announced
	Shared    []byte // the shared identity token; empty: none, or enrolment with it is turned off
	SharedOff bool
	Now       time.Time
}

// whoIs checks that a cluster of this name is registered and that uid is its kube-system UID.
func (f *facts) whoIs(uid mesh.ClusterUID) *relay.Refusal {
	switch {
	case f.Registration == "":
		return relay.Refuse(relayv1.Goodbye_NOT_REGISTERED,
			"cluster %q is not registered: create KubernetesCluster %q in namespace %q of the management cluster (`meshctl cluster register %s` does); the agent keeps trying",
			f.Cluster, f.Cluster, f.Namespace, f.Cluster)
	case uid == "":
		return relay.Refuse(relayv1.Goodbye_WRONG_CLUSTER,
			"the agent of cluster %q does not say its kube-system UID: its service account needs get on namespace kube-system", f.Cluster)
	case f.UID != "" && f.UID != uid && f.NameOfUID != "":
		return relay.Refuse(relayv1.Goodbye_WRONG_CLUSTER,
			"an agent of cluster %q (kube-system UID %s) comes as %q, which is another cluster (kube-system UID %s): give that agent its own name and certificate (relay-client-tls-secret with CN %s)",
			f.NameOfUID, uid, f.Cluster, f.UID, f.NameOfUID)
	case f.UID != "" && f.UID != uid:
		return relay.Refuse(relayv1.Goodbye_WRONG_CLUSTER,
			"an agent with kube-system UID %s comes as %q, which is the cluster with kube-system UID %s: if the cluster was rebuilt, deregister %q and register it again; otherwise give that agent its own name and certificate",
			uid, f.Cluster, f.UID, f.Cluster)
	case f.NameOfUID != "":
		return relay.Refuse(relayv1.Goodbye_WRONG_CLUSTER,
			"the cluster with kube-system UID %s is registered as %q and can't be %q too (which has no kube-system UID yet): deregister one of the two names", uid, f.NameOfUID, f.Cluster)
	}
	return nil
}

// enrol decides about an attempt with a token. redeem: the registration token must first be bound to the key.
func (f *facts) enrol(a relay.EnrolAttempt) (redeem bool, no *relay.Refusal) {
	if no := f.whoIs(a.UID); no != nil {
		return false, no
	}
	bad := func(format string, args ...any) (bool, *relay.Refusal) {
		return false, relay.Refuse(relayv1.Goodbye_BAD_TOKEN, format, args...)
	}
	again := fmt.Sprintf("run `meshctl cluster register %s` again for a new one", f.Cluster)
	if t := f.Token; t != nil && t.matches(a.Token) {
		switch {
		case t.Owner != "" && t.Owner != f.Registration:
			return bad("the registration token of cluster %q is of an earlier registration: %s", f.Cluster, again)
		case !f.Now.Before(t.Expires):
			return bad("the registration token of cluster %q expired at %s: %s", f.Cluster, t.Expires.UTC().Format(time.RFC3339), again)
		case t.UID != "" && t.UID != a.UID:
			return false, relay.Refuse(relayv1.Goodbye_WRONG_CLUSTER,
				"the registration token of cluster %q was made for kube-system UID %s, and comes from the cluster with kube-system UID %s: %s with the right --remote-context", f.Cluster, t.UID, a.UID, again)
		case t.UsedBy != "" && t.UsedBy != a.Key.String():
			return bad("the registration token of cluster %q was already used, for another key: %s", f.Cluster, again)
		}
		return t.UsedBy == "", nil
	}
	if len(f.Shared) > 0 && subtle.ConstantTimeCompare([]byte(a.Token), f.Shared) == 1 {
		switch {
		case f.SharedOff:
			return bad("cluster %q: enrolment with the shared token (relay-identity-token-secret) is turned off: run `meshctl cluster register %s`", f.Cluster, f.Cluster)
		case f.UID == "" && f.Record.live(f.Now):
			return bad("cluster %q has a certificate already, so the shared token does not enrol it: run `meshctl cluster register %s`", f.Cluster, f.Cluster)
		}
		return false, nil
	}
	if f.Token == nil {
		return bad("the token of cluster %q is not known: no registration is under way, and it is not the shared token: run `meshctl cluster register %s`", f.Cluster, f.Cluster)
	}
	return bad("the token of cluster %q is not the one announced last: %s", f.Cluster, again)
}

// admit decides about a session; the record returned is what must be on record before it begins.
func (f *facts) admit(id relay.Identity, h relay.Hello) (record, *relay.Refusal) {
	if h.Cluster != "" && h.Cluster != id.Cluster {
		return f.Record, relay.Refuse(relayv1.Goodbye_WRONG_CLUSTER,
			"the agent says it is cluster %q, its certificate says %q: mint a client certificate for %q (CN and DNS SAN), or correct the agent's --cluster", h.Cluster, id.Cluster, h.Cluster)
	}
	if k, ok := f.Record.key(id.Key); ok && k.Revoked {
		return f.Record, revokedKey(f.Cluster, id.Serial)
	}
	if no := f.whoIs(h.UID); no != nil {
		return f.Record, no
	}
	next := f.Record.with(id, f.Now)
	next.UID, next.Registration = h.UID, f.Registration
	return next, nil
}

func revokedKey(c mesh.ClusterName, serial string) *relay.Refusal {
	return relay.Refuse(relayv1.Goodbye_REVOKED,
		"the certificate of cluster %q (serial %s) was revoked when the cluster was deregistered: run `meshctl cluster register %s` to register it again, with a new key", c, serial, c)
}
