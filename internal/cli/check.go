package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/relay/family"
	ambitversion "ambitmesh.dev/ambit/internal/version"
)

func (a *app) checkCommand() *cobra.Command {
	var mgmtContext, output string
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check the health of the management plane and of every cluster's connection",
		Long: `Looks at the CRDs, the deployments, the webhook, the relay's certificates as one chain, and the connection of every registered cluster.
It changes nothing. An error gives exit code 1; a warning, or having no clusters yet, does not.

` + exitHelp,
		Example: "  meshctl check --kubecontext mgmt\n  meshctl check --kubecontext mgmt -o json | jq '.sections[] | select(.status==\"error\")'",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 && args[0] == "server" { // a verb of its own in the product
				return nil
			}
			return noArgs(cmd, args)
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			format, err := parseFormat(output, formatTable, formatJSON, formatYAML)
			if err != nil {
				return err
			}
			mgmt, err := a.connect("", firstOf(mgmtContext, a.Context), "--mgmt-context")
			if err != nil {
				return err
			}
			return a.check(cmd.Context(), mgmt, format)
		},
	}
	a.mgmtContextFlag(cmd, &mgmtContext)
	formatFlag(cmd, &output, formatTable, formatJSON, formatYAML)
	return cmd
}

// The results of a section of the check.
const (
	checkOK      = "ok"
	checkWarning = "warning"
	checkError   = "error"
)

// section is one part of the check.
type section struct {
	Name   string     `json:"name"`
	Status string     `json:"status"` // ok, warning or error
	Lines  []string   `json:"lines,omitempty"`
	Head   []string   `json:"-"`
	Rows   [][]string `json:"-"`
	Data   any        `json:"data,omitempty"` // the rows, for JSON
}

// add notes a finding; the section is as bad as its worst.
func (s *section) add(status, format string, args ...any) {
	s.Lines = append(s.Lines, fmt.Sprintf(format, args...))
	s.worse(status)
}

func (s *section) worse(status string) {
	order := []string{"", checkOK, checkWarning, checkError}
	if slices.Index(order, status) > slices.Index(order, s.Status) {
		s.Status = status
	}
}

// checkReport is the document of `check -o json`.
type checkReport struct {
	Context  string    `json:"context"`
	Status   string    `json:"status"`
	Sections []section `json:"sections"`
}

// checkFacts is what the check looks at.
type checkFacts struct {
	Now         time.Time
	Context     string
	Namespace   string
	CRD         *apiextensionsv1.CustomResourceDefinition
	Deployments []appsv1.Deployment
	Mutating    *admissionv1.MutatingWebhookConfiguration
	Validating  *admissionv1.ValidatingWebhookConfiguration
	Probe       error // of the webhook
	Secrets     map[string]*corev1.Secret
	Clusters    []adminv2.KubernetesCluster
	Holder      string // Pod that holds the Lease
}

func (a *app) check(ctx context.Context, mgmt *cluster, f format) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	facts, err := gatherCheck(ctx, mgmt, a.Namespace)
	if err != nil {
		return err
	}
	report := checkReport{Context: mgmt.Context, Status: checkOK, Sections: []section{
		checkCRDs(facts), checkDeployments(facts), checkWebhook(facts), checkRelay(facts), checkClusters(facts),
	}}
	whole := section{}
	for i := range report.Sections {
		whole.worse(report.Sections[i].Status)
	}
	report.Status = whole.Status
	if f != formatTable {
		err = printDocument(a.streams.Out, f, report)
	} else {
		a.printCheck(a.streams.Out, report)
	}
	if err == nil && report.Status == checkError {
		return &exitError{ExitFailed, errSilent}
	}
	return err
}

