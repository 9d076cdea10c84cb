package audit

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/csv"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// exportVersion is that of the lines of an export.
const exportVersion = 1

// header is the first line of an export. After it comes a line for each record, then a footer.
type header struct {
	Export int    `json:"ambitAuditExport"`
	Key    string `json:"key"`  // verifier key of the log
	Head   string `json:"head"` // signed head that the proofs lead to
	// Query is what was asked for, for people. Whole: nothing was left out between From and To (exclusive).
	Query string `json:"query,omitempty"`
	Whole bool   `json:"whole"`
	From  int64  `json:"from"`
	To    int64  `json:"to"`
}

// entry is a line of an export: a record, and the proof that it is record N of the log.
type entry struct {
	I      int64            `json:"i"` // from 0: its place in the export
	N      int64            `json:"n"`
	Record json.RawMessage  `json:"record"` // its bytes are what is hashed
	Proof  tlog.RecordProof `json:"proof"`
}

// footer is the last line. Signed is a note by the log's key of how many entries came before and the SHA-256 of every line before it.
type footer struct {
	Signed string `json:"signed"`
}

func footerText(origin string, entries int64, sum []byte) string {
	return fmt.Sprintf("%s export\n%d\n%s\n", origin, entries, hex.EncodeToString(sum))
}

// ExportJSONL writes what answers q, with proofs, and returns how many records that are. q.Last and q.Limit are ignored.
func (l *Log) ExportJSONL(ctx context.Context, w io.Writer, q Query, asked string) (int64, error) {
	signed, err := l.Head(ctx)
	if err != nil {
		return 0, fmt.Errorf("audit: export: %w", err)
	}
	if len(signed) == 0 {
		return 0, errors.New("audit: export: the log is empty")
	}
	head, err := OpenHead(signed, l.key)
	if err != nil {
		return 0, fmt.Errorf("audit: export: %w", err)
	}
	q.Last, q.Limit = false, 0
	if q.Before == 0 || q.Before > head.Size {
		q.Before = head.Size
	}
	sum := sha256.New()
	out := bufio.NewWriter(io.MultiWriter(w, sum))
	line := func(v any) error {
		raw, err := json.Marshal(v)
		if err != nil {
			return err
		}
		_, err = out.Write(append(raw, '\n'))
		return err
	}
	if err := line(header{Export: exportVersion, Key: l.key, Head: string(signed), Query: asked, Whole: !q.Filtered(), From: q.After, To: q.Before}); err != nil {
		return 0, fmt.Errorf("audit: export: %w", err)
	}
	count := int64(0)
	cache := hashCache{of: l.reader(ctx, nil, nil), have: map[int64]tlog.Hash{}}
	for row, err := range l.store.Records(ctx, q) {
		if err != nil {
			return count, fmt.Errorf("audit: export: %w", err)
		}
		proof, err := tlog.ProveRecord(head.Size, row.N, &cache)
		if err != nil {
			return count, fmt.Errorf("audit: export: prove record %d: %w", row.N, err)
		}
		if !json.Valid(row.Data) { // altered in the store: said as such by who verifies
			row.Data, _ = json.Marshal(string(row.Data)) //nolint:errchkjson // a string
		}
		if err := line(entry{I: count, N: row.N, Record: row.Data, Proof: proof}); err != nil {
			return count, fmt.Errorf("audit: export: %w", err)
		}
		count++
	}
	if err := out.Flush(); err != nil {
		return count, fmt.Errorf("audit: export: %w", err)
	}
	last, err := note.Sign(&note.Note{Text: footerText(head.Origin, count, sum.Sum(nil))}, l.signer)
	if err != nil {
		return count, fmt.Errorf("audit: export: %w", err)
	}
	if err := errors.Join(line(footer{string(last)}), out.Flush()); err != nil {
		return count, fmt.Errorf("audit: export: %w", err)
	}
	return count, nil
}

// hashCache keeps hashes that proofs of neighbours share, a bounded number.
type hashCache struct {
	of   tlog.HashReader
	have map[int64]tlog.Hash
}

