package cli

import (
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"ambitmesh.dev/ambit/internal/pki"
)

// caFlags are what both gen verbs take.
type caFlags struct {
	out, org, commonName, ttl, key, output string
	force                                  bool
}

func (f *caFlags) add(cmd *cobra.Command, ttl, cn string, key pki.KeyAlgorithm) {
	fl := cmd.Flags()
	fl.StringVar(&f.out, "out", "", "directory to write")
	fl.StringVar(&f.org, "org", "Ambit", "organization (O) of the name")
	fl.StringVar(&f.commonName, "common-name", cn, "common name (CN); a random part is added, because no two CAs of a mesh may share a name")
	fl.StringVar(&f.ttl, "ttl", ttl, "lifetime: 365d, 10y, 48h")
	fl.BoolVar(&f.force, "force", false, "replace files that are there")
	keyFlag(cmd, &f.key, key)
	formatFlag(cmd, &f.output, formatTable, formatJSON, formatYAML)
	_ = cmd.MarkFlagDirname("out")
}

// name makes the name of a CA. RFC 5280 appendix A allows 64 characters.
func (f *caFlags) name(cn string) (pkix.Name, error) {
	n := pkix.Name{CommonName: strings.TrimSpace(cn) + " " + unique()}
	if f.org != "" {
		n.Organization = []string{f.org}
	}
	for what, s := range map[string]string{"--common-name": n.CommonName, "--org": f.org} {
		if len(s) > 64 {
			return n, usageError("%s: %q is longer than the 64 characters that a name may have", what, s)
		}
	}
	return n, nil
}

func (a *app) genRootCommand() *cobra.Command {
	var f caFlags
	cmd := &cobra.Command{
		Use:   "gen-root --out DIR",
		Short: "Make a root certificate and its key",
		Long: `Makes a root CA: root-cert.pem, which every cluster gets, and root-key.pem, which none gets: keep it offline. The name is another one each time, so that
two generations can be told apart during a rotation.

` + pkiExitHelp,
		Example: `  meshctl pki gen-root --out ~/safe/root-2026
  meshctl pki gen-root --out ~/safe/root-2026 --org "Example Bank" --common-name "Mesh Root" --ttl 15y --key ECDSA-P384`,
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error { return a.genRoot(&f, time.Now()) },
	}
	f.add(cmd, "10y", "Root CA", pki.RSA4096)
	return cmd
}

// generated is the document of the gen verbs.
type generated struct {
	Directory    string            `json:"directory,omitempty"`
	Cluster      string            `json:"cluster,omitempty"`
	Files        []string          `json:"files,omitempty"`
	Certificates []certificateInfo `json:"certificates"`
	Problems     []pki.Problem     `json:"problems,omitempty"`
	files        map[string][]byte
}

func (a *app) genRoot(f *caFlags, now time.Time) error {
	format, err := parseFormat(f.output, formatTable, formatJSON, formatYAML)
	if err != nil {
		return err
	}
	if f.out == "" {
		return usageError("--out DIR is needed: where to write root-cert.pem and %s", rootKeyFile)
	}
	ttl, err := lifetime(f.ttl)
	if err != nil {
		return err
	}
	subject, err := f.name(f.commonName)
	if err != nil {
		return err
	}
	key, err := newPKIKey(f.key)
	if err != nil {
		return err
	}
	root, err := pki.NewRoot(key, pki.RootOptions{Subject: subject, TTL: ttl, Now: now})
	if err != nil {
		return err
	}
	keyPEM, err := pki.EncodeKey(key)
	if err != nil {
		return err
	}
	files := map[string][]byte{pki.FileRootCert: pki.EncodeCertificates(root), rootKeyFile: keyPEM}
	if err := writeFolders([]folder{{f.out, files}}, f.force); err != nil {
		return err
	}
	g := generated{Directory: f.out, Files: sortedKeys(files), Certificates: []certificateInfo{describeCertificate(pki.FileRootCert, root, now)}}
	if format != formatTable {
		return printDocument(a.streams.Out, format, g)
	}
	fmt.Fprintf(a.streams.Out, "%s wrote %s to %s\n", a.light(checkOK), strings.Join(g.Files, ", "), f.out)
	a.printCertificates(g.Certificates)
	fmt.Fprintf(a.streams.Out, "Whoever has %s can be any workload of the mesh: keep it offline, and never put it into a cluster.\nNext: meshctl pki gen-intermediate CLUSTER --root %s --out CLUSTER-cacerts\n", rootKeyFile, f.out)
	return nil
}

