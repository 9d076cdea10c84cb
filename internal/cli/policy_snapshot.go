package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"ambitmesh.dev/ambit/internal/mesh"
)

// savedSnapshot is what the management server answers, and what `policy snapshot` saves.
type savedSnapshot struct {
	Snapshot *mesh.Snapshot `json:"snapshot"`
	TakenAt  time.Time      `json:"takenAt"`
	// from says where it was read, for people.
	from string
}

func (p *policyVerbs) snapshotCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "snapshot",
		Short: "Save what the management server knows, for use offline",
		Long: `Saves the server's snapshot: clusters, their Services, ServiceAccounts, workloads and Istio policies, and the policies of the management cluster. It holds no
Secret and no key. With it, "policy explain", "translate" and "diff" work without any cluster (--snapshot FILE), for example in CI.

It is read through a port-forward to the leading management server's Pod, which takes the right to list pods and to create pods/portforward there.

` + exitHelp,
		Example: `  meshctl policy snapshot -o snapshot.json --mgmt-context mgmt
  meshctl policy diff -f billing.yaml --snapshot snapshot.json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			mgmt, err := p.mgmt()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), policyTimeout)
			defer cancel()
			s, raw, err := mgmt.fetchSnapshot(ctx, p.mgmtNamespace)
			if err != nil {
				return err
			}
			if file == "" || file == "-" {
				_, err = p.streams.Out.Write(raw)
				return err
			}
			if err := os.WriteFile(file, raw, 0o600); err != nil {
				return fmt.Errorf("save the snapshot: %w", err)
			}
			fmt.Fprintf(p.streams.Err, "%s: %s and %s, taken at %s\n", file, count(len(s.Snapshot.Clusters), "cluster"), policies(len(s.Snapshot.Policies)), s.TakenAt.UTC().Format(time.RFC3339))
			return nil
		},
	}
	p.flagsOf(cmd)
	cmd.Flags().StringVarP(&file, "output", "o", "-", "file to write; - is standard output")
	return cmd
}

func policies(n int) string {
	if n == 1 {
		return "1 policy"
	}
	return fmt.Sprintf("%d policies", n)
}

// snapshotFlag adds --snapshot.
func snapshotFlag(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVar(file, "snapshot", "", "use this file of \"meshctl policy snapshot\" in place of the management server")
}

// snapshot reads a file, if one is given, else asks the management server.
func (p *policyVerbs) snapshot(ctx context.Context, file string) (*savedSnapshot, error) {
	if file != "" {
		raw, err := os.ReadFile(file)
		if err != nil {
			return nil, usageError("--snapshot: %w", err)
		}
		s, err := parseSnapshot(raw)
		if err != nil {
			return nil, usageError("--snapshot %s: %w", file, err)
		}
		s.from = file
		return s, nil
	}
	mgmt, err := p.mgmt()
	if err != nil {
		return nil, err
	}
	s, _, err := mgmt.fetchSnapshot(ctx, p.mgmtNamespace)
	return s, err
}

// errNoSnapshot: it is JSON, but not a snapshot.
var errNoSnapshot = errors.New(`not a snapshot: want the file that "meshctl policy snapshot" wrote`)

func parseSnapshot(raw []byte) (*savedSnapshot, error) {
	s := &savedSnapshot{}
	d := json.NewDecoder(bytes.NewReader(raw))
	if err := d.Decode(s); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("it ends in the middle: %w", err)
		}
		return nil, fmt.Errorf("%w (%w)", errNoSnapshot, err)
	}
	if s.Snapshot == nil || s.TakenAt.IsZero() {
		return nil, errNoSnapshot
	}
	return s, nil
}
