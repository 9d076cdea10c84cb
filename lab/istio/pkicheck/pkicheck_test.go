// Package pkicheck asks istiod's own code about the cacerts directories that the product's VerifyCACerts is tested with: where istiod refuses one, so does the product, and
// where it does not, the product calls nothing fatal.
//
// In: internal/pki/testdata/cacerts. Out: failed tests. It must not be imported.
package pkicheck

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	pkica "istio.io/istio/security/pkg/pki/ca"
)

const cases = "../../../internal/pki/testdata/cacerts"

// errSelfSigned: istiod would go on with a root of its own.
var errSelfSigned = errors.New("no file of a CA: istiod makes a root of its own")

// load does what istiod does at start: pilot/pkg/bootstrap/istio_ca.go (detectSigningCABundleAndCRL, checkCABundleCompleteness), which can't be called from outside, choose the
// files; ca.NewPluggedCertIstioCAOptions, istiod's own, judges them, by the clock.
func load(dir string) error {
	has := func(name string) bool { _, err := os.Stat(filepath.Join(dir, name)); return err == nil }
	at := func(name string) string { return filepath.Join(dir, name) }
	b := pkica.SigningCAFileBundle{
		RootCertFile: at(pkica.RootCertFile), CertChainFiles: []string{at(pkica.CertChainFile)}, SigningCertFile: at(pkica.CACertFile), SigningKeyFile: at(pkica.CAPrivateKeyFile),
	}
	names := []string{pkica.RootCertFile, pkica.CertChainFile, pkica.CACertFile, pkica.CAPrivateKeyFile}
	if has(pkica.TLSSecretCACertFile) {
		b = pkica.SigningCAFileBundle{
			RootCertFile: at(pkica.TLSSecretRootCertFile), CertChainFiles: []string{at(pkica.TLSSecretCACertFile), at(pkica.TLSSecretRootCertFile)},
			SigningCertFile: at(pkica.TLSSecretCACertFile), SigningKeyFile: at(pkica.TLSSecretCAPrivateKeyFile),
		}
		names = []string{pkica.TLSSecretRootCertFile, pkica.TLSSecretCAPrivateKeyFile}
	} else if has(pkica.CACRLFile) {
		b.CRLFile = at(pkica.CACRLFile)
	}
	n := 0
	for _, name := range names {
		if has(name) {
			n++
		}
	}
	switch {
	case n == 0:
		return errSelfSigned
	case n < len(names):
		return errors.New("incomplete signing CA bundle detected")
	}
	_, err := pkica.NewPluggedCertIstioCAOptions(b, 24*time.Hour, 24*time.Hour, 2048)
	return err
}

func TestIstiodAgrees(t *testing.T) {
	entries, err := os.ReadDir(cases)
	if err != nil {
		t.Fatal(err)
	}
	refused, accepted := 0, 0
	for _, e := range entries {
		t.Run(e.Name(), func(t *testing.T) {
			raw, err := os.ReadFile(filepath.Join(cases, e.Name(), "want.json"))
			if err != nil {
				t.Fatal(err)
			}
			var problems []struct {
				Fatal         bool
				File, Message string
			}
			if err := json.Unmarshal(raw, &problems); err != nil {
				t.Fatal(err)
			}
			fatal := false
			for _, p := range problems {
				fatal = fatal || p.Fatal
			}
			err = load(filepath.Join(cases, e.Name(), "files"))
			if errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("the case can't be read: %v", err)
			}
			if fatal != (err != nil) {
				t.Errorf("VerifyCACerts: fatal is %v: %+v\nistiod: %v", fatal, problems, err)
			}
			t.Logf("istiod: %v", err)
			if err != nil {
				refused++
			} else {
				accepted++
			}
		})
	}
	if refused < 20 || accepted < 20 {
		t.Errorf("istiod refused %d and accepted %d of the directories: too few of one to mean anything", refused, accepted)
	}
	t.Logf("istiod refused %d and accepted %d", refused, accepted)
}