func (c *hashCache) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	if len(c.have) > 4096 {
		clear(c.have)
	}
	out := make([]tlog.Hash, len(indexes))
	var ask []int64
	var at []int
	for i, x := range indexes {
		if h, ok := c.have[x]; ok {
			out[i] = h
			continue
		}
		ask, at = append(ask, x), append(at, i)
	}
	hashes, err := c.of.ReadHashes(ask)
	if err != nil {
		return nil, err
	}
	for i, h := range hashes {
		out[at[i]], c.have[ask[i]] = h, h
	}
	return out, nil
}

// csvColumns are those of ExportCSV and WriteCSV.
func csvColumns() []string {
	return []string{"n", "at", "act", "user", "groups", "cluster", "operation", "object", "dryRun", "policy", "detail", "diff", "sha256"}
}

// WriteCSV writes rows for a spreadsheet. They can't be verified: that takes the JSON lines. A text that a spreadsheet would take for a formula gets a quote before it.
func WriteCSV(w io.Writer, rows func(yield func(Row, error) bool)) (int64, error) {
	out := csv.NewWriter(w)
	if err := out.Write(csvColumns()); err != nil {
		return 0, err
	}
	count := int64(0)
	for row, err := range rows {
		if err != nil {
			return count, err
		}
		r, err := Decode(row.Data)
		if err != nil {
			return count, err
		}
		changes, err := json.Marshal(r.Diff)
		if err != nil {
			return count, err
		}
		hash := tlog.RecordHash(row.Data)
		fields := []string{
			strconv.FormatInt(r.N, 10), r.At.Format(timeFormat), string(r.Act), r.User, strings.Join(r.Groups, " "), r.Cluster, r.Operation, r.Object, strconv.FormatBool(r.DryRun),
			r.Policy, r.Detail, string(changes), hex.EncodeToString(hash[:]),
		}
		for i, f := range fields {
			if f != "" && strings.ContainsRune("=+-@\t\r", rune(f[0])) {
				fields[i] = "'" + f
			}
		}
		if err := out.Write(fields); err != nil {
			return count, err
		}
		count++
	}
	out.Flush()
	return count, out.Error()
}

// maxLine bounds a line of an export: a record and its proof.
const maxLine = 2 * maxRecord

// Verified is what an export was found to be. Records that came before a fault are proven.
type Verified struct {
	Head    Head
	Key     string // that its signatures were checked with
	Entries int64
	Whole   bool  // nothing was left out between From and To
	From    int64 // first record of a whole export
	To      int64 // after the last
}

// Fault is what is wrong with an export: it names the first line (from 1) and the record that was altered, removed, added or moved.
type Fault struct {
	Line   int
	Record int64 // -1: none in particular
	What   string
}

func (f *Fault) Error() string {
	if f.Record < 0 {
		return fmt.Sprintf("line %d: %s", f.Line, f.What)
	}
	return fmt.Sprintf("line %d, record %d: %s", f.Line, f.Record, f.What)
}

// Verify checks an export, without any server, with the log's verifier key; an empty key takes the export's word for it, which finds mistakes but no forger who signed it all anew. Each
// record is handed to see (nil: none) once it is proven. The error is a *Fault where the export is not what the log's server wrote.
func Verify(r io.Reader, key string, see func(Record) error) (*Verified, error) {
	v := &verifier{sum: sha256.New(), see: see, in: bufio.NewScanner(r)}
	v.in.Buffer(make([]byte, 0, 64<<10), maxLine)
	if err := v.header(key); err != nil {
		return nil, err
	}
	for v.next() {
		if bytes.HasPrefix(v.raw, []byte(`{"signed":`)) {
			return &v.found, v.footer()
		}
		if err := v.entry(); err != nil {
			return &v.found, err
		}
	}
	if err := v.in.Err(); err != nil {
		return &v.found, v.fault(-1, "%v", err)
	}
	return &v.found, v.fault(-1, "the end is missing: the export was cut after %d records", v.found.Entries)
}