func gatherCheck(ctx context.Context, c *cluster, namespace string) (*checkFacts, error) {
	f := &checkFacts{Now: time.Now(), Context: c.Context, Namespace: namespace, Secrets: map[string]*corev1.Secret{}}
	crd := &apiextensionsv1.CustomResourceDefinition{}
	ok, err := c.found(ctx, "", "kubernetesclusters."+adminv2.GroupName, crd)
	if err != nil {
		return nil, c.says("read the CRD of KubernetesCluster", err)
	}
	if ok {
		f.CRD = crd
	}
	var deployments appsv1.DeploymentList
	if err := c.List(ctx, &deployments, client.InNamespace(namespace), client.MatchingLabels{"app.kubernetes.io/part-of": "gloo-platform"}); err != nil {
		return nil, c.says("list Deployments", err)
	}
	f.Deployments = deployments.Items
	mutating, validating := &admissionv1.MutatingWebhookConfiguration{}, &admissionv1.ValidatingWebhookConfiguration{}
	if ok, err := c.found(ctx, "", serverName, mutating); err != nil {
		return nil, c.says("read the webhook configuration", err)
	} else if ok {
		f.Mutating = mutating
	}
	if ok, err := c.found(ctx, "", serverName, validating); err != nil {
		return nil, c.says("read the webhook configuration", err)
	} else if ok {
		f.Validating = validating
	}
	for _, name := range relaySecrets() {
		s := &corev1.Secret{}
		if ok, err := c.found(ctx, namespace, name, s); err != nil {
			return nil, c.says("read Secret "+name, err)
		} else if ok {
			f.Secrets[name] = s
		}
	}
	var list adminv2.KubernetesClusterList
	if err := c.List(ctx, &list, client.InNamespace(namespace)); err != nil && !meta.IsNoMatchError(err) {
		return nil, c.says("list KubernetesClusters", err)
	}
	f.Clusters = list.Items
	slices.SortFunc(f.Clusters, func(a, b adminv2.KubernetesCluster) int { return strings.Compare(a.Name, b.Name) })
	if f.CRD != nil && f.Mutating != nil {
		f.Probe = c.probeWebhook(ctx, namespace)
	}
	return f, nil
}

func checkCRDs(f *checkFacts) section {
	s := section{Name: "CRD version", Status: checkOK}
	if f.CRD == nil {
		s.add(checkError, "the kind KubernetesCluster is not known to context %q: meshctl install --kubecontext %s", f.Context, f.Context)
		return s
	}
	established := false
	for _, c := range f.CRD.Status.Conditions {
		established = established || c.Type == apiextensionsv1.Established && c.Status == apiextensionsv1.ConditionTrue
	}
	if !established {
		s.add(checkError, "CRD %s is not established", f.CRD.Name)
	}
	switch version := f.CRD.Annotations["crd.solo.io/version"]; version {
	case ambitversion.Version:
		s.add(checkOK, "%s", version)
	case "":
		s.add(checkWarning, "the CRDs have no version: they were not installed from the chart gloo-platform-crds")
	default:
		s.add(checkWarning, "the CRDs are %s, meshctl is %s: upgrade the older", version, ambitversion.Version)
	}
	return s
}

func checkDeployments(f *checkFacts) section {
	s := section{Name: "Deployments", Status: checkOK, Head: []string{"NAMESPACE", "NAME", "READY", "VERSION", "STATUS"}}
	server := false
	for _, d := range f.Deployments {
		want := int32(1)
		if d.Spec.Replicas != nil {
			want = *d.Spec.Replicas
		}
		version := ""
		for _, c := range d.Spec.Template.Spec.Containers {
			version = tagOf(c.Image)
		}
		status := "Healthy"
		switch {
		case want == 0:
			status = "Scaled to 0"
			s.worse(checkError)
		case d.Status.AvailableReplicas == 0:
			status = "Not ready"
			s.worse(checkError)
		case !rolledOut(&d):
			status = "Rolling out"
			s.worse(checkWarning)
		}
		server = server || d.Name == serverName
		s.Rows = append(s.Rows, []string{d.Namespace, d.Name, fmt.Sprintf("%d/%d", d.Status.AvailableReplicas, want), version, status})
	}
	if !server {
		s.add(checkError, "no Deployment %s in namespace %s: meshctl install --kubecontext %s", serverName, f.Namespace, f.Context)
	}
	if s.Status == checkError && server {
		s.add(checkError, "see: kubectl --context %s -n %s describe deployment,pod -l app.kubernetes.io/part-of=gloo-platform", f.Context, f.Namespace)
	}
	s.Data = s.Rows
	return s
}