// intermediateFlags are those of gen-intermediate.
type intermediateFlags struct {
	caFlags
	root, rootCert, rootKey string
	trust                   []string
	trustDomain, namespace  string
	secret                  bool
}

func (a *app) genIntermediateCommand() *cobra.Command {
	var f intermediateFlags
	cmd := &cobra.Command{
		Use:   "gen-intermediate CLUSTER... --root DIR --out DIR",
		Short: "Make the intermediate that a cluster's istiod signs with",
		Long: `Makes a key and an intermediate CA for each cluster, signed by a root, and writes ca-cert.pem, ca-key.pem, cert-chain.pem and root-cert.pem as istiod reads
them. For one cluster they go into --out itself, for several into --out/CLUSTER. An intermediate does not outlive its root. What is written has passed the checks of
'meshctl pki verify'.

--trust names roots for root-cert.pem: what the cluster trusts beside the root that signs for it. During a rotation of the root that is the bundle of both, as it is in the
clusters already: its order is kept. The order of the steps matters, and is in docs/ops/pki.md.

` + pkiExitHelp,
		Example: `  meshctl pki gen-intermediate prod-eu-west-3 --root ~/safe/root-2026 --out ./prod-eu-west-3-cacerts
  kubectl --context prod-eu-west-3 -n istio-system create secret generic cacerts --from-file=./prod-eu-west-3-cacerts/

  meshctl pki gen-intermediate prod-eu-west-3 --root ~/safe/root-2026 --secret | kubectl --context prod-eu-west-3 apply -f -
  meshctl pki gen-intermediate cluster-1 cluster-2 cluster-3 --root ~/safe/root-2026 --out ./tmp --ttl 730d
  meshctl pki gen-intermediate cluster-1 --root ~/safe/root-2026 --trust ~/safe/both-roots.pem --out ./tmp/cluster-1`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError("which cluster? usage: %s", cmd.UseLine())
			}
			return nil
		},
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(_ *cobra.Command, args []string) error { return a.genIntermediate(args, &f, time.Now()) },
	}
	f.add(cmd, "365d", "", pki.ECDSAP256)
	fl := cmd.Flags()
	fl.Lookup("common-name").Usage = "common name (CN); a random part is added, because no two CAs of a mesh may share a name (default: \"CLUSTER Intermediate CA\")"
	fl.StringVar(&f.root, "root", "", "directory of the root, as gen-root writes it")
	fl.StringVar(&f.rootCert, "root-ca-cert", "", "file of the root's certificate, instead of --root")
	fl.StringVar(&f.rootKey, "root-ca-key", "", "file of the root's key, instead of --root")
	fl.StringArrayVar(&f.trust, "trust", nil, "file of further roots for root-cert.pem; may be repeated")
	fl.StringVar(&f.trustDomain, "trust-domain", "cluster.local", "trust domain, for the SAN spiffe://TRUST-DOMAIN/ns/istio-system/sa/istiod")
	fl.StringVar(&f.namespace, "istio-namespace", "istio-system", "namespace of istiod, for --secret and the SAN")
	fl.BoolVar(&f.secret, "secret", false, "print the Secret cacerts for kubectl apply (it holds the key), of one cluster; without --out no file is written")
	_ = cmd.MarkFlagDirname("root")
	_ = cmd.MarkFlagFilename("trust", "pem", "crt")
	return cmd
}

