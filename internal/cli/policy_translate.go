package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/translate"
	"ambitmesh.dev/ambit/internal/version"
)

// preview is what a file would come to.
type preview struct {
	Before, After         translate.Result
	SnapBefore, SnapAfter *mesh.Snapshot
	Objects               []mesh.Ref // of the file; none: no file was given
	Notes                 []string
}

// previewOptions are the arguments of `policy translate` and `policy diff`.
type previewOptions struct {
	files    []string
	snapshot string
	clusters []string
}

func (o *previewOptions) flags(p *policyVerbs, cmd *cobra.Command) {
	cmd.Flags().StringArrayVarP(&o.files, "filename", "f", nil, "file or folder with AccessPolicies, Workspaces, WorkspaceSettings; - is standard input")
	cmd.Flags().StringSliceVar(&o.clusters, "cluster", nil, "only this cluster; may be given several times")
	snapshotFlag(cmd, &o.snapshot)
	_ = cmd.RegisterFlagCompletionFunc("cluster", p.completeClusterFlag)
}

// preview reads the files and the snapshot, and translates without and with the files, by the server's own code.
func (p *policyVerbs) preview(ctx context.Context, o *previewOptions) (*preview, error) {
	docs, err := readDocuments(o.files, os.Stdin)
	if err != nil {
		return nil, err
	}
	s, err := p.snapshot(ctx, o.snapshot)
	if err != nil {
		return nil, err
	}
	if err := known("--cluster", o.clusters, clustersOf(s.Snapshot)); err != nil {
		return nil, err
	}
	v := &preview{SnapBefore: s.Snapshot, SnapAfter: s.Snapshot}
	if server := s.Snapshot.ServerVersion; server != "" && server != version.Version {
		v.Notes = append(v.Notes, fmt.Sprintf("the server is %s and this meshctl is %s: what they translate may differ", server, version.Version))
	}
	if v.Before, err = translate.All(s.Snapshot); err != nil {
		return nil, fmt.Errorf("translate the snapshot of %s: %w", s.from, err)
	}
	v.After = v.Before
	if len(o.files) == 0 {
		return v, nil
	}
	over, err := putIn(s.Snapshot, docs, p.defaultNamespace(o.snapshot), s.TakenAt)
	if err != nil {
		return nil, err
	}
	v.SnapAfter, v.Objects = over.Snapshot, over.Objects
	v.Notes = append(v.Notes, over.Notes...)
	if v.After, err = translate.All(over.Snapshot); err != nil {
		return nil, fmt.Errorf("translate the snapshot of %s with %s: %w", s.from, strings.Join(o.files, ", "), err)
	}
	return v, nil
}

// defaultNamespace is where kubectl would put an object that names none.
func (p *policyVerbs) defaultNamespace(snapshot string) string {
	if p.namespace != "" {
		return p.namespace
	}
	if snapshot == "" {
		if raw, err := p.loadingRules("").Load(); err == nil {
			name, _ := chooseContext(raw, firstOf(p.mgmtContext, p.Context), "--mgmt-context")
			if c := raw.Contexts[name]; c != nil && c.Namespace != "" {
				return c.Namespace
			}
		}
	}
	return "default"
}

func clustersOf(s *mesh.Snapshot) []string {
	out := make([]string, len(s.Clusters))
	for i := range s.Clusters {
		out[i] = string(s.Clusters[i].Name)
	}
	return out
}

// refused are the file's objects that would not be translated, with the reason.
func (v *preview) refused() []string {
	var out []string
	for _, ref := range v.Objects {
		state, message := v.verdict(ref)
		if state == adminv2.ApprovalInvalid {
			out = append(out, fmt.Sprintf("%s %s/%s would not be translated: %s", ref.Kind, ref.Namespace, ref.Name, message))
		}
	}
	return out
}

func (v *preview) verdict(ref mesh.Ref) (adminv2.ApprovalState, string) {
	switch ref.Kind {
	case "AccessPolicy":
		return v.After.Policies[ref].Approval, v.After.Policies[ref].Message
	case "Workspace":
		return v.After.Workspaces[ref].Approval, v.After.Workspaces[ref].Message
	default:
		return v.After.Settings[ref].Approval, v.After.Settings[ref].Message
	}
}

// warnings are what a person should know of the file's objects before applying them.
func (v *preview) warnings(wanted func(mesh.ClusterName) bool) []string {
	out := slices.Clone(v.Notes)
	for _, ref := range v.Objects {
		who := fmt.Sprintf("%s %s/%s", ref.Kind, ref.Namespace, ref.Name)
		state, message := v.verdict(ref)
		if state == adminv2.ApprovalWarning {
			out = append(out, who+": "+message)
		}
		r := v.After.Policies[ref]
		for _, c := range r.Conditions {
			if c.Status != mesh.True && state != adminv2.ApprovalInvalid && c.Message != message {
				out = append(out, fmt.Sprintf("%s: %s: %s", who, c.Reason, c.Message))
			}
		}
		for _, c := range r.Clusters {
			if !wanted(c.Cluster) {
				continue
			}
			for _, why := range append([]string{c.Unenforceable, c.Waiting}, c.Widened...) {
				if why != "" {
					out = append(out, fmt.Sprintf("%s in %s: %s", who, c.Cluster, why))
				}
			}
		}
	}
	return out
}

