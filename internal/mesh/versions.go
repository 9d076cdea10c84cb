package mesh

import (
	"cmp"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Capability is something that a version of istiod or ztunnel can do, or a fault that it has.
type Capability string

// Capabilities of istiod.
const (
	KeyReload         Capability = "takes a new intermediate under the same root while it runs"
	RootReload        Capability = "takes a changed root-cert.pem while it runs, with ISTIO_MULTIROOT_MESH"
	RootSetCompare    Capability = "compares bundles as sets of certificates, not as bytes"
	PartialFails      Capability = "refuses to start on an incomplete cacerts, instead of signing by itself"
	CRLFile           Capability = "reads ca-crl.pem and distributes it (PILOT_ENABLE_CA_CRL)"
	LeafWithinIssuer  Capability = "ends leaves no later than their issuer"
	RootFileRA        Capability = "notices that only the root file of an external CA changed"
	MultiNetwork      Capability = "ambient across networks (AMBIENT_ENABLE_MULTI_NETWORK)"
	RemoteSyncMetric  Capability = "istiod_remote_cluster_sync_status tells the truth"
	RemoteSwap        Capability = "replaces a remote secret make-before-break"
	RemoteStale       Capability = "fault: sees no remote changes after a remote secret's token was rotated, until a restart"
	RemoteKubeconfigs Capability = "reads kubeconfigs of remote clusters from a directory (PILOT_MULTICLUSTER_KUBECONFIG_PATH)"
	RemoteNoSecrets   Capability = "needs no right to read Secrets of remote clusters (PILOT_ENABLE_REMOTE_CREDENTIALS_CONTROLLER=false)"
)

// Capabilities of ztunnel.
const (
	CARootReload   Capability = "its client of istiod reads a changed root ConfigMap without a restart"
	KeepsValid     Capability = "keeps a valid certificate when renewal fails"
	CRLInbound     Capability = "honours the CRL for new inbound connections"
	CRLOutbound    Capability = "honours the CRL for outbound connections, and closes connections when it changes"
	URIConstraints Capability = "rejects chains with URI name constraints"
)

// VersionRow says since when a capability is there.
type VersionRow struct {
	Component  string // "istiod" or "ztunnel"
	Capability Capability
	// Since are the first versions that have it, one per release line that got it; a line above the last one has it, too. Until are the first ones that do not any more.
	Since, Until []string
	Source       string
}

// Versions is the table of what each istiod and ztunnel can and can't do.
func Versions() []VersionRow {
	return []VersionRow{
		{"istiod", KeyReload, []string{"1.19.0"}, nil, "AUTO_RELOAD_PLUGIN_CERTS: 1.12.0, default 2023-03, always on since 1.19.0"},
		{"istiod", RootReload, []string{"1.20.0"}, nil, "istio#47063"},
		{"istiod", RootSetCompare, []string{"1.30.0"}, nil, "istio#59909"},
		{"istiod", PartialFails, []string{"1.26.1"}, nil, "pilot/pkg/bootstrap/istio_ca.go"},
		{"istiod", CRLFile, []string{"1.27.0"}, nil, "PILOT_ENABLE_CA_CRL; istio#61075 for what it refuses"},
		{"istiod", LeafWithinIssuer, []string{"1.30.0"}, nil, "istio#59768"},
		{"istiod", RootFileRA, []string{"1.31.0"}, nil, "istio#60446"},
		{"istiod", MultiNetwork, []string{"1.29.0"}, nil, "beta since 1.29; istio.io, ambient multicluster"},
		{"istiod", RemoteSyncMetric, []string{"1.30.0"}, nil, "istio#60098, istio#60104: always \"timeout\" in 1.29"},
		{"istiod", RemoteSwap, []string{"1.30.0"}, nil, "istio#58047, istio#37925, istio#60612"},
		{"istiod", RemoteStale, []string{"1.30.0"}, []string{"1.30.4"}, "istio PR#61339, PR#61341, PR#61342; also 1.31.0-rc.0"},
		{"istiod", RemoteKubeconfigs, []string{"1.30.0"}, nil, "PILOT_MULTICLUSTER_KUBECONFIG_PATH"},
		{"istiod", RemoteNoSecrets, []string{"1.31.0"}, nil, "istio#59845"},
		{"ztunnel", CARootReload, []string{"1.28.6", "1.29.2", "1.30.0"}, nil, "RootCertManager; ztunnel#1679 for those before"},
		{"ztunnel", KeepsValid, []string{"1.28.0"}, nil, "istio#56452"},
		{"ztunnel", CRLInbound, []string{"1.29.0"}, nil, "chart value peerCaCrl.enabled, CRL_PATH"},
		{"ztunnel", CRLOutbound, []string{"1.31.0"}, nil, "ztunnel, CRL reload"},
		{"ztunnel", URIConstraints, []string{"1.29.6", "1.30.0"}, nil, "rustls-webpki 0.103.12"},
	}
}

// IstiodCan reports whether an istiod of a version has a capability. An unknown version has none.
func IstiodCan(version string, c Capability) bool { return can("istiod", version, c) }

// IstiodStale reports whether an istiod has the fault RemoteStale. 1.31.0-rc.0 has it, though its release line does not.
func IstiodStale(version string) bool {
	return IstiodCan(version, RemoteStale) || strings.HasPrefix(strings.TrimPrefix(version, "v"), "1.31.0-rc.0")
}

// ZtunnelCan is IstiodCan for ztunnel.
func ZtunnelCan(version string, c Capability) bool { return can("ztunnel", version, c) }

func can(component, version string, c Capability) bool {
	v, ok := parseVersion(version)
	if !ok {
		return false
	}
	for _, row := range Versions() {
		if row.Component == component && row.Capability == c {
			return reached(v, row.Since) && !reached(v, row.Until)
		}
	}
	return false
}

// reached reports whether v is at or after one of firsts: in its own release line if that is listed, else in a line above one.
func reached(v [3]int, firsts []string) bool {
	above := false
	for _, f := range firsts {
		first, _ := parseVersion(f)
		if first[0] == v[0] && first[1] == v[1] {
			return v[2] >= first[2]
		}
		above = above || slices.Compare(first[:], v[:]) < 0
	}
	// between two listed lines: an older line's backport says nothing of a line that is not listed, but a line above the last one has it
	if len(firsts) == 0 || !above {
		return false
	}
	last := slices.MaxFunc(firsts, func(a, b string) int {
		x, _ := parseVersion(a)
		y, _ := parseVersion(b)
		return slices.Compare(x[:], y[:])
	})
	l, _ := parseVersion(last)
	return cmp.Compare(v[0], l[0]) > 0 || v[0] == l[0] && v[1] > l[1]
}

var versionText = regexp.MustCompile(`^v?(\d+)\.(\d+)(?:\.(\d+))?(?:[-.+].*)?$`)

// parseVersion reads "1.30.1", "1.30-alpha.5", "1.31.0-rc.0". A build before a release counts as the release: it has what the branch has.
func parseVersion(s string) (v [3]int, ok bool) {
	m := versionText.FindStringSubmatch(s)
	if m == nil {
		return v, false
	}
	for i := range v {
		if m[i+1] == "" {
			continue
		}
		n, err := strconv.Atoi(m[i+1])
		if err != nil {
			return v, false
		}
		v[i] = n
	}
	return v, true
}
