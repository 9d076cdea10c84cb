// Package audit keeps a record of every act that changes trust, policy, membership or access: who did what to which object, where, when.
//
// In: Records. Out: an append-only log of them in a Store, with a Merkle tree over it (RFC 6962 hashes, golang.org/x/mod/sumdb/tlog) whose head is signed with every commit
// (C2SP checkpoint, golang.org/x/mod/sumdb/note); answers to Queries; exports that hold their own proofs, and their check without any server (Verify).
// It must not hold secrets (Clean), decide anything, or be used as a log of what the program does.
//
// The way of a record: Log.Append -> Clean -> encode -> one commit with those of everybody who waits -> Store -> mirror -> the caller goes on. No record, no act.
package audit

import (
	"encoding/json"
	"fmt"
	"time"
)

// Act is what was done.
type Act string

// The acts.
const (
	Admitted Act = "write.admitted" // somebody created, changed or deleted an object of ours
	Refused  Act = "write.refused"  // somebody tried to

	PolicyWritten    Act = "policy.written"    // an AccessPolicy, Workspace or WorkspaceSettings was created or changed
	PolicyDeleted    Act = "policy.deleted"    // one was deleted
	DriftCorrected   Act = "drift.corrected"   // somebody changed an object of ours in a cluster; it was put back
	ObjectTakenOver  Act = "object.taken-over" // somebody took our owner label off an object
	OverrideCreated  Act = "override.created"  // a break-glass lease began
	OverrideEnded    Act = "override.ended"    // it expired or was deleted
	AccessWidened    Act = "access.widened"    // something in a cluster allows more than a policy
	AccessUnenforced Act = "access.unenforced" // a cluster can't enforce a policy

	ClusterRegistered Act = "cluster.registered" // an agent enrolled and its cluster is known by its kube-system UID
	ClusterRefused    Act = "cluster.refused"    // one was refused
	ClusterDeleted    Act = "cluster.deleted"    // a KubernetesCluster was deleted

	TrustChanged       Act = "trust.changed"       // a phase of a root rotation began
	TrustRequested     Act = "trust.requested"     // a person asked something of a rotation
	CertificateIssued  Act = "certificate.issued"  // a certificate was signed for a cluster
	CertificateRevoked Act = "certificate.revoked" // one was revoked

	LogRead     Act = "log.read"     // somebody read the log
	LogExported Act = "log.exported" // somebody exported it
	LogStarted  Act = "log.started"  // a server began to write; what it found is in Detail
)

// Change is one field that differs between an object before and after. A nil side is absent.
type Change struct {
	Path string `json:"path"` // "spec.action"
	Old  any    `json:"old,omitempty"`
	New  any    `json:"new,omitempty"`
}

// Certificate is one that was signed or revoked.
type Certificate struct {
	Serial      string `json:"serial,omitempty"`
	Subject     string `json:"subject,omitempty"`
	Issuer      string `json:"issuer,omitempty"`
	Requester   string `json:"requester,omitempty"`
	Fingerprint string `json:"fingerprint,omitempty"` // SHA-256, hexadecimal
	NotAfter    string `json:"notAfter,omitempty"`    // RFC 3339
}

// Membership is what a cluster joined with.
type Membership struct {
	ClusterUID   string   `json:"clusterUID,omitempty"` // of its kube-system namespace
	TrustDomain  string   `json:"trustDomain,omitempty"`
	Permissions  []string `json:"permissions,omitempty"`
	AgentVersion string   `json:"agentVersion,omitempty"`
}

// Record is one act. Empty fields are not known.
type Record struct {
	N  int64     `json:"-"`  // its place in the log, from 0; given by the log
	At time.Time `json:"at"` // given by the log where zero

	Act     Act                 `json:"act"`
	User    string              `json:"user,omitempty"` // as the management API server authenticated them
	Groups  []string            `json:"groups,omitempty"`
	Extra   map[string][]string `json:"extra,omitempty"`
	Manager string              `json:"manager,omitempty"` // field manager, where a workload cluster's API server names no user
	Source  string              `json:"source,omitempty"`  // the stage that saw it: "admission", "rotation"
	Cluster string              `json:"cluster,omitempty"`

	Operation string   `json:"operation,omitempty"` // CREATE, UPDATE, DELETE
	Object    string   `json:"object,omitempty"`    // "Kind namespace/name" that was acted on
	UID       string   `json:"uid,omitempty"`       // of the object
	DryRun    bool     `json:"dryRun,omitempty"`
	Diff      []Change `json:"diff,omitempty"`

	Policy      string       `json:"policy,omitempty"` // "namespace/name" of the policy it is about
	Certificate *Certificate `json:"certificate,omitempty"`
	Membership  *Membership  `json:"membership,omitempty"`
	Detail      string       `json:"detail,omitempty"` // one sentence
}

// timeFormat has one width, so that times sort as text.
const timeFormat = "2006-01-02T15:04:05.000000Z"

// stored is a Record as it is hashed, kept and exported: its own n and at come before those of the Record.
type stored struct {
	N  int64  `json:"n"`
	At string `json:"at"`
	Record
}

// maxRecord bounds the bytes of an encoded record. Clean keeps them far below.
const maxRecord = 256 << 10

// Encode gives the bytes of a record, which are never written any other way again.
func Encode(r Record) ([]byte, error) {
	raw, err := json.Marshal(stored{N: r.N, At: r.At.UTC().Format(timeFormat), Record: r})
	if err != nil {
		return nil, fmt.Errorf("audit: encode %s: %w", r.Act, err)
	}
	if len(raw) > maxRecord {
		return nil, fmt.Errorf("audit: encode %s: %d bytes are more than the %d that a record may have", r.Act, len(raw), maxRecord)
	}
	return raw, nil
}

// Decode reads the bytes of a record.
func Decode(raw []byte) (Record, error) {
	var s stored
	if err := json.Unmarshal(raw, &s); err != nil {
		return Record{}, fmt.Errorf("audit: decode a record: %w", err)
	}
	at, err := time.Parse(timeFormat, s.At)
	if err != nil {
		return Record{}, fmt.Errorf("audit: decode record %d: %w", s.N, err)
	}
	s.Record.N, s.Record.At = s.N, at
	return s.Record, nil
}