// check looks for what can be seen to be wrong before a key is made.
func (f *intermediateFlags) check(clusters []string) error {
	for i, c := range clusters {
		if problems := validation.IsDNS1123Label(c); len(problems) > 0 {
			return usageError("cluster %q: %s", c, strings.Join(problems, "; "))
		}
		if slices.Contains(clusters[:i], c) {
			return usageError("cluster %q is named twice", c)
		}
	}
	switch {
	case f.root == "" && (f.rootCert == "" || f.rootKey == ""):
		return usageError("--root DIR is needed (or --root-ca-cert and --root-ca-key): the root that signs; meshctl pki gen-root makes one")
	case f.root != "" && f.rootCert+f.rootKey != "":
		return usageError("--root, and --root-ca-cert with --root-ca-key: want one of them")
	case f.out == "" && !f.secret:
		return usageError("--out DIR (or --secret) is needed: where to put %s, %s, %s and %s", pki.FileCACert, pki.FileCAKey, pki.FileCertChain, pki.FileRootCert)
	case f.secret && len(clusters) > 1:
		return usageError("--secret with %d clusters: each has its own Secret; run it once for each", len(clusters))
	case f.secret && f.output != "":
		return usageError("--secret and -o: want one of them")
	case len(validation.IsDNS1123Subdomain(f.trustDomain)) > 0:
		return usageError("--trust-domain %q: want a name like cluster.local", f.trustDomain)
	}
	if f.root != "" {
		f.rootCert, f.rootKey = filepath.Join(f.root, pki.FileRootCert), filepath.Join(f.root, rootKeyFile)
	}
	return nil
}

// signer reads the root that signs, and the roots that go into root-cert.pem: those of --trust in their order, so that a bundle that is in force already stays as it is to the
// byte, which is what istiod wants of a new intermediate; the root that signs comes first if it is not among them.
func (f *intermediateFlags) signer() (root *x509.Certificate, key crypto.Signer, roots []*x509.Certificate, err error) {
	certs, err := readCertificates("--root", f.rootCert)
	if err != nil {
		return nil, nil, nil, err
	}
	text, err := os.ReadFile(f.rootKey)
	if err != nil {
		return nil, nil, nil, usageError("--root: %w", err)
	}
	if key, err = pki.ParseKey(text); err != nil {
		return nil, nil, nil, usageError("%s: %w", f.rootKey, err)
	}
	for _, c := range certs {
		if k, ok := c.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); ok && k.Equal(key.Public()) {
			root = c
		}
	}
	if root == nil {
		return nil, nil, nil, usageError("%s is not the key of %s (%s)", f.rootKey, f.rootCert, certs[0].Subject)
	}
	for _, file := range f.trust {
		more, err := readCertificates("--trust", file)
		if err != nil {
			return nil, nil, nil, err
		}
		for _, c := range more {
			if !slices.ContainsFunc(roots, c.Equal) {
				roots = append(roots, c)
			}
		}
	}
	if !slices.ContainsFunc(roots, root.Equal) {
		roots = slices.Insert(roots, 0, root)
	}
	return root, key, roots, nil
}

func readCertificates(flag, file string) ([]*x509.Certificate, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, usageError("%s: %w", flag, err)
	}
	certs, err := pki.ParseCertificates(text)
	if err != nil {
		return nil, usageError("%s: %w", file, err)
	}
	return certs, nil
}