// objects are the desired objects that come from the file, by cluster: those the reports name, those of its workspaces, and those that it changes.
func (v *preview) objects() map[mesh.ClusterName]translate.Objects {
	if len(v.Objects) == 0 {
		return v.After.Objects
	}
	found := map[mesh.ClusterName][]mesh.Object{}
	take := func(c mesh.ClusterName, ref mesh.Ref) {
		if object, ok := v.After.Objects[c].Get(ref); ok {
			found[c] = append(found[c], object)
		}
	}
	spaces := map[string]bool{}
	for _, ref := range v.Objects {
		for _, c := range v.After.Policies[ref].Clusters {
			for _, o := range c.Objects {
				take(c.Cluster, o)
			}
		}
		switch ref.Kind {
		case "Workspace":
			spaces[ref.Name] = true
		case "WorkspaceSettings":
			spaces[v.After.Settings[ref].Workspace] = true
		}
	}
	for c, objects := range v.After.Objects {
		for ref, o := range objects.All() {
			if old, ok := v.Before.Objects[c].Get(ref); !ok || old.Hash != o.Hash || spaces[workspaceOf(o)] {
				take(c, ref)
			}
		}
	}
	out := map[mesh.ClusterName]translate.Objects{}
	for c, objects := range found {
		out[c] = mesh.ObjectsOf(objects...)
	}
	return out
}

// labelWorkspace names the workspace that an object is of.
const labelWorkspace = "context.mesh.gloo.solo.io/workspace"

// workspaceOf is "-" for an object of no workspace.
func workspaceOf(o mesh.Object) string {
	var head struct {
		Metadata struct {
			Labels map[string]string `json:"labels"`
		} `json:"metadata"`
	}
	_ = json.Unmarshal(o.Manifest, &head) // what does not parse has no label
	return firstOf(head.Metadata.Labels[labelWorkspace], "-")
}

func wantedClusters(names []string) func(mesh.ClusterName) bool {
	return func(c mesh.ClusterName) bool { return len(names) == 0 || slices.Contains(names, string(c)) }
}

func (p *policyVerbs) translateCommand() *cobra.Command {
	o := &previewOptions{}
	cmd := &cobra.Command{
		Use:   "translate [-f FILE]",
		Short: "Show what each cluster gets",
		Long: `Prints the objects that each cluster would get from the file, if it were applied now: the server's own translation, of the server's own snapshot with the
file's objects put in. Nothing is applied. Without -f: everything that each cluster should have.

` + exitHelp + ` 1: an object of the file is valid, but would not be translated.`,
		Example: `  meshctl policy translate -f billing.yaml --mgmt-context mgmt
  meshctl policy translate -f policies/ --snapshot snapshot.json --cluster cluster-2
  helm template CHART | meshctl policy translate -f - --snapshot snapshot.json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := parseFormat(firstOf(p.output, string(formatYAML)), formatYAML, formatJSON)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), policyTimeout)
			defer cancel()
			v, err := p.preview(ctx, o)
			if err != nil {
				return err
			}
			return p.printTranslation(v, wantedClusters(o.clusters), f)
		},
	}
	p.flagsOf(cmd, formatYAML, formatJSON)
	o.flags(p, cmd)
	return cmd
}

// clusterObjects is what a cluster gets, as `policy translate -o json` prints it.
type clusterObjects struct {
	Cluster mesh.ClusterName  `json:"cluster"`
	Objects []json.RawMessage `json:"objects"`
}

func (p *policyVerbs) printTranslation(v *preview, wanted func(mesh.ClusterName) bool, f format) error {
	for _, w := range v.warnings(wanted) {
		fmt.Fprintln(p.streams.Err, "Warning:", w)
	}
	objects := v.objects()
	rows := []clusterObjects{}
	for _, c := range slices.Sorted(maps.Keys(objects)) {
		if !wanted(c) {
			continue
		}
		row := clusterObjects{Cluster: c, Objects: []json.RawMessage{}}
		for _, ref := range objects[c].Names() {
			object, _ := objects[c].Get(ref)
			row.Objects = append(row.Objects, json.RawMessage(object.Manifest))
		}
		rows = append(rows, row)
	}
	var err error
	if f == formatJSON {
		err = printDocument(p.streams.Out, f, rows)
	} else {
		err = printManifests(p.streams.Out, rows)
	}
	if len(rows) == 0 {
		fmt.Fprintln(p.streams.Err, "No cluster gets anything of it.")
	}
	if refused := v.refused(); err == nil && len(refused) > 0 {
		return errors.New(strings.Join(refused, "\n"))
	}
	return err
}

// printManifests writes a stream of YAML documents, each with the cluster it is for.
func printManifests(w io.Writer, rows []clusterObjects) error {
	for _, row := range rows {
		for _, o := range row.Objects {
			text, err := yaml.JSONToYAML(o)
			if err != nil {
				return fmt.Errorf("cluster %q: encode an object: %w", row.Cluster, err)
			}
			fmt.Fprintf(w, "---\n# cluster: %s\n%s", row.Cluster, text)
		}
	}
	return nil
}
