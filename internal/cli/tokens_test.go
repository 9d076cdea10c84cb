package cli

import (
	"bytes"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ambitmesh.dev/ambit/internal/tokens"
)

func TestTokensPrint(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	report := tokenReport{At: now, Pairs: []tokens.Status{
		{Reader: "c1", Target: "c2", State: tokens.Synced, Issued: now.Add(-90 * time.Minute), Expires: now.Add(22*time.Hour + 30*time.Minute), Live: 1},
		{Reader: "c2", Target: "c1", State: tokens.Pending, Live: 0, Message: "c1 makes a token"},
		{Reader: "c2", Target: "c3", State: tokens.Expired, Issued: now.Add(-24 * time.Hour), Expires: now, Message: "ended", Problem: true},
	}}
	for name, tt := range map[string]struct {
		r       tokenReport
		cluster string
		want    string
	}{
		"pairs": {report, "", `READER   TARGET   STATE     AGE     EXPIRES IN   LIVE   MESSAGE
c1       c2       Synced    1h30m   22h30m       1
c2       c1       Pending   -       -            0      c1 makes a token
c2       c3       Expired   24h0m   ended        0      ended
`},
		"none":            {tokenReport{At: now}, "", "There are no pairs of clusters: register a second cluster that runs istiod.\n"},
		"none of cluster": {tokenReport{At: now}, "c9", "There is no pair with cluster \"c9\".\n"},
		"off":             {tokenReport{At: now, Off: true}, "", "Tokens are not managed (glooMgmtServer.remoteSecrets.enabled is false).\n"},
	} {
		var out bytes.Buffer
		v := &tokenVerbs{app: &app{streams: Streams{Out: &out}}, cluster: tt.cluster}
		v.print(tt.r)
		if diff := cmp.Diff(tt.want, out.String()); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestAPIServerValues(t *testing.T) {
	for host, want := range map[string]any{
		"https://api.example.com:6443":         "https://api.example.com:6443",
		"https://rancher.example.com/k8s/c-1/": "https://rancher.example.com/k8s/c-1",
		"https://[fd00::1]:6443":               "https://[fd00::1]:6443",
		"https://127.0.0.1:6443":               nil,
		"https://localhost:6443":               nil,
		"https://[::1]:6443":                   nil,
		"https://0.0.0.0:6443":                 nil,
		"http://api.example.com":               nil,
		"api.example.com:6443":                 nil,
		"":                                     nil,
	} {
		if got := valueAt(apiServerValues(host), "glooAgent", "remoteSecrets", "apiServer"); got != want {
			t.Errorf("%q: %v, want %v", host, got, want)
		}
	}
}
