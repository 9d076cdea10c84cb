// Package audit records acts that change access or membership: who did what to which object, where, when.
//
// In: Records. Out: one JSON line each, in order, every line holding the hash of the one before, so that a line that was altered, taken out or moved shows
// (Verify). It must not hold secrets, decide anything, or be used as a log of what the program does.
//
// The lines go to the server's standard output, where whatever collects logs keeps them. A store of its own, signed and with proofs, is to replace the writer behind Log.
package audit

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// Act is what was done.
type Act string

// The acts.
const (
	PolicyWritten    Act = "policy.written"    // an AccessPolicy, Workspace or WorkspaceSettings was created or changed
	PolicyDeleted    Act = "policy.deleted"    // one was deleted
	DriftCorrected   Act = "drift.corrected"   // somebody changed an object of ours in a cluster; it was put back
	ObjectTakenOver  Act = "object.taken-over" // somebody took our owner label off an object
	OverrideCreated  Act = "override.created"  // a break-glass lease began
	OverrideEnded    Act = "override.ended"    // it expired or was deleted
	ClusterDeleted   Act = "cluster.deleted"   // a KubernetesCluster was deleted
	AccessWidened    Act = "access.widened"    // something in a cluster allows more than a policy
	AccessUnenforced Act = "access.unenforced" // a cluster can't enforce a policy

	TrustChanged      Act = "trust.changed"      // a phase of a root rotation began
	TrustRequested    Act = "trust.requested"    // a person asked something of a rotation
	CertificateIssued Act = "certificate.issued" // an intermediate was signed for a cluster
)

// Record is one act. Empty fields are not known.
type Record struct {
	At      time.Time `json:"at"`
	Act     Act       `json:"act"`
	User    string    `json:"user,omitempty"`    // as the management API server authenticated them
	Manager string    `json:"manager,omitempty"` // field manager, where a workload cluster's API server names no user
	Cluster string    `json:"cluster,omitempty"`
	Object  string    `json:"object,omitempty"` // "Kind namespace/name" that was acted on
	Policy  string    `json:"policy,omitempty"` // "namespace/name" of the AccessPolicy it is about
	Detail  string    `json:"detail,omitempty"` // one sentence
}

// line is a Record as it is written.
type line struct {
	Audit    string `json:"audit"`    // which Log: random, made at its start
	Sequence uint64 `json:"sequence"` // from 1
	Previous string `json:"previous"` // SHA-256 of the line before, without its end; empty in the first
	Record
}

// Log writes Records. Safe for concurrent use.
type Log struct {
	mu   sync.Mutex
	w    io.Writer
	next line
}

// New returns a Log that writes lines to w, each with one call of Write.
func New(w io.Writer) *Log {
	return &Log{w: w, next: line{Audit: rand.Text(), Sequence: 1}}
}

// Record writes r. When it fails, nothing counts as recorded, and the next Record takes its place in the chain.
func (l *Log) Record(r Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	next := l.next
	next.Record = r
	next.At = r.At.UTC()
	raw, err := json.Marshal(next)
	if err != nil {
		return fmt.Errorf("audit: encode %s: %w", r.Act, err)
	}
	if _, err := l.w.Write(append(raw, '\n')); err != nil {
		return fmt.Errorf("audit: record %s: %w", r.Act, err)
	}
	l.next.Sequence++
	l.next.Previous = hash(raw)
	return nil
}

func hash(raw []byte) string {
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:])
}

const maxLine = 64 << 10

// Verify reads a server's output, passes over lines that are no records, and returns the records of each Log in order, or an error that names the first line (from 1)
// that was altered, taken out or moved. A tail that was cut off can't be seen.
func Verify(r io.Reader) ([]Record, error) {
	var out []Record
	last := map[string]line{}
	hashes := map[string]string{}
	in := bufio.NewScanner(r)
	in.Buffer(nil, maxLine)
	for n := 1; in.Scan(); n++ {
		raw := in.Bytes()
		if !bytes.HasPrefix(raw, []byte(`{"audit":`)) {
			continue
		}
		var got line
		if err := json.Unmarshal(raw, &got); err != nil {
			return out, fmt.Errorf("line %d is no record: %w", n, err)
		}
		switch before, known := last[got.Audit]; {
		case known && got.Sequence != before.Sequence+1:
			return out, fmt.Errorf("line %d has number %d, and %d came before: records were taken out or moved", n, got.Sequence, before.Sequence)
		case known && got.Previous != hashes[got.Audit]:
			return out, fmt.Errorf("line %d does not follow from the record before it: one of them was altered", n)
		case !known && (got.Sequence != 1 || got.Previous != ""):
			return out, fmt.Errorf("line %d has number %d: the records before it are missing", n, got.Sequence)
		}
		last[got.Audit], hashes[got.Audit] = got, hash(raw)
		out = append(out, got.Record)
	}
	if err := in.Err(); err != nil {
		return out, errors.Join(errors.New("read records"), err)
	}
	return out, nil
}
