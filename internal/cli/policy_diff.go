package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/translate"
)

// The exit codes of `policy diff`, as those of `kubectl diff`, and of a question to `policy explain`.
const (
	exitSame    = 0
	exitChanges = 1
	exitNoDiff  = 2
)

// noAnswer makes every error of a verb whose exit code 1 is an answer one of code 2, so that a script can tell them apart.
func noAnswer(err error) error {
	if exit := (*exitError)(nil); err == nil || errors.As(err, &exit) && exit.code != ExitFailed {
		return err
	}
	return &exitError{exitNoDiff, err}
}

// objectChange is what happens to one object of a cluster.
type objectChange struct {
	Action string `json:"action"` // "+" made, "~" changed, "-" removed
	Object string `json:"object"` // Kind namespace/name
	Diff   string `json:"diff,omitempty"`
}

// clusterChange is what happens to a cluster.
type clusterChange struct {
	Cluster mesh.ClusterName `json:"cluster"`
	Changes []objectChange   `json:"changes"`
}

// diffReport is the document of `policy diff -o json`.
type diffReport struct {
	Changed  bool            `json:"changed"`
	Clusters []clusterChange `json:"clusters"`
	Access   []accessChange  `json:"access"`
	Warnings []string        `json:"warnings,omitempty"`
}

func shortRef(r mesh.Ref) string {
	if r.Namespace == "" {
		return r.Kind + " " + r.Name
	}
	return r.Kind + " " + r.Namespace + "/" + r.Name
}

// compare lists what happens to the clusters wanted.
func compare(before, after translate.Result, wanted func(mesh.ClusterName) bool) ([]clusterChange, error) {
	out := []clusterChange{}
	names := maps.Clone(before.Objects)
	maps.Copy(names, after.Objects)
	for _, c := range slices.Sorted(maps.Keys(names)) {
		if !wanted(c) {
			continue
		}
		changes, err := compareObjects(before.Objects[c], after.Objects[c])
		if err != nil {
			return nil, fmt.Errorf("cluster %q: %w", c, err)
		}
		if len(changes) > 0 {
			out = append(out, clusterChange{c, changes})
		}
	}
	return out, nil
}

func compareObjects(before, after translate.Objects) ([]objectChange, error) {
	names := slices.Concat(before.Names(), after.Names())
	slices.SortFunc(names, mesh.Ref.Compare)
	var out []objectChange
	for _, ref := range slices.Compact(names) {
		old, was := before.Get(ref)
		now, is := after.Get(ref)
		if was && is && old.Hash == now.Hash {
			continue
		}
		change := objectChange{Action: "~", Object: shortRef(ref)}
		if !was {
			change.Action = "+"
		}
		if !is {
			change.Action = "-"
		}
		a, errA := manifest(old)
		b, errB := manifest(now)
		if err := errors.Join(errA, errB); err != nil {
			return nil, fmt.Errorf("%s: %w", ref, err)
		}
		change.Diff = unified(a, b)
		out = append(out, change)
	}
	return out, nil
}

// manifest is an object as YAML, empty for no object.
func manifest(o mesh.Object) (string, error) {
	if len(o.Manifest) == 0 {
		return "", nil
	}
	text, err := yaml.JSONToYAML(o.Manifest)
	return string(text), err
}