type verifier struct {
	in   *bufio.Scanner
	raw  []byte
	line int
	sum  interface {
		Write([]byte) (int, error)
		Sum([]byte) []byte
	}
	see   func(Record) error
	last  int64
	found Verified
}

func (v *verifier) next() bool {
	if !v.in.Scan() {
		return false
	}
	v.raw = v.in.Bytes()
	v.line++
	return true
}

func (v *verifier) add() {
	_, _ = v.sum.Write(v.raw)
	_, _ = v.sum.Write([]byte{'\n'})
}

func (v *verifier) fault(record int64, format string, args ...any) error {
	return &Fault{Line: v.line, Record: record, What: fmt.Sprintf(format, args...)}
}

// strict decodes a line: an unknown field, or something after it, is an error.
func (v *verifier) strict(into any) error {
	d := json.NewDecoder(bytes.NewReader(v.raw))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if d.More() {
		return errors.New("there is something after it")
	}
	return nil
}

func (v *verifier) header(key string) error {
	if !v.next() {
		return &Fault{Line: 1, Record: -1, What: "no export: it is empty"}
	}
	var h header
	if err := v.strict(&h); err != nil || h.Export != exportVersion {
		return v.fault(-1, `no export: want the file that "meshctl audit export -o jsonl" wrote, version %d`, exportVersion)
	}
	if key == "" {
		key = h.Key
	}
	head, err := OpenHead([]byte(h.Head), key)
	if err != nil {
		return v.fault(-1, "%v", err)
	}
	if h.From < 0 || h.To > head.Size || h.From > h.To {
		return v.fault(-1, "records %d to %d of a log of %d", h.From, h.To, head.Size)
	}
	v.last = h.From - 1
	v.found = Verified{Head: head, Key: key, Whole: h.Whole, From: h.From, To: h.To}
	v.add()
	return nil
}

func (v *verifier) entry() error {
	var e entry
	if err := v.strict(&e); err != nil {
		return v.fault(v.last+1, "not an entry: it was altered: %v", err)
	}
	expected := v.last + 1
	switch {
	case e.N <= v.last:
		return v.fault(e.N, "it comes after record %d: it was moved or added", v.last)
	case v.found.Whole && e.N > expected:
		return v.fault(expected, "it is missing: removed or moved (the next is record %d)", e.N)
	case e.I != v.found.Entries:
		return v.fault(e.N, "it is entry %d of the export and comes as %d: entries before it were removed or moved", e.I, v.found.Entries)
	case e.N >= v.found.To:
		return v.fault(e.N, "it was added: the export ends before record %d", v.found.To)
	}
	if err := tlog.CheckRecord(e.Proof, v.found.Head.Size, v.found.Head.Root, e.N, tlog.RecordHash(e.Record)); err != nil {
		return v.fault(e.N, "it was altered: it is not the record that the signed head vouches for")
	}
	r, err := Decode(e.Record)
	if err != nil || r.N != e.N {
		return v.fault(e.N, "it is proven, but no record %d: %v", e.N, err)
	}
	v.last = e.N
	v.found.Entries++
	v.add()
	if v.see != nil {
		return v.see(r)
	}
	return nil
}

func (v *verifier) footer() error {
	if v.found.Whole && v.last+1 != v.found.To {
		return v.fault(v.last+1, "it is missing: records were removed at the end")
	}
	var f footer
	if err := v.strict(&f); err != nil || len(f.Signed) > maxHead {
		return v.fault(-1, "not the end of an export: it was altered")
	}
	key, err := note.NewVerifier(v.found.Key)
	if err != nil {
		return v.fault(-1, "%v", err)
	}
	n, err := openNote([]byte(f.Signed), key)
	if err != nil {
		return v.fault(-1, "the signature of the export: %v", err)
	}
	if n.Text != footerText(v.found.Head.Origin, v.found.Entries, v.sum.Sum(nil)) {
		return v.fault(-1, "the export had other entries when it was signed: it has %d, and said:\n%s", v.found.Entries, n.Text)
	}
	if v.next() {
		return v.fault(-1, "something was added after the end")
	}
	return nil
}
