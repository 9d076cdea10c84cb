package cli

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1" //nolint:gosec // a key identifier (RFC 5280 4.2.1.2), no signature
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/controller-runtime/pkg/client"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/trust"
	"ambitmesh.dev/ambit/internal/validate"
)

// planOptions are the flags of `trust plan`.
type planOptions struct {
	snapshot, save, to string
}

func (t *trustVerbs) planCommand() *cobra.Command {
	o := &planOptions{}
	cmd := &cobra.Command{
		Use:   "plan",
		Short: "What a rotation would do, and whether anything would be refused on the way",
		Long: `Says what would keep a rotation from starting and how to mend it, then every step with what it waits for, and verifies as real X.509 what every cluster presents
against what every cluster trusts, before, during and after each step. Pairs that would fail are named. Changes nothing.

It asks the management server for what it knows and runs the server's own code on it. With a rotation under way it plans the rest of it. Otherwise the new root is not made yet, and
a stand-in takes its place, whose key is thrown away: what depends on the real one is checked again by the server before it begins.
-f FILE plans what a changed RootTrustPolicy would do. --save FILE keeps what the server knows, for --snapshot FILE later, without any cluster.

` + trustExitHelp,
		Example: `  meshctl trust plan --mgmt-context mgmt
  meshctl trust plan -f root-trust-policy.yaml
  meshctl trust plan --save trust.json && meshctl trust plan --snapshot trust.json -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := parseFormat(t.output, formatTable, formatJSON, formatYAML)
			if err != nil {
				return err
			}
			if o.save != "" && o.snapshot != "" {
				return usageError("--save and --snapshot: want one of them")
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), policyTimeout)
			defer cancel()
			return cannotTell(t.plan(ctx, o, f))
		},
	}
	t.flagsOf(cmd, formatTable, formatJSON, formatYAML)
	flags := cmd.Flags()
	flags.StringVar(&o.snapshot, "snapshot", "", "use this file of --save in place of the management server")
	flags.StringVar(&o.save, "save", "", "write what the management server knows of trust to this file")
	flags.StringVarP(&o.to, "to", "f", "", "plan this changed RootTrustPolicy; - is standard input")
	return cmd
}

// planReport is the document of `trust plan`.
type planReport struct {
	Policy string `json:"policy"`
	// Phase of the rotation at present.
	Phase trust.Phase `json:"phase"`
	// StandIn: the new root does not exist yet.
	StandIn bool     `json:"standIn"`
	Notes   []string `json:"notes,omitempty"`
	trust.What
}

// wrong reports whether the plan would not work.
func (r *planReport) wrong() bool {
	return slices.ContainsFunc(r.Findings, func(f trust.Finding) bool { return f.Refuses }) ||
		slices.ContainsFunc(r.Steps, func(s trust.PlannedStep) bool { return len(s.Failures) > 0 })
}

func (t *trustVerbs) plan(ctx context.Context, o *planOptions, f format) error {
	inputs, mgmt, err := t.inputs(ctx, o)
	if err != nil {
		return err
	}
	name, err := t.choose(slices.Sorted(maps.Keys(inputs)))
	if err != nil {
		return err
	}
	input := inputs[name]
	var notes []string
	starts := true
	if o.to != "" {
		if notes, starts, err = t.changed(ctx, mgmt, o.to, name, &input); err != nil {
			return err
		}
	}
	r, err := planOf(name, input, starts)
	if err != nil {
		return err
	}
	r.Notes = append(notes, r.Notes...)
	if f == formatTable {
		r.print(t.streams.Out)
	} else if err := printDocument(t.streams.Out, f, r); err != nil {
		return err
	}
	if r.wrong() {
		return &exitError{ExitFailed, errSilent}
	}
	return nil
}

// inputs are what the server decides from, by policy. mgmt is nil where a file was read.
func (t *trustVerbs) inputs(ctx context.Context, o *planOptions) (map[string]trust.Input, *cluster, error) {
	if o.snapshot != "" {
		raw, err := os.ReadFile(o.snapshot)
		if err != nil {
			return nil, nil, usageError("--snapshot: %w", err)
		}
		inputs, err := parseInputs(raw)
		if err != nil {
			return nil, nil, usageError("--snapshot %s: %w", o.snapshot, err)
		}
		return inputs, nil, nil
	}
	mgmt, err := t.mgmt()
	if err != nil {
		return nil, nil, err
	}
	raw, pod, err := mgmt.askLeader(ctx, t.Namespace, "/trust", "record of trust")
	if err != nil {
		return nil, nil, err
	}
	inputs, err := parseInputs(raw)
	if err != nil {
		return nil, nil, fmt.Errorf("context %q: what the management server (Pod %s/%s) answered: %w", mgmt.Context, t.Namespace, pod, err)
	}
	if o.save != "" {
		if err := os.WriteFile(o.save, raw, 0o600); err != nil {
			return nil, nil, fmt.Errorf("save what the server knows: %w", err)
		}
	}
	return inputs, mgmt, nil
}

func parseInputs(raw []byte) (map[string]trust.Input, error) {
	var out map[string]trust.Input
	if err := json.Unmarshal(raw, &out); err != nil {
		return nil, fmt.Errorf(`not what "meshctl trust plan --save" wrote: %w`, err)
	}
	for name, i := range out {
		if i.At.IsZero() {
			return nil, fmt.Errorf(`not what "meshctl trust plan --save" wrote: policy %q has no time`, name)
		}
	}
	return out, nil
}

// planOf runs the server's own code. starts: a new root is imagined where none is asked for.
func planOf(name string, in trust.Input, starts bool) (*planReport, error) {
	r := &planReport{Policy: name, Phase: trust.Phase(firstOf(string(in.Rotation.Phase), string(trust.Steady)))}
	asked := in.Want.Root != nil && in.Want.Root.Fingerprint != in.Rotation.Current.Fingerprint
	if in.Rotation.Incoming == nil && !asked {
		switch {
		case in.Rotation.Current.Fingerprint.IsZero():
			r.Notes = append(r.Notes, "there is no root yet: clusters join the first one, which is no rotation")
			return r, nil
		case !starts:
			return r, nil
		}
		root, err := standIn(in.Rotation.Generation+1, in.At)
		if err != nil {
			return nil, err
		}
		r.StandIn, in.Want.Root = true, root
		if in.Want.CrossSign {
			in.Want.CrossSign = false
			r.Notes = append(r.Notes, "the policy wants the new root cross-signed: whether that can be done shows when it exists")
		}
	}
	r.What = trust.Plan(in.Rotation, in.Want, in.Fleet, in.At)
	return r, nil
}

// standIn is a root that nobody has the key of.
func standIn(g mesh.Generation, now time.Time) (*trust.Root, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("stand-in for the new root: %w", err)
	}
	public, err := key.PublicKey.Bytes()
	if err != nil {
		return nil, fmt.Errorf("stand-in for the new root: %w", err)
	}
	id := sha1.Sum(public) //nolint:gosec // a key identifier
	template := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: fmt.Sprintf("(the new root, generation %d)", g)}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(10, 0, 0), KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SubjectKeyId: id[:],
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("stand-in for the new root: %w", err)
	}
	root, err := trust.RootOf(der, g, "stand-in")
	return &root, err
}

// changed puts a changed policy into what the server wants, and says whether it starts a rotation.
func (t *trustVerbs) changed(ctx context.Context, mgmt *cluster, file, name string, in *trust.Input) (notes []string, starts bool, err error) {
	docs, err := readDocuments([]string{file}, os.Stdin)
	if err != nil {
		return nil, false, err
	}
	docs = slices.DeleteFunc(docs, func(d document) bool {
		return d.Kind.Kind != "RootTrustPolicy" || t.policy == "" && len(docs) > 1 && d.Meta.Name != name
	})
	if len(docs) != 1 {
		return nil, false, usageError("-f %s: want one RootTrustPolicy, found %d", file, len(docs))
	}
	d := &docs[0]
	if d.Meta.Name != name {
		return nil, false, usageError("-f %s: it is RootTrustPolicy %q, and the plan is of %q: give --policy", file, d.Meta.Name, name)
	}
	var next adminv2.RootTrustPolicy
	if d.Meta.Namespace == "" {
		d.Meta.Namespace = t.Namespace
	}
	errs := decodeDocument(d, &next)
	if len(errs) == 0 {
		errs = validate.RootTrustPolicy(&next, nil, validate.Options{AdminNamespace: t.Namespace})
	}
	if len(errs) > 0 {
		return nil, false, fmt.Errorf("%s: %w", d, errs.ToAggregate())
	}
	p := mesh.TrustOf(&next.Spec)
	w := &in.Want
	w.Organization, w.Algorithm, w.TTL, w.RenewRatio = p.Intermediate.Organization, p.Intermediate.Algorithm, p.Intermediate.TTL, p.Intermediate.RenewRatio
	w.Restart, w.Adopt, w.CrossSign, w.Canary, w.Soak = p.Restart, p.Adopt, p.CrossSign, p.Canary, p.Soak
	w.LongestLeaf, w.ForeignClients, w.FileLag = p.LongestLeaf, p.ForeignClients, p.FileLag
	if mgmt == nil {
		return []string{"whether the change starts a rotation can't be told without the management cluster: the plan takes it that it does"}, true, nil
	}
	var live adminv2.RootTrustPolicy
	if err := mgmt.Get(ctx, client.ObjectKey{Namespace: t.Namespace, Name: name}, &live); err != nil {
		return nil, false, mgmt.saysTrust("read RootTrustPolicy "+name, err)
	}
	if same(mesh.TrustOf(&live.Spec).Authority, p.Authority) {
		return []string{"the change leaves the certificate authority as it is: it starts no rotation"}, false, nil
	}
	if in.Rotation.Incoming != nil {
		return nil, false, errors.New("a rotation is under way, and the change asks for another root: wait for its end, or roll it back first (meshctl trust rollback)")
	}
	w.Root = nil // of the authority that the policy has now
	return []string{"the change asks another certificate authority for a root: it starts a rotation"}, true, nil
}
