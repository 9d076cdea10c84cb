package cli

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"ambitmesh.dev/ambit/internal/pki"
)

// caSecret is the Secret that istiod mounts.
const caSecret = "cacerts"

const (
	maxCAFiles = 64      // of a directory: a Secret has eight at most
	maxCAFile  = 1 << 20 // bytes, the most that a Secret holds
)

// verifyFlags are those of pki verify.
type verifyFlags struct {
	file, against, namespace, output string
}

func (a *app) pkiVerifyCommand() *cobra.Command {
	var f verifyFlags
	cmd := &cobra.Command{
		Use:   "verify [DIR]",
		Short: "Check a cacerts as istiod loads it, and what istiod does not check",
		Long: `Checks the files of a cacerts: a directory, a Secret's manifest (-f), or the Secret of a cluster (--context). Every problem comes with what to do. 🔴 is what istiod
refuses to load; at a reload it does so with a line in its log only, and goes on with what it had. 🟡 is what istiod takes, and handshakes, a rotation or the end of a
certificate will not. Both layouts are understood, ca-cert.pem and tls.crt.

--against asks besides whether two clusters accept each other's workloads. It changes nothing and sends no key anywhere.

Exit codes: 0 no problem, 1 problems, 2 it could not be checked, or wrong usage.`,
		Example: `  meshctl pki verify ./prod-eu-west-3-cacerts
  meshctl pki verify ./tmp/cluster-1 --against ./tmp/cluster-2
  kubectl -n istio-system get secret cacerts -o yaml | meshctl pki verify -f -
  meshctl pki verify --context prod-eu-west-3
  meshctl pki verify ./tmp/cluster-1 -o json | jq -r '.problems[] | select(.fatal) | .message'`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usageError("want one directory, got %d; two clusters are compared with --against", len(args))
			}
			return nil
		},
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveFilterDirs
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			live := cmd.Flags().Changed("context") || cmd.Flags().Changed("kubecontext")
			return a.pkiVerify(cmd, firstOf(args...), live, &f)
		},
	}
	fl := cmd.Flags()
	fl.StringVarP(&f.file, "filename", "f", "", "file with the Secret's manifest, - for standard input")
	fl.StringVar(&f.against, "against", "", "directory of another cluster: do the two accept each other")
	fl.StringVar(&f.namespace, "istio-namespace", "istio-system", "namespace of istiod, for --context")
	formatFlag(cmd, &f.output, formatTable, formatJSON, formatYAML)
	_ = cmd.MarkFlagDirname("against")
	_ = cmd.MarkFlagFilename("filename", "yaml", "yml", "json")
	return cmd
}

// verifyReport is the document of pki verify.
type verifyReport struct {
	Source       string            `json:"source"`
	OK           bool              `json:"ok"`
	Loads        bool              `json:"loads"` // istiod takes it
	Against      string            `json:"against,omitempty"`
	Certificates []certificateInfo `json:"certificates"`
	Problems     []pki.Problem     `json:"problems"`
}

func (a *app) pkiVerify(cmd *cobra.Command, dir string, live bool, f *verifyFlags) error {
	format, err := parseFormat(f.output, formatTable, formatJSON, formatYAML)
	if err != nil {
		return err
	}
	source, files, err := a.cacertsOf(cmd, dir, live, f)
	if err != nil {
		return cannotCheck(err)
	}
	now := time.Now()
	r := verifyReport{Source: source, Against: f.against, Certificates: certificatesOf(files, now), Problems: pki.VerifyCACerts(files, now)}
	r.Loads = !slices.ContainsFunc(r.Problems, func(p pki.Problem) bool { return p.Fatal })
	if f.against != "" {
		other, err := readFolder(f.against)
		if err != nil {
			return cannotCheck(fmt.Errorf("--against: %w", err))
		}
		for _, p := range pki.VerifyCACerts(other, now) {
			p.File = filepath.Join(f.against, p.File)
			r.Problems = append(r.Problems, p)
		}
		r.Problems = append(r.Problems, pki.VerifyPair(files, other, source, f.against, now)...)
	}
	if r.OK = len(r.Problems) == 0; r.OK {
		r.Problems = []pki.Problem{} // a list for who reads JSON
	}
	if err := a.printVerified(format, &r); err != nil {
		return err
	}
	if !r.OK {
		return &exitError{ExitFailed, errSilent}
	}
	return nil
}

// cannotCheck ends with 2: 1 is an answer.
func cannotCheck(err error) error { return &exitError{ExitUsage, fmt.Errorf("can't check: %w", err)} }