func (p *policyVerbs) diffCommand() *cobra.Command {
	o := &previewOptions{}
	var brief bool
	cmd := &cobra.Command{
		Use:   "diff -f FILE",
		Short: "Show what a file would change in each cluster, and who gains or loses access",
		Long: `Compares what each cluster should have now with what it would get if the file were applied: the server's own translation, of the server's own snapshot without
and with the file's objects. Nothing is applied.

Exit codes, as those of kubectl diff: 0 nothing would change, 1 something would change, 2 no answer: wrong usage, a file that the server would refuse, or no snapshot.`,
		Example: `  meshctl policy diff -f billing.yaml --mgmt-context mgmt
  meshctl policy diff -f policies/ --snapshot snapshot.json --brief
  meshctl policy diff -f billing.yaml -o json | jq -r '.access[] | .text'`,
		Args: func(cmd *cobra.Command, args []string) error { return noArgs(cmd, args) },
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := parseFormat(p.output, formatTable, formatJSON, formatYAML)
			if err != nil {
				return err
			}
			if len(o.files) == 0 {
				return usageError("which file? usage: %s", cmd.UseLine())
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), policyTimeout)
			defer cancel()
			changed, err := p.diff(ctx, o, brief, f)
			if err != nil {
				return noAnswer(err)
			}
			if changed {
				return &exitError{exitChanges, errSilent}
			}
			return nil
		},
	}
	p.flagsOf(cmd, formatTable, formatJSON, formatYAML)
	o.flags(p, cmd)
	cmd.Flags().BoolVar(&brief, "brief", false, "list the objects, without their lines")
	return cmd
}

func (p *policyVerbs) diff(ctx context.Context, o *previewOptions, brief bool, f format) (bool, error) {
	v, err := p.preview(ctx, o)
	if err != nil {
		return false, err
	}
	if refused := v.refused(); len(refused) > 0 {
		return false, errors.New(strings.Join(refused, "\n"))
	}
	wanted := wantedClusters(o.clusters)
	changes, err := compare(v.Before, v.After, wanted)
	if err != nil {
		return false, err
	}
	access := v.access(changes) // it may add a note
	r := diffReport{Changed: len(changes) > 0, Clusters: changes, Access: access, Warnings: v.warnings(wanted)}
	if f != formatTable {
		return r.Changed, printDocument(p.streams.Out, f, r)
	}
	for _, w := range r.Warnings {
		fmt.Fprintln(p.streams.Err, "Warning:", w)
	}
	if !r.Changed {
		fmt.Fprintln(p.streams.Err, "Nothing would change.")
		return false, nil
	}
	r.print(p.streams.Out, brief)
	return true, nil
}

// body is what happens to a cluster, as lines.
func (c *clusterChange) body(brief bool) string {
	var out strings.Builder
	for _, o := range c.Changes {
		fmt.Fprintf(&out, "%s %s\n", o.Action, o.Object)
		if brief {
			continue
		}
		for line := range strings.Lines(o.Diff) {
			out.WriteString("    " + line)
		}
	}
	return out.String()
}

// alike are clusters to which the same happens; only the label with a cluster's own name differs.
type alike struct {
	names []string
	body  string // of the first
}

func group(changes []clusterChange, brief bool) []*alike {
	var out []*alike
	seen := map[string]*alike{}
	for i := range changes {
		name := string(changes[i].Cluster)
		body := changes[i].body(brief)
		key := strings.ReplaceAll(body, labelOfCluster+": "+name+"\n", labelOfCluster+"\n")
		if seen[key] == nil {
			seen[key] = &alike{body: body}
			out = append(out, seen[key])
		}
		seen[key].names = append(seen[key].names, name)
	}
	return out
}

// labelOfCluster is the label by which a translated object names its cluster.
const labelOfCluster = "relay.solo.io/cluster"

func (r *diffReport) print(w io.Writer, brief bool) {
	for _, g := range group(r.Clusters, brief) {
		head := "cluster " + g.names[0]
		if len(g.names) > 1 {
			head = fmt.Sprintf("%d clusters alike: %s", len(g.names), some(g.names, 20))
		}
		fmt.Fprintf(w, "%s\n%s\n", head, g.body)
	}
	n := map[string]int{}
	for _, c := range r.Clusters {
		for _, o := range c.Changes {
			n[o.Action]++
		}
	}
	fmt.Fprintf(w, "%s in %s: %d new, %d changed, %d removed\n", count(n["+"]+n["~"]+n["-"], "object"), count(len(r.Clusters), "cluster"), n["+"], n["~"], n["-"])
	fmt.Fprintln(w, "\nWho may call:")
	if len(r.Access) == 0 {
		fmt.Fprintln(w, "  nobody gains or loses access")
	}
	for _, a := range r.Access {
		fmt.Fprintf(w, "  %s\n", a.Text)
	}
}