func checkWebhook(f *checkFacts) section {
	s := section{Name: "Webhook", Status: checkOK}
	if f.Mutating == nil || f.Validating == nil {
		s.add(checkError, "webhook configurations %q are missing: changes to clusters are neither checked nor recorded; meshctl install mends it", serverName)
		return s
	}
	for _, w := range f.Mutating.Webhooks {
		s.webhook(w.Name, w.ClientConfig, w.FailurePolicy)
	}
	for _, w := range f.Validating.Webhooks {
		s.webhook(w.Name, w.ClientConfig, w.FailurePolicy)
	}
	switch {
	case f.Probe == nil || apierrors.IsAlreadyExists(f.Probe):
		s.add(checkOK, "answers (asked by a dry run)")
	case apierrors.IsForbidden(f.Probe) && !strings.Contains(f.Probe.Error(), "webhook"):
		s.add(checkOK, "not asked: you may not create KubernetesClusters")
	default:
		s.add(checkError, "does not answer, so registering and changing clusters is refused: %v", f.Probe)
	}
	return s
}

func (s *section) webhook(name string, c admissionv1.WebhookClientConfig, policy *admissionv1.FailurePolicyType) {
	if len(c.CABundle) == 0 {
		s.add(checkError, "%s has no caBundle: the management server sets it when it starts", name)
	}
	if policy == nil || *policy != admissionv1.Fail {
		s.add(checkWarning, "%s does not fail closed (failurePolicy): while the server is away, changes go unrecorded", name)
	}
}

func checkRelay(f *checkFacts) section {
	s := section{Name: "Relay certificates", Status: checkOK}
	problems, info := relayProblems(f.Secrets, f.Now)
	for _, p := range problems {
		s.add(severity(p, f.Secrets[p.Secret], f.Now), "%s", p.String())
	}
	if len(problems) > 0 {
		s.add(s.Status, "mend it: meshctl relay repair --mgmt-context %s", f.Context)
	}
	s.Lines = append(s.Lines, info...)
	return s
}

// relayProblems checks the five Secrets as one chain; info tells when things expire.
func relayProblems(secrets map[string]*corev1.Secret, now time.Time) (problems []family.Problem, info []string) {
	for _, name := range relaySecrets() {
		if secrets[name] == nil {
			problems = append(problems, family.Problem{Secret: name, Fatal: name != secretClient && name != secretToken, Message: "it does not exist", Fix: "the management server makes it when it starts; meshctl relay repair makes it now"})
		}
	}
	if len(problems) > 0 && (secrets[secretRoot] == nil || secrets[secretSigning] == nil || secrets[secretServer] == nil) {
		return problems, nil
	}
	fam, found := family.Parse(familySecrets(secrets), now)
	problems = append(problems, found...)
	if s := secrets[secretToken]; s != nil {
		problems = append(problems, family.CheckToken(s.Data["token"])...)
	}
	if fam == nil {
		return problems, nil
	}
	if s := secrets[secretClient]; s != nil {
		if certs := parseCertificates(s.Data["tls.crt"]); len(certs) > 0 {
			problems = append(problems, fam.CheckClient(s.Data["tls.crt"], s.Data["tls.key"], clusterOf(certs[0]), now)...)
		}
	}
	until := func(what string, at time.Time) string {
		return fmt.Sprintf("%s until %s (%s)", what, at.UTC().Format(time.DateOnly), short(at.Sub(now)))
	}
	info = append(info, until("root", fam.Root.Cert.NotAfter), until("signing CA", fam.Signing.Cert.NotAfter))
	if len(fam.Server.Chain) > 0 {
		info = append(info, until("server", fam.Server.Chain[0].NotAfter))
	}
	return problems, info
}