func (a *app) genIntermediate(clusters []string, f *intermediateFlags, now time.Time) error {
	format, err := parseFormat(f.output, formatTable, formatJSON, formatYAML)
	if err == nil {
		err = f.check(clusters)
	}
	if err != nil {
		return err
	}
	ttl, err := lifetime(f.ttl)
	if err != nil {
		return err
	}
	root, rootKey, roots, err := f.signer()
	if err != nil {
		return err
	}
	var made []generated
	var folders []folder
	for _, c := range clusters {
		g, err := f.intermediate(c, ttl, root, rootKey, roots, now)
		if err != nil {
			return err
		}
		if f.out != "" {
			g.Directory = f.out
			if len(clusters) > 1 {
				g.Directory = filepath.Join(f.out, c)
			}
			folders = append(folders, folder{g.Directory, g.files})
		}
		made = append(made, g)
	}
	if err := writeFolders(folders, f.force); err != nil {
		return err
	}
	return a.printIntermediates(made, f, format)
}

// intermediate makes the files of one cluster, and checks them as istiod will.
func (f *intermediateFlags) intermediate(cluster string, ttl time.Duration, root *x509.Certificate, rootKey crypto.Signer, roots []*x509.Certificate, now time.Time) (generated, error) {
	g := generated{Cluster: cluster}
	subject, err := f.name(firstOf(f.commonName, cluster+" Intermediate CA"))
	if err != nil {
		return g, err
	}
	key, err := newPKIKey(f.key)
	if err != nil {
		return g, err
	}
	uris := []*url.URL{{Scheme: "spiffe", Host: f.trustDomain, Path: "/ns/" + f.namespace + "/sa/istiod"}}
	der, err := pki.NewCSR(key, subject, uris)
	if err != nil {
		return g, err
	}
	csr, err := pki.ParseCSR(der)
	if err != nil {
		return g, err
	}
	cert, err := pki.SignIntermediate(csr, root, rootKey, pki.IntermediateOptions{Subject: subject, URIs: uris, TTL: ttl, Now: now})
	if err != nil {
		return g, fmt.Errorf("cluster %q: %w", cluster, err)
	}
	keyPEM, err := pki.EncodeKey(key)
	if err != nil {
		return g, err
	}
	certPEM := pki.EncodeCertificates(cert)
	g.files = map[string][]byte{pki.FileCACert: certPEM, pki.FileCAKey: keyPEM, pki.FileCertChain: certPEM, pki.FileRootCert: pki.EncodeCertificates(roots...)}
	g.Files, g.Problems = sortedKeys(g.files), pki.VerifyCACerts(g.files, now)
	for _, p := range g.Problems {
		if p.Fatal {
			return g, fmt.Errorf("cluster %q: nothing was written, because istiod would refuse it: %s: %s (%s)", cluster, p.File, p.Message, p.Fix)
		}
	}
	g.Certificates = []certificateInfo{describeCertificate(pki.FileCACert, cert, now)}
	for _, r := range roots {
		g.Certificates = append(g.Certificates, describeCertificate(pki.FileRootCert, r, now))
	}
	return g, nil
}

func (a *app) printIntermediates(made []generated, f *intermediateFlags, format format) error {
	if format != formatTable {
		return printDocument(a.streams.Out, format, made)
	}
	if f.secret {
		for _, p := range made[0].Problems {
			fmt.Fprintf(a.streams.Err, "Warning: %s: %s; %s\n", p.File, p.Message, p.Fix)
		}
		return printDocument(a.streams.Out, formatYAML, &corev1.Secret{
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}, ObjectMeta: metav1.ObjectMeta{Name: caSecret, Namespace: f.namespace},
			Type: corev1.SecretTypeOpaque, Data: made[0].files,
		})
	}
	for _, g := range made {
		fmt.Fprintf(a.streams.Out, "%s cluster %s: wrote %s to %s\n", a.light(checkOK), g.Cluster, strings.Join(g.Files, ", "), g.Directory)
		a.printCertificates(g.Certificates)
		a.printProblems(g.Problems)
	}
	fmt.Fprintf(a.streams.Out, "Next: kubectl --context CONTEXT -n %s create secret generic %s --from-file=%s\n", f.namespace, caSecret, made[0].Directory)
	return nil
}
