package cli

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"html/template"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ambitmesh.dev/ambit/internal/audit"
)

// auditRow is a line of the auditor's table.
type auditRow struct {
	Cluster     string   `json:"cluster"`
	Added       string   `json:"added"`
	By          string   `json:"by,omitempty"`
	TrustDomain string   `json:"trustDomain,omitempty"`
	ClusterUID  string   `json:"clusterUID,omitempty"`
	Permissions []string `json:"permissions,omitempty"`
	Agent       string   `json:"agent,omitempty"`
	LastSeen    string   `json:"lastSeen,omitempty"`
	Status      string   `json:"status"`
}

type auditReport struct {
	At       string     `json:"at"`
	Clusters []auditRow `json:"clusters"`
	Key      string     `json:"key,omitempty"`
	Head     string     `json:"head,omitempty"`
}

func (v *auditVerbs) reportCommand() *cobra.Command {
	report := &cobra.Command{
		Use: "report", Short: "Print the tables that an auditor asks for", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	clusters := &cobra.Command{
		Use: "clusters", Short: "Say of each cluster when it was added, by whom, under which trust domain, with what permissions",
		Long: `Says of each cluster in the mesh when it was added, by whom, under which trust domain, with what permissions, its agent and when it was last seen. html is for printing, with the
log's signed head in its footer.

` + exitHelp,
		Example: "  meshctl audit report clusters --mgmt-context mgmt -o html > clusters.html",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := parseFormat(v.output, formatTable, formatJSON, "csv", "html")
			if err != nil {
				return err
			}
			r, err := v.clustersReport(cmd.Context(), time.Now())
			if err != nil {
				return err
			}
			return v.printReport(f, r)
		},
	}
	v.mgmtContextFlag(clusters, &v.mgmtContext)
	formatFlag(clusters, &v.output, formatTable, formatJSON, "csv", "html")
	report.AddCommand(clusters)
	return report
}

// permissionsOf is what a registration lets the management plane do in a cluster: the rights that the agent's chart gives it.
func permissionsOf() []string {
	return []string{"agent: read inventory", "agent: apply what policies and segments translate to", "agent: keep istiod's CA (trust.enabled)"}
}

func (v *auditVerbs) clustersReport(ctx context.Context, now time.Time) (*auditReport, error) {
	mgmt, err := v.mgmt()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, auditTimeout)
	defer cancel()
	all, err := mgmt.clusters(ctx, v.Namespace)
	if err != nil {
		return nil, err
	}
	r := &auditReport{At: now.UTC().Format(time.RFC3339), Clusters: []auditRow{}}
	for i := range all {
		row := rowOf(&all[i])
		r.Clusters = append(r.Clusters, auditRow{
			Cluster: row.Cluster, Added: row.Created, By: row.RegisteredBy, TrustDomain: row.TrustDomain, ClusterUID: row.ClusterUID, Permissions: permissionsOf(),
			Agent: row.AgentVersion, LastSeen: row.LastHeartbeat, Status: row.Status,
		})
	}
	raw, pod, err := mgmt.askLeader(ctx, v.Namespace, "/audit/head", "audit log")
	if err != nil {
		return nil, err
	}
	var head struct{ Key, Head string }
	if err := json.Unmarshal(raw, &head); err != nil {
		return nil, fmt.Errorf("context %q: what the management server (Pod %s/%s) answered: %w", mgmt.Context, v.Namespace, pod, err)
	}
	if head.Head != "" {
		if _, err := audit.OpenHead([]byte(head.Head), head.Key); err != nil {
			return nil, fmt.Errorf("context %q: the audit log's head: %w", mgmt.Context, err)
		}
	}
	r.Key, r.Head = head.Key, head.Head
	return r, nil
}

func (v *auditVerbs) printReport(f format, r *auditReport) error {
	head := []string{"CLUSTER", "ADDED", "BY", "TRUST DOMAIN", "PERMISSIONS", "AGENT", "LAST SEEN", "STATUS"}
	var rows [][]string
	for _, c := range r.Clusters {
		rows = append(rows, []string{c.Cluster, c.Added, none(printable(c.By)), none(c.TrustDomain), strings.Join(c.Permissions, "; "), none(c.Agent), none(c.LastSeen), c.Status})
	}
	switch f {
	case formatJSON:
		return printDocument(v.streams.Out, f, r)
	case "csv":
		w := csv.NewWriter(v.streams.Out)
		for _, row := range append([][]string{head}, rows...) {
			for i, cell := range row {
				if cell != "" && strings.ContainsRune("=+-@\t\r", rune(cell[0])) { // a spreadsheet would run it
					row[i] = "'" + cell
				}
			}
			if err := w.Write(row); err != nil {
				return err
			}
		}
		w.Flush()
		return w.Error()
	case "html":
		page, err := template.New("report").Parse(reportPage)
		if err != nil {
			return err
		}
		return page.Execute(v.streams.Out, map[string]any{"At": r.At, "Head": head, "Rows": rows, "Key": r.Key, "Note": r.Head})
	default:
		printTable(v.streams.Out, "", head, rows)
		return nil
	}
}

const reportPage = `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Clusters of the mesh, {{.At}}</title>
<style>
body { font: 10pt/1.4 sans-serif; margin: 2em; color: #111 }
table { border-collapse: collapse; width: 100% }
th, td { border: 1px solid #999; padding: .3em .5em; text-align: left; vertical-align: top; overflow-wrap: anywhere }
thead { display: table-header-group } tr { break-inside: avoid }
footer { margin-top: 2em; font-size: 8pt } pre { white-space: pre-wrap; overflow-wrap: anywhere }
@page { size: A4 landscape; margin: 15mm }
</style></head><body>
<h1>Clusters of the mesh</h1><p>As of {{.At}}.</p>
<table><thead><tr>{{range .Head}}<th scope="col">{{.}}</th>{{end}}</tr></thead>
<tbody>{{range .Rows}}<tr>{{range .}}<td>{{.}}</td>{{end}}</tr>{{end}}</tbody></table>
<footer><p>Head of the audit log, verified with key {{.Key}}:</p><pre>{{.Note}}</pre></footer>
</body></html>
`
