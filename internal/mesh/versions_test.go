package mesh_test

import (
	"testing"

	"ambitmesh.dev/ambit/internal/mesh"
)

func TestVersions(t *testing.T) {
	for _, row := range mesh.Versions() {
		if row.Source == "" || len(row.Since) == 0 {
			t.Errorf("%s %q has no source or no version", row.Component, row.Capability)
		}
	}
	for _, c := range []struct {
		version    string
		capability mesh.Capability
		want       bool
	}{
		{"1.28.5", mesh.CARootReload, false},
		{"1.28.6", mesh.CARootReload, true},
		{"1.28.6-distroless", mesh.CARootReload, true},
		{"1.29.1", mesh.CARootReload, false},
		{"1.29.2", mesh.CARootReload, true},
		{"1.30.0", mesh.CARootReload, true},
		{"1.31.0-rc.0", mesh.CARootReload, true},
		{"1.27.9", mesh.CARootReload, false},
		{"2.0.0", mesh.CARootReload, true},
		{"", mesh.CARootReload, false},
		{"latest", mesh.CARootReload, false},
		{"1.29.5", mesh.URIConstraints, false},
	} {
		if got := mesh.ZtunnelCan(c.version, c.capability); got != c.want {
			t.Errorf("ztunnel %q %s: %t, want %t", c.version, c.capability, got, c.want)
		}
	}
	for _, c := range []struct {
		version    string
		capability mesh.Capability
		want       bool
	}{
		{"1.19.9", mesh.RootReload, false},
		{"1.20.0", mesh.RootReload, true},
		{"1.29.9", mesh.RootSetCompare, false},
		{"1.30-alpha.abc", mesh.RootSetCompare, true},
		{"1.30.3", mesh.RemoteStale, true},
		{"1.30.4", mesh.RemoteStale, false},
		{"1.29.4", mesh.RemoteStale, false},
		{"1.28.0", mesh.CARootReload, false}, // of ztunnel only
	} {
		if got := mesh.IstiodCan(c.version, c.capability); got != c.want {
			t.Errorf("istiod %q %s: %t, want %t", c.version, c.capability, got, c.want)
		}
	}
}

func TestIstiodStale(t *testing.T) {
	for v, want := range map[string]bool{
		"1.29.4": false, "1.30.0": true, "v1.30.3": true, "1.30.3-distroless": true, "1.30.4": false, "1.31.0-rc.0": true, "1.31.0-rc.1": false, "1.31.0": false, "1.32.1": false, "": false, "latest": false,
	} {
		if got := mesh.IstiodStale(v); got != want {
			t.Errorf("%q: %t, want %t", v, got, want)
		}
	}
}
