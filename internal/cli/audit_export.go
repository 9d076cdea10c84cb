package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"ambitmesh.dev/ambit/internal/audit"
)

// exportTimeout bounds an export, which may be long.
const exportTimeout = 30 * time.Minute

func (v *auditVerbs) exportCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use: "export", Short: "Export records with their proofs",
		Long: `Exports records in the order in which they were written. jsonl: one line each, with the proof that it is in the log, for "meshctl audit verify" (keep this one). csv: for a
spreadsheet; it can't be verified. The export is on record itself.

` + exitHelp,
		Example: `  meshctl audit export -o jsonl --file audit.jsonl --mgmt-context mgmt
  meshctl audit export -o csv --cluster prod-eu-west-3 --in 2026-02`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			as, err := parseFormat(firstOf(v.output, "jsonl"), "jsonl", "csv")
			if err != nil {
				return err
			}
			q, err := v.query(time.Now())
			if err != nil {
				return err
			}
			if file == "" || file == "-" {
				return v.export(cmd.Context(), q, as, v.streams.Out)
			}
			out, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
			if err != nil {
				return fmt.Errorf("save the export: %w", err)
			}
			if err := errors.Join(v.export(cmd.Context(), q, as, out), out.Close()); err != nil {
				return fmt.Errorf("%s is not whole: %w", file, err)
			}
			return nil
		},
	}
	v.filters(cmd)
	formatFlag(cmd, &v.output, "jsonl", "csv")
	cmd.Flags().StringVar(&file, "file", "-", "file to write; - is standard output")
	return cmd
}

func (v *auditVerbs) export(ctx context.Context, q audit.Query, as format, w io.Writer) error {
	mgmt, err := v.mgmt()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, exportTimeout)
	defer cancel()
	values := q.Values()
	values.Set("as", string(as))
	out := bufio.NewWriter(w)
	if _, err := mgmt.copyFromLeader(ctx, v.Namespace, "/audit/export?"+values.Encode(), "audit log", out); err != nil {
		return err
	}
	return out.Flush()
}

func (v *auditVerbs) verifyCommand() *cobra.Command {
	var file, key, before string
	cmd := &cobra.Command{
		Use: "verify", Short: "Prove that an export, or the log itself, is as it was written",
		Long: `Checks every record of an export against the log's signed head, offline, and names the first that was altered, removed or moved. Without --file it exports the whole log and checks that.

--key is the log's verifier key, kept by you when the log began (meshctl audit verify prints it); without it the key in the export is believed, which finds damage but no forger who signed
everything anew. --before FILE, an older whole export that was verified, shows that the log still begins with all it had then.

Exit codes: 0 it is whole, 1 it is not, 2 it could not be found out.`,
		Example: `  meshctl audit verify --file audit.jsonl --key "$(cat audit.key)"
  meshctl audit verify --mgmt-context mgmt --before last-month.jsonl`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				tmp, err := os.CreateTemp("", "audit-*.jsonl")
				if err != nil {
					return cannotTell(err)
				}
				defer os.Remove(tmp.Name())
				defer tmp.Close()
				if err := v.export(cmd.Context(), audit.Query{}, "jsonl", tmp); err != nil {
					return cannotTell(err)
				}
				file = tmp.Name()
			}
			found, roots, err := verifyFile(file, key, before)
			if err != nil {
				return err
			}
			return v.sayVerified(found, roots, key == "")
		},
	}
	v.mgmtContextFlag(cmd, &v.mgmtContext)
	cmd.Flags().StringVar(&file, "file", "", "the export (-o jsonl); empty: the whole log of the management server")
	cmd.Flags().StringVar(&key, "key", "", "the log's verifier key")
	cmd.Flags().StringVar(&before, "before", "", "an older export of the whole log")
	return cmd
}

// verifyFile verifies an export, and that it goes on from an older one, if there is one: then grew says from where.
func verifyFile(file, key, before string) (found *audit.Verified, grew *audit.Verified, err error) {
	open := func(name string, see func(audit.Record) error) (*audit.Verified, error) {
		f, err := os.Open(name)
		if err != nil {
			return nil, cannotTell(err)
		}
		defer f.Close()
		found, err := audit.Verify(f, key, see)
		if err != nil {
			return found, fmt.Errorf("%s: %w", name, err)
		}
		return found, nil
	}
	if before == "" {
		found, err = open(file, nil)
		return found, nil, err
	}
	if grew, err = open(before, nil); err != nil {
		return nil, nil, err
	}
	if found, err = open(file, nil); err != nil {
		return nil, nil, err
	}
	switch {
	case found.Head.Origin != grew.Head.Origin || found.Key != grew.Key:
		return found, grew, fmt.Errorf("%s: the log was replaced: it was %q (key %s) and is %q (key %s)", file, grew.Head.Origin, grew.Key, found.Head.Origin, found.Key)
	case found.Head.Size < grew.Head.Size:
		return found, grew, fmt.Errorf("%s: the log was cut: it had %d records and has %d", file, grew.Head.Size, found.Head.Size)
	case !found.Whole || !grew.Whole || found.From != 0:
		return found, grew, cannotTell(errors.New("--before needs exports of the whole log: without filters"))
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, nil, cannotTell(err)
	}
	defer f.Close()
	old, err := os.Open(before)
	if err != nil {
		return nil, nil, cannotTell(err)
	}
	defer old.Close()
	return found, grew, firstDifference(old, f, file)
}

// firstDifference compares the records of two verified exports as far as the older one goes.
func firstDifference(old, now io.Reader, file string) error {
	a, b := exportLines(old), exportLines(now)
	for n := int64(0); a.Scan(); n++ {
		if bytes.HasPrefix(a.Bytes(), []byte(`{"signed":`)) {
			return nil
		}
		if !b.Scan() {
			return fmt.Errorf("%s: it ends before record %d", file, n-1)
		}
		if n == 0 {
			continue // the headers
		}
		var was, is struct {
			Record json.RawMessage `json:"record"`
		}
		if err := errors.Join(json.Unmarshal(a.Bytes(), &was), json.Unmarshal(b.Bytes(), &is)); err != nil {
			return cannotTell(err)
		}
		if !bytes.Equal(was.Record, is.Record) {
			return fmt.Errorf("%s: the log was rewritten: record %d is not what it was", file, n-1)
		}
	}
	return cannotTell(errors.Join(a.Err(), b.Err()))
}

func exportLines(r io.Reader) *bufio.Scanner {
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20)
	return s
}

func (v *auditVerbs) sayVerified(found, before *audit.Verified, keyOfExport bool) error {
	out := v.streams.Out
	what := fmt.Sprintf("%d records, of a log of %d", found.Entries, found.Head.Size)
	if found.Whole {
		what = fmt.Sprintf("all records from %d to %d, of a log of %d", found.From, found.To-1, found.Head.Size)
	}
	fmt.Fprintf(out, "Verified: %s.\n", what)
	if before != nil {
		fmt.Fprintf(out, "It still begins with the %d records that it had.\n", before.Head.Size)
	}
	fmt.Fprintf(out, "Log:  %s\nRoot: %s\nKey:  %s\n", printable(found.Head.Origin), found.Head.Root, printable(found.Key))
	if keyOfExport {
		fmt.Fprintln(v.streams.Err, "The key is the export's own word: compare it with the one you kept, or give that with --key.")
	}
	return nil
}
