package audit

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Head is the state of a log: how many records it has, and the root hash of the tree over them.
type Head struct {
	Origin string // the log's name
	Size   int64
	Root   tlog.Hash
}

// String is the body of a C2SP checkpoint (c2sp.org/tlog-checkpoint).
func (h Head) String() string {
	return fmt.Sprintf("%s\n%d\n%s\n", h.Origin, h.Size, base64.StdEncoding.EncodeToString(h.Root[:]))
}

// maxHead bounds a signed head.
const maxHead = 4 << 10

func parseHead(text string) (Head, error) {
	lines := strings.SplitN(text, "\n", 4)
	if len(lines) < 4 || lines[0] == "" {
		return Head{}, errors.New("not a checkpoint: want origin, size and root hash, a line each")
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil || size < 0 || strconv.FormatInt(size, 10) != lines[1] {
		return Head{}, fmt.Errorf("not a checkpoint: size %q", lines[1])
	}
	root, err := tlog.ParseHash(lines[2])
	if err != nil {
		return Head{}, fmt.Errorf("not a checkpoint: root hash %q", lines[2])
	}
	return Head{Origin: lines[0], Size: size, Root: root}, nil
}

// OpenHead checks the signature of a head with the log's verifier key ("name+hash+key").
func OpenHead(signed []byte, key string) (Head, error) {
	if len(signed) > maxHead {
		return Head{}, fmt.Errorf("a head of %d bytes", len(signed))
	}
	v, err := note.NewVerifier(key)
	if err != nil {
		return Head{}, fmt.Errorf("verifier key %q: %w", key, err)
	}
	n, err := openNote(signed, v)
	if err != nil {
		return Head{}, fmt.Errorf("the head's signature: %w", err)
	}
	h, err := parseHead(n.Text)
	if err != nil {
		return Head{}, err
	}
	if h.Origin != v.Name() {
		return Head{}, fmt.Errorf("the head is of log %q, the key of %q", h.Origin, v.Name())
	}
	return h, nil
}

// openNote checks a signed note, which has to be written as the signer wrote it: base64 has spare bits that a lenient reader passes over, and then bytes could be changed unseen.
func openNote(signed []byte, v note.Verifier) (*note.Note, error) {
	n, err := note.Open(signed, note.VerifierList(v))
	if err != nil {
		return nil, err
	}
	for _, s := range slices.Concat(n.Sigs, n.UnverifiedSigs) {
		if _, err := base64.StdEncoding.Strict().DecodeString(s.Base64); err != nil {
			return nil, fmt.Errorf("signature of %s: %w", s.Name, err)
		}
	}
	return n, nil
}

// Key signs the heads of one log. Secret is for the Secret that keeps it; Public for everybody.
type Key struct {
	Secret, Public string
}

// NewKey makes the key of a new log. Its name is the log's origin.
func NewKey(name string) (Key, error) {
	secret, public, err := note.GenerateKey(rand.Reader, name+"/"+strings.ToLower(rand.Text()[:8]))
	if err != nil {
		return Key{}, fmt.Errorf("audit: make the log's key: %w", err)
	}
	return Key{secret, public}, nil
}

// Extends checks that the log with head now has all that the log with head old had, in the same order. proof is of tlog.ProveTree.
func Extends(old, now Head, proof tlog.TreeProof) error {
	switch {
	case old.Origin != now.Origin:
		return fmt.Errorf("the log was replaced: it was %q and is %q", old.Origin, now.Origin)
	case old.Size > now.Size:
		return fmt.Errorf("the log was cut: it had %d records and has %d", old.Size, now.Size)
	case old.Size == now.Size && old.Root != now.Root:
		return fmt.Errorf("the log was forked: with %d records it had root %s and has %s", old.Size, old.Root, now.Root)
	case old.Size == now.Size || old.Size == 0:
		return nil
	}
	if err := tlog.CheckTree(proof, now.Size, now.Root, old.Size, old.Root); err != nil {
		return fmt.Errorf("the log was rewritten: the first %d of its %d records are not those that it had: %w", old.Size, now.Size, err)
	}
	return nil
}
