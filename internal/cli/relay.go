package cli

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/relay/family"
)

func (a *app) relayCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "relay", Short: "Check, rotate and repair the relay's certificates",
		Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var mgmtContext, output string
	var force, away bool
	verb := func(use, short, long, example string, run func(context.Context, *cluster, format) error) *cobra.Command {
		sub := &cobra.Command{
			Use: use, Short: short, Long: long + "\n\n" + exitHelp, Example: example, Args: noArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				f, err := parseFormat(output, formatTable, formatJSON, formatYAML)
				if err != nil {
					return err
				}
				mgmt, err := a.connect("", firstOf(mgmtContext, a.Context), "--mgmt-context")
				if err != nil {
					return err
				}
				ctx, cancel := context.WithTimeout(cmd.Context(), 30*time.Second)
				defer cancel()
				return run(ctx, mgmt, f)
			},
		}
		a.mgmtContextFlag(sub, &mgmtContext)
		formatFlag(sub, &output, formatTable, formatJSON, formatYAML)
		cmd.AddCommand(sub)
		return sub
	}
	verb("check", "Check the relay's five Secrets as one chain", "Changes nothing; exit code 1 when the server can't serve with them, or agents would refuse it.",
		"  meshctl relay check --mgmt-context mgmt", a.relayCheck)
	rotate := verb("rotate", "Make the successor root the current one", `The successor is in every agent's trust bundle already, so no agent falls out. The server takes the new certificates at once, without a
restart. A new successor is made, and handed to the agents in their sessions. An agent that is away for two rotations knows neither root any more and has to be
registered again; so this refuses while a cluster is disconnected, unless told otherwise.`,
		"  meshctl relay rotate --mgmt-context mgmt", func(ctx context.Context, c *cluster, f format) error { return a.relayRotate(ctx, c, f, force, away) })
	repair := verb("repair", "Issue anew what does not fit the root", `Issues anew, from the root, whichever of the other Secrets is missing, expired or of another root. What fits is left alone. Agents keep their
identities where the old signing certificate can still be read.`,
		"  meshctl relay repair --mgmt-context mgmt", func(ctx context.Context, c *cluster, f format) error { return a.relayRepair(ctx, c, f, force) })
	for _, sub := range []*cobra.Command{rotate, repair} {
		sub.Flags().BoolVar(&force, "force", false, "also replace Secrets that were not made by the management server")
	}
	rotate.Flags().BoolVar(&away, "ignore-disconnected", false, "rotate though clusters are disconnected")
	return cmd
}

// relayReport is the document of the relay verbs.
type relayReport struct {
	Status   string           `json:"status"`
	Problems []family.Problem `json:"problems,omitempty"`
	Info     []string         `json:"info,omitempty"`
	Done     []string         `json:"done,omitempty"`
}

