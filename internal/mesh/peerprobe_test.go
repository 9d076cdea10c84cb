package mesh_test

import (
	"strings"
	"testing"

	"ambitmesh.dev/ambit/internal/mesh"
)

// TestExplainPeer: each kind of address that another cluster can't reach is called by its name, with what to do.
func TestExplainPeer(t *testing.T) {
	for name, tc := range map[string]struct {
		failure      mesh.PeerFailure
		address, own string
		want         string
	}{
		"answers":                   {mesh.PeerAnswers, "172.18.255.100", "", ""},
		"kind":                      {mesh.PeerTimeout, "172.18.255.100", "172.18.255.200", "bridge that Docker gives kind"},
		"docker":                    {mesh.PeerNoRoute, "172.17.0.2", "", "Docker's default bridge"},
		"carrier-grade NAT":         {mesh.PeerTimeout, "100.64.3.4", "", "carrier-grade NAT"},
		"link-local":                {mesh.PeerTimeout, "169.254.1.1", "", "link-local"},
		"link-local 6":              {mesh.PeerTimeout, "fe80::1", "", "link-local"},
		"loopback":                  {mesh.PeerRefused, "127.0.0.1", "", "refuses connections"},
		"private, another range":    {mesh.PeerTimeout, "10.1.2.3", "10.2.3.4", "another range than this cluster's own gateway (10.2.3.4)"},
		"private, the same range":   {mesh.PeerTimeout, "10.1.2.3", "10.1.9.9", "of the same range as this cluster's own gateway (10.1.9.9)"},
		"private, seen from afar":   {mesh.PeerTimeout, "192.168.1.18", "198.51.100.4", "this cluster has none of its kind"},
		"private, own is a name":    {mesh.PeerTimeout, "172.31.0.4", "a.elb.example.com", "this cluster has none of its kind"},
		"unique local":              {mesh.PeerTimeout, "fd00:1::1", "fd00:2::1", "another range"},
		"public":                    {mesh.PeerTimeout, "8.8.4.4", "10.0.0.1", "a firewall or a security group; open TCP 15008"},
		"name not there yet":        {mesh.PeerNoSuchHost, "a.elb.example.com", "", "takes 30-90 s"},
		"resolver":                  {mesh.PeerDNS, "a.elb.example.com", "", "DNS of this cluster"},
		"a name that leads nowhere": {mesh.PeerTimeout, "a.elb.example.com", "", "the name leads to an address that is private"},
		"no HBONE":                  {mesh.PeerNoHandshake, "8.8.4.4", "", "ALPN h2"},
	} {
		t.Run(name, func(t *testing.T) {
			got := mesh.ExplainPeer(tc.failure, "west", tc.address, 15008, tc.own)
			if tc.want == "" && got != "" || !strings.Contains(got, tc.want) {
				t.Errorf("%q does not say %q", got, tc.want)
			}
		})
	}
}