// severity: what makes the server or its agents refuse is an error; what only nears its end, or concerns one client, is a warning.
func severity(p family.Problem, secret *corev1.Secret, now time.Time) string {
	switch {
	case p.Fatal:
		return checkError
	case p.Secret == secretClient, p.Secret == secretToken:
		return checkWarning
	}
	if secret != nil {
		for _, c := range parseCertificates(secret.Data["tls.crt"]) {
			if now.Before(c.NotAfter) && c.NotAfter.Sub(now) < 30*24*time.Hour && now.After(c.NotBefore) {
				return checkWarning
			}
		}
	}
	return checkError
}

func familySecrets(secrets map[string]*corev1.Secret) family.Secrets {
	data := func(name string) map[string][]byte {
		if s := secrets[name]; s != nil {
			return s.Data
		}
		return nil
	}
	return family.Secrets{Root: data(secretRoot), Signing: data(secretSigning), Server: data(secretServer)}
}

// staleAfter is how old the written heartbeat of a connected cluster may be: the server writes it once a minute.
const staleAfter = 3 * time.Minute

func checkClusters(f *checkFacts) section {
	s := section{Name: "Connections of the clusters' agents", Status: checkOK, Head: []string{"CLUSTER", "REGISTERED", "STATUS", "AGENT-VERSION", "LAST HEARTBEAT"}}
	var rows []clusterRow
	for i := range f.Clusters {
		k := &f.Clusters[i]
		row := rowOf(k)
		rows = append(rows, row)
		s.Rows = append(s.Rows, []string{row.Cluster, "true", row.Status, none(row.AgentVersion), none(row.LastHeartbeat)})
		switch k.Status.Connection {
		case adminv2.ConnectionConnected:
			if hb := k.Status.LastHeartbeat; hb != nil && f.Now.Sub(hb.Time) > staleAfter {
				s.add(checkError, "%s: the status says Connected but is %s old: the management server does not write", k.Name, short(f.Now.Sub(hb.Time)))
			}
		case adminv2.ConnectionDisconnected:
			s.add(checkError, "%s: %s", k.Name, firstOf(conditionMessage(k, adminv2.ConditionConnected), "its agent is not connected"))
		default:
			s.add(checkWarning, "%s: %s", k.Name, firstOf(conditionMessage(k, adminv2.ConditionConnected), "its agent has never connected"))
		}
		if said := refusal(k); said != "" {
			s.add(checkError, "%s: %s", k.Name, said)
		}
		if k.Status.Common.State.Approval == adminv2.ApprovalInvalid || k.Status.Common.State.Approval == adminv2.ApprovalFailed {
			s.add(checkError, "%s: %s: %s", k.Name, k.Status.Common.State.Approval, k.Status.Common.State.Message)
		}
	}
	if len(f.Clusters) == 0 {
		s.add(checkWarning, "no clusters are registered. Register one: meshctl cluster register NAME --mgmt-context %s --remote-context CONTEXT", f.Context)
	}
	s.Data = rows
	return s
}

func conditionMessage(k *adminv2.KubernetesCluster, kind string) string {
	for _, c := range k.Status.Conditions {
		if c.Type == kind && c.Status != "True" {
			return c.Message
		}
	}
	return ""
}

func (a *app) printCheck(w io.Writer, r checkReport) {
	for _, s := range r.Sections {
		fmt.Fprintf(w, "%s %s\n", a.light(s.Status), s.Name)
		if len(s.Rows) > 0 {
			printTable(w, "   ", s.Head, s.Rows)
		}
		for _, line := range s.Lines {
			fmt.Fprintf(w, "   %s\n", line)
		}
	}
	fmt.Fprintf(w, "%s Licence\n   none needed\n", a.light(checkOK))
}

func (a *app) light(status string) string {
	if a.Plain {
		return fmt.Sprintf("[%s]", status)
	}
	return map[string]string{checkOK: "🟢", checkWarning: "🟡", checkError: "🔴"}[status]
}