func (a *app) readFamily(ctx context.Context, c *cluster) (map[string]*corev1.Secret, error) {
	out := map[string]*corev1.Secret{}
	for _, name := range relaySecrets() {
		s := &corev1.Secret{}
		ok, err := c.found(ctx, a.Namespace, name, s)
		if err != nil {
			return nil, c.says("read Secret "+name, err)
		}
		if ok {
			out[name] = s
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("context %q has none of the relay's Secrets in namespace %s: no management server has run there yet (meshctl install)", c.Context, a.Namespace)
	}
	return out, nil
}

func (a *app) relayCheck(ctx context.Context, c *cluster, f format) error {
	secrets, err := a.readFamily(ctx, c)
	if err != nil {
		return err
	}
	report := relayReport{Status: checkOK}
	report.Problems, report.Info = relayProblems(secrets, time.Now())
	s := section{Status: checkOK}
	for _, p := range report.Problems {
		s.worse(severity(p, secrets[p.Secret], time.Now()))
	}
	report.Status = s.Status
	if err := a.printRelay(f, report); err != nil {
		return err
	}
	if report.Status == checkError {
		return &exitError{ExitFailed, errSilent}
	}
	return nil
}

func (a *app) printRelay(f format, r relayReport) error {
	if f != formatTable {
		return printDocument(a.streams.Out, f, r)
	}
	w := a.streams.Out
	for _, line := range r.Done {
		fmt.Fprintf(w, "%s %s\n", a.light(checkOK), line)
	}
	for _, p := range r.Problems {
		fmt.Fprintf(w, "%s %s\n", a.light(r.Status), p.String())
	}
	if len(r.Problems) == 0 {
		fmt.Fprintf(w, "%s the relay's five Secrets form one chain\n", a.light(checkOK))
	} else {
		fmt.Fprintln(w, "   mend it: meshctl relay repair")
	}
	for _, line := range r.Info {
		fmt.Fprintf(w, "   %s\n", line)
	}
	return nil
}

// issueOptions keeps the names that the server's certificate has.
func issueOptions(leaf *x509.Certificate, namespace string) family.Options {
	if leaf == nil {
		return family.Options{ServerNames: defaultServerNames(namespace)}
	}
	names := append([]string(nil), leaf.DNSNames...)
	for _, ip := range leaf.IPAddresses {
		names = append(names, ip.String())
	}
	return family.Options{ServerNames: names}
}

func defaultServerNames(namespace string) []string {
	service := serverName + "." + namespace
	return []string{"*." + namespace, service, service + ".svc", service + ".svc.cluster.local", "localhost"}
}

// missingRotation names the clusters whose agents would not be there to learn of the next successor. Pure.
func missingRotation(clusters []adminv2.KubernetesCluster) []string {
	var away []string
	for i := range clusters {
		if clusters[i].Status.Connection == adminv2.ConnectionDisconnected {
			away = append(away, clusters[i].Name)
		}
	}
	return away
}

func (a *app) relayRotate(ctx context.Context, c *cluster, f format, force, ignoreAway bool) error {
	clusters, err := c.clusters(ctx, a.Namespace)
	if err != nil {
		return err
	}
	if away := missingRotation(clusters); len(away) > 0 && !ignoreAway {
		return fmt.Errorf("disconnected: %s. An agent away for two rotations must be registered again: bring them back first, deregister them, or repeat with --ignore-disconnected", strings.Join(away, ", "))
	}
	secrets, err := a.readFamily(ctx, c)
	if err != nil {
		return err
	}
	now := time.Now()
	fam, problems := family.Parse(familySecrets(secrets), now)
	if fam == nil {
		return fmt.Errorf("the relay's certificates are out of step; rotating would cut agents off. First: meshctl relay repair --mgmt-context %s\n%s", c.Context, joinProblems(problems))
	}
	var leaf *x509.Certificate
	if len(fam.Server.Chain) > 0 {
		leaf = fam.Server.Chain[0]
	}
	next, err := fam.Rotate(now, issueOptions(leaf, a.Namespace))
	if err != nil {
		return fmt.Errorf("rotate the relay's root: %w", err)
	}
	if err := a.writeFamily(ctx, c, secrets, next, force); err != nil {
		return err
	}
	done := []string{
		fmt.Sprintf("the successor is the root now (SHA-256 %.16s...); agents had it already", mesh.FingerprintOf(next.Root.Cert.Raw)),
		"the signing CA and the server's certificate are issued by it; the old root and signing CA are still accepted",
		"a new successor is made, and handed to the agents",
	}
	client, err := a.reissueClient(ctx, c, secrets[secretClient], next, now)
	if err != nil {
		return err
	}
	report := relayReport{Status: checkOK, Done: append(done, client...)}
	if secrets, err = a.readFamily(ctx, c); err != nil {
		return err
	}
	report.Problems, report.Info = relayProblems(secrets, now)
	if len(report.Problems) > 0 {
		report.Status = checkWarning
	}
	return a.printRelay(f, report)
}

func (a *app) relayRepair(ctx context.Context, c *cluster, f format, force bool) error {
	secrets, err := a.readFamily(ctx, c)
	if err != nil {
		return err
	}
	now := time.Now()
	var leaf *x509.Certificate
	if s := secrets[secretServer]; s != nil {
		if certs := parseCertificates(s.Data["tls.crt"]); len(certs) > 0 {
			leaf = certs[0]
		}
	}
	fam, done, err := family.Repair(familySecrets(secrets), now, issueOptions(leaf, a.Namespace))
	if err != nil {
		return fmt.Errorf("the relay's root itself can't be used, so nothing can be issued from it: %w\nRestore Secret %s/%s from a backup; without one, delete all five Secrets, restart %s and register the clusters again",
			err, a.Namespace, secretRoot, serverName)
	}
	if len(done) > 0 {
		if err := a.writeFamily(ctx, c, secrets, fam, force); err != nil {
			return err
		}
	}
	client, err := a.reissueClient(ctx, c, secrets[secretClient], fam, now)
	if err != nil {
		return err
	}
	done = append(done, client...)
	if s := secrets[secretToken]; s == nil || len(family.CheckToken(s.Data["token"])) > 0 {
		secret := &corev1.Secret{ObjectMeta: madeByServer(a.Namespace, secretToken), Type: corev1.SecretTypeOpaque, Data: map[string][]byte{"token": []byte(rand.Text() + rand.Text())}}
		if err := c.replace(ctx, secret); err != nil {
			return err
		}
		done = append(done, secretToken+": made anew")
	}
	if len(done) == 0 {
		done = []string{"nothing to repair"}
	}
	report := relayReport{Status: checkOK, Done: done}
	if secrets, err = a.readFamily(ctx, c); err != nil {
		return err
	}
	report.Problems, report.Info = relayProblems(secrets, now)
	if len(report.Problems) > 0 {
		report.Status = checkWarning
	}
	return a.printRelay(f, report)
}

// clientLifetime is that of the management cluster's own client certificate; its agent renews it.
const clientLifetime = 90 * 24 * time.Hour

// reissueClient renews the management cluster's own client certificate when it no longer fits.
func (a *app) reissueClient(ctx context.Context, c *cluster, old *corev1.Secret, fam *family.Family, now time.Time) ([]string, error) {
	name := mesh.ClusterName("")
	if old != nil {
		certs := parseCertificates(old.Data["tls.crt"])
		if len(certs) > 0 {
			name = clusterOf(certs[0])
		}
		if name != "" && len(fam.CheckClient(old.Data["tls.crt"], old.Data["tls.key"], name, now)) == 0 {
			return nil, nil
		}
	}
	if name == "" {
		return []string{secretClient + ": left to the management server, which knows its cluster's name; it makes it within a minute"}, nil
	}
	chain, key, err := fam.NewClient(name, now, clientLifetime)
	if err != nil {
		return nil, fmt.Errorf("issue the client certificate of %s: %w", name, err)
	}
	fresh := old.DeepCopy()
	fresh.Data = map[string][]byte{"tls.crt": chain, "tls.key": key, "ca.crt": fresh.Data["ca.crt"]}
	if err := c.Update(ctx, fresh); err != nil {
		return nil, c.says("write Secret "+secretClient, err)
	}
	return []string{fmt.Sprintf("%s: issued anew for %s", secretClient, name)}, nil
}

// writeFamily writes the three Secrets, root first, so that a reader in between sees a bundle that covers the rest. Nobody else may have changed them meanwhile.
func (a *app) writeFamily(ctx context.Context, c *cluster, old map[string]*corev1.Secret, fam *family.Family, force bool) error {
	data, err := fam.Secrets()
	if err != nil {
		return fmt.Errorf("encode the relay's certificates: %w", err)
	}
	type part struct {
		name string
		data map[string][]byte
	}
	var parts []part
	for _, p := range []part{{secretRoot, data.Root}, {secretSigning, data.Signing}, {secretServer, data.Server}} {
		s := old[p.name]
		if s != nil && maps.EqualFunc(s.Data, p.data, bytes.Equal) {
			continue
		}
		if s != nil && s.Labels[labelManagedBy] != serverName && !force {
			return fmt.Errorf("secret %s/%s was not made by the management server (no label %s=%s), so somebody supplied it and it may come back: change it where it comes from, or use --force; nothing was changed",
				a.Namespace, p.name, labelManagedBy, serverName)
		}
		parts = append(parts, p)
	}
	for _, part := range parts {
		var err error
		if s := old[part.name]; s != nil {
			fresh := s.DeepCopy()
			fresh.Data = part.data
			err = c.Update(ctx, fresh)
		} else {
			err = c.Create(ctx, &corev1.Secret{ObjectMeta: madeByServer(a.Namespace, part.name), Type: corev1.SecretTypeOpaque, Data: part.data})
		}
		if apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("the management server changed Secret %s at this moment; run the command again", part.name)
		}
		if err != nil {
			return c.says("write Secret "+part.name, err)
		}
	}
	return nil
}

// labelManagedBy marks Secrets that the management server made, and may write.
const labelManagedBy = "app.kubernetes.io/managed-by"

func madeByServer(namespace, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: name, Namespace: namespace, Labels: map[string]string{labelManagedBy: serverName}}
}

// clusterOf is the cluster a client certificate names.
func clusterOf(cert *x509.Certificate) mesh.ClusterName {
	if len(cert.DNSNames) > 0 {
		return mesh.ClusterName(firstOf(cert.Subject.CommonName, cert.DNSNames[0]))
	}
	return mesh.ClusterName(cert.Subject.CommonName)
}

func joinProblems(problems []family.Problem) string {
	var errs []error
	for _, p := range problems {
		errs = append(errs, errors.New("    "+p.String()))
	}
	if len(errs) == 0 {
		return ""
	}
	return errors.Join(errs...).Error()
}