// cacertsOf reads what is to be checked from the one place that was named.
func (a *app) cacertsOf(cmd *cobra.Command, dir string, live bool, f *verifyFlags) (source string, files map[string][]byte, err error) {
	named := 0
	for _, is := range []bool{dir != "", f.file != "", live} {
		if is {
			named++
		}
	}
	switch {
	case named != 1:
		return "", nil, fmt.Errorf("want one of DIR, -f FILE and --context CONTEXT, got %d", named)
	case dir != "":
		files, err = readFolder(dir)
		return dir, files, err
	case f.file != "":
		return readSecretFile(f.file, cmd.InOrStdin())
	}
	c, err := a.connect("", a.Context, "--context")
	if err != nil {
		return "", nil, err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), 30*time.Second)
	defer cancel()
	source = fmt.Sprintf("Secret %s/%s of context %q", f.namespace, caSecret, c.Context)
	var s corev1.Secret
	ok, err := c.found(ctx, f.namespace, caSecret, &s)
	switch {
	case err != nil:
		return "", nil, c.says("read Secret "+f.namespace+"/"+caSecret, err)
	case !ok:
		return "", nil, fmt.Errorf("there is no %s: its istiod signs with a root of its own, which no other cluster trusts", source)
	}
	return source, s.Data, nil
}

// readFolder reads the files of a directory, not those inside its own; a mounted Secret's ..data is one of those.
func readFolder(dir string) (map[string][]byte, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		info, err := os.Stat(path) // of what a link leads to
		switch {
		case err != nil:
			return nil, err
		case !info.Mode().IsRegular() || strings.HasPrefix(e.Name(), "."):
			continue
		case info.Size() > maxCAFile || len(files) == maxCAFiles:
			return nil, fmt.Errorf("%s: this is no cacerts directory: it has more than %d files, or one larger than 1 MiB", path, maxCAFiles)
		}
		if files[e.Name()], err = os.ReadFile(path); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// readSecretFile finds the Secret in a manifest: the one called cacerts, or the only one.
func readSecretFile(file string, stdin io.Reader) (source string, files map[string][]byte, err error) {
	docs, err := readDocuments([]string{file}, stdin)
	if err != nil {
		return "", nil, err
	}
	docs = slices.DeleteFunc(docs, func(d document) bool { return d.Kind.Kind != "Secret" })
	if named := slices.DeleteFunc(slices.Clone(docs), func(d document) bool { return d.Meta.Name != caSecret }); len(named) > 0 {
		docs = named
	}
	if len(docs) != 1 {
		return "", nil, fmt.Errorf("-f %s: want one Secret %s, found %d Secrets", file, caSecret, len(docs))
	}
	var s corev1.Secret
	if err := yaml.UnmarshalStrict(docs[0].JSON, &s); err != nil {
		return "", nil, fmt.Errorf("%s: %w", docs[0].Where, err)
	}
	files = map[string][]byte{}
	maps.Copy(files, s.Data)
	for name, text := range s.StringData { // wins, as in the API server
		files[name] = []byte(text)
	}
	return docs[0].String(), files, nil
}

// certificatesOf lists what can be read.
func certificatesOf(files map[string][]byte, now time.Time) []certificateInfo {
	out := []certificateInfo{}
	for _, name := range sortedKeys(files) {
		certs, err := pki.ParseCertificates(files[name])
		if err != nil {
			continue // said as a problem
		}
		for _, c := range certs {
			out = append(out, describeCertificate(name, c, now))
		}
	}
	return out
}

func (a *app) printVerified(f format, r *verifyReport) error {
	if f != formatTable {
		return printDocument(a.streams.Out, f, r)
	}
	switch {
	case r.OK && r.Against != "":
		fmt.Fprintf(a.streams.Out, "%s OK: istiod loads %s, no problem was found, and it and %s accept each other's workloads\n", a.light(checkOK), r.Source, r.Against)
	case r.OK:
		fmt.Fprintf(a.streams.Out, "%s OK: istiod loads %s, and no problem was found\n", a.light(checkOK), r.Source)
	case r.Loads:
		fmt.Fprintf(a.streams.Out, "%s istiod loads %s, but:\n", a.light(checkWarning), r.Source)
	default:
		fmt.Fprintf(a.streams.Out, "%s istiod refuses %s:\n", a.light(checkError), r.Source)
	}
	a.printProblems(r.Problems)
	if len(r.Certificates) > 0 {
		a.printCertificates(r.Certificates)
	}
	return nil
}

func (a *app) printProblems(problems []pki.Problem) {
	for _, p := range problems {
		light, file := a.light(checkWarning), ""
		if p.Fatal {
			light = a.light(checkError)
		}
		if p.File != "" {
			file = p.File + ": "
		}
		fmt.Fprintf(a.streams.Out, "%s %s%s\n", light, file, p.Message)
		if p.Fix != "" {
			fmt.Fprintf(a.streams.Out, "   fix: %s\n", p.Fix)
		}
	}
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
