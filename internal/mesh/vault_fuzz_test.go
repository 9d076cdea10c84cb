package mesh_test

import (
	"strings"
	"testing"

	"ambitmesh.dev/ambit/internal/mesh"
)

// FuzzVaultPath: whatever is written, the path is read the same again, its mount begins it, and what it does is known only with a mount.
func FuzzVaultPath(f *testing.F) {
	for _, s := range []string{"pki_root/ca", "/v1/pki/root/sign-intermediate/", "pki/issuer/3f2a/sign/r", "a/b/intermediate/generate/exported", "v1/v1", "//", "issuer/issuer/issuer"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p := mesh.ParseVaultPath(s)
		if p.Mount != "" && !strings.HasPrefix(p.Path, p.Mount+"/") || strings.HasPrefix(p.Path, "/") || strings.HasSuffix(p.Path, "/") {
			t.Errorf("%q: %+v", s, p)
		}
		if (p.Call != mesh.VaultOther) != (p.Mount != "") || p.Role != "" && p.Call != mesh.VaultSignRole {
			t.Errorf("%q: %+v", s, p)
		}
		if !strings.HasPrefix(p.Path, "v1/") {
			if again := mesh.ParseVaultPath(p.Path); again != p {
				t.Errorf("%q: %+v, then %+v", s, p, again)
			}
		}
	})
}
