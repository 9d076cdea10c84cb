package cli

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ambitmesh.dev/ambit/internal/pki"
)

// What gen-root writes, and gen-intermediate reads.
const rootKeyFile = "root-key.pem"

const day = 24 * time.Hour

const pkiExitHelp = `Exit codes: 0 done, 1 it was tried and failed, 2 wrong usage; nothing was written.`

func (a *app) pkiCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "pki", Short: "Make and check the certificates of a mesh by hand, without a management plane",
		Long: `Makes a root, an intermediate for each cluster, and checks what istiod is to load (its cacerts). This is the way for those who run no management
server; with one, a RootTrustPolicy does all of it, and no private key leaves the cluster it was made in.

The files of these verbs are private keys: run them on a machine that you trust with the mesh, and keep root-key.pem away from clusters.`,
		Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.genRootCommand(), a.genIntermediateCommand(), a.pkiVerifyCommand())
	return cmd
}

// certificateInfo is a certificate as these verbs report it.
type certificateInfo struct {
	File        string           `json:"file"`
	Subject     string           `json:"subject"`
	Issuer      string           `json:"issuer"`
	Serial      string           `json:"serial"`      // hexadecimal
	Fingerprint string           `json:"fingerprint"` // SHA-256, hexadecimal
	Key         pki.KeyAlgorithm `json:"key"`
	URIs        []string         `json:"uris,omitempty"`
	NotBefore   string           `json:"notBefore"`
	NotAfter    string           `json:"notAfter"`
	left        time.Duration
}

func describeCertificate(file string, c *x509.Certificate, now time.Time) certificateInfo {
	sum := sha256.Sum256(c.Raw)
	i := certificateInfo{
		File: file, Subject: c.Subject.String(), Issuer: c.Issuer.String(), Serial: c.SerialNumber.Text(16), Fingerprint: hex.EncodeToString(sum[:]),
		Key: pki.AlgorithmOf(c.PublicKey), NotBefore: c.NotBefore.UTC().Format(time.RFC3339), NotAfter: c.NotAfter.UTC().Format(time.RFC3339), left: c.NotAfter.Sub(now),
	}
	for _, u := range c.URIs {
		i.URIs = append(i.URIs, u.String())
	}
	return i
}

func (a *app) printCertificates(infos []certificateInfo) {
	var rows [][]string
	for _, i := range infos {
		ends := short(i.left) + " left"
		if i.left <= 0 {
			ends = "ended"
		}
		rows = append(rows, []string{i.File, i.Subject, string(i.Key), i.NotAfter, ends, i.Fingerprint[:16]})
	}
	printTable(a.streams.Out, "  ", []string{"FILE", "NAME", "KEY", "NOT-AFTER", "", "SHA-256"}, rows)
}

// keyFlag adds --key.
func keyFlag(cmd *cobra.Command, value *string, def pki.KeyAlgorithm) {
	names := []string{string(pki.RSA2048), string(pki.RSA3072), string(pki.RSA4096), string(pki.ECDSAP256), string(pki.ECDSAP384)}
	cmd.Flags().StringVar(value, "key", string(def), "key algorithm: "+strings.Join(names, ", "))
	_ = cmd.RegisterFlagCompletionFunc("key", cobra.FixedCompletions(names, cobra.ShellCompDirectiveNoFileComp))
}

func newPKIKey(algorithm string) (crypto.Signer, error) {
	key, err := pki.GenerateKey(pki.KeyAlgorithm(algorithm))
	if err != nil {
		return nil, usageError("--key: %w", err)
	}
	return key, nil
}

// lifetime is a --ttl: as Go writes durations, or in days (365d) or years of 365 days (10y).
func lifetime(text string) (time.Duration, error) {
	var d time.Duration
	var err error
	unit := map[string]time.Duration{"d": day, "y": 365 * day}
	if last := text[max(0, len(text)-1):]; unit[last] != 0 {
		var n int
		n, err = strconv.Atoi(strings.TrimSuffix(text, last))
		d = time.Duration(min(max(n, 0), 100*365)) * unit[last]
		if n > 100*365 {
			d = 0 // nobody means that
		}
	} else {
		d, err = time.ParseDuration(text)
	}
	if err != nil || d < time.Hour || d > 100*365*day {
		return 0, usageError("--ttl %q: want 365d, 10y or 48h, at least 1h and at most 100y", text)
	}
	return d, nil
}

// unique is what makes the name of a CA another one for each generation: no two may share a name (OpenSSL and Envoy look issuers up by it).
func unique() string {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails (Go 1.24)
	return hex.EncodeToString(b[:])
}

// folder is a directory to be written: file names and contents.
type folder struct {
	Path  string
	Files map[string][]byte
}

// existing lists those of a folder's files that are there already.
func (f folder) existing() ([]string, error) {
	var out []string
	for _, name := range sortedKeys(f.Files) {
		_, err := os.Lstat(filepath.Join(f.Path, name))
		switch {
		case err == nil:
			out = append(out, name)
		case !errors.Is(err, fs.ErrNotExist):
			return nil, err
		}
	}
	return out, nil
}

// writeFolders writes all or, if something fails, leaves what was there. Nothing is overwritten without force.
func writeFolders(folders []folder, force bool) error {
	if !force {
		for _, f := range folders {
			there, err := f.existing()
			if err != nil {
				return usageError("--out: %w", err)
			}
			if len(there) > 0 {
				return usageError("%s has %s already: give another --out, or --force to replace (a key that is replaced is gone)", f.Path, strings.Join(there, ", "))
			}
		}
	}
	for _, f := range folders {
		if err := f.write(force); err != nil {
			return fmt.Errorf("write %s: %w", f.Path, err)
		}
	}
	return nil
}

// write stages every file, then puts them in place: a new directory by one rename, into one that is there file by file, taking back what was done when one fails.
func (f folder) write(force bool) error {
	parent := filepath.Dir(filepath.Clean(f.Path))
	_, err := os.Stat(f.Path)
	isNew := errors.Is(err, fs.ErrNotExist)
	if !isNew {
		parent = f.Path // the same file system, even if it is a mount
	}
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return err
	}
	stage, err := os.MkdirTemp(parent, ".meshctl-pki-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(stage)
	for name, text := range f.Files {
		if err := writeSynced(filepath.Join(stage, name), text); err != nil {
			return err
		}
	}
	if isNew {
		return os.Rename(stage, filepath.Clean(f.Path))
	}
	return f.place(stage, force)
}

func (f folder) place(stage string, force bool) (err error) {
	var undo []func()
	defer func() {
		if err != nil {
			for _, u := range undo {
				u()
			}
		}
	}()
	for _, name := range sortedKeys(f.Files) {
		to, old := filepath.Join(f.Path, name), filepath.Join(stage, name+".old")
		if force {
			switch err := os.Link(to, old); {
			case err == nil:
				undo = append(undo, func() { _ = os.Rename(old, to) })
			case !errors.Is(err, fs.ErrNotExist):
				return err
			}
			if err := os.Rename(filepath.Join(stage, name), to); err != nil {
				return err
			}
			continue
		}
		if err := os.Link(filepath.Join(stage, name), to); err != nil { // fails if it is there, unlike a rename
			return err
		}
		undo = append(undo, func() { _ = os.Remove(to) })
	}
	return nil
}

// writeSynced writes a file that only its owner may read: keys are among them.
func writeSynced(path string, text []byte) error {
	w, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = w.Write(text)
	return errors.Join(err, w.Sync(), w.Close())
}
