package admission

import (
	"crypto/x509"
	"maps"
	"testing"
	"time"
)

// Ten years of daily reconciles: at every moment the serving certificate verifies against the bundle the API server was told last.
func TestCertificatesNeverFallOutOfStep(t *testing.T) {
	names := ServerNames("gloo-mesh-mgmt-server-webhook", "gloo-mesh", "cluster.local")
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var m material
	var published []byte
	cas, leaves := 0, 0
	verify := func() {
		t.Helper()
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(published)
		leaf, err := parseCerts(m[keyTLSCert])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := leaf[0].Verify(x509.VerifyOptions{Roots: pool, DNSName: names[0], CurrentTime: now}); err != nil {
			t.Fatalf("%s: %v", now, err)
		}
	}
	for end := now.AddDate(10, 0, 0); now.Before(end); now = now.Add(24 * time.Hour) {
		for range 2 {
			got, done, err := next(m, names, string(published) == string(m[keyCACert]), now)
			if err != nil {
				t.Fatal(err)
			}
			if done != "" {
				leaves++
			}
			if string(got[keyCAKey]) != string(m[keyCAKey]) {
				cas++
			}
			m = got
			if published != nil {
				verify() // the Secret is written before the configuration
			}
			published = m[keyCACert]
			verify()
		}
	}
	if cas < 2 || cas > 4 || leaves < 10*365/90 || leaves > 10*365/30 {
		t.Errorf("%d authorities and %d changes in ten years", cas, leaves)
	}
}

func TestCertificatesAreMendedAndExtended(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	good, _, err := next(nil, []string{"a"}, false, now)
	if err != nil {
		t.Fatal(err)
	}
	change := func(key, value string) material {
		m := maps.Clone(good)
		m[key] = []byte(value)
		return m
	}
	for name, tc := range map[string]struct {
		have  material
		names []string
		want  string
	}{
		"as it is":      {good, []string{"a"}, ""},
		"another name":  {good, []string{"a", "b"}, "made a serving certificate"},
		"leaf damaged":  {change(keyTLSCert, "x"), []string{"a"}, "made a serving certificate"},
		"other key":     {change(keyTLSKey, string(good[keyCAKey])), []string{"a"}, "made a serving certificate"},
		"CA damaged":    {change(keyCACert, ""), []string{"a"}, "made a certificate authority and a serving certificate"},
		"CA key is not": {change(keyCAKey, string(good[keyTLSKey])), []string{"a"}, "made a certificate authority and a serving certificate"},
	} {
		if _, did, err := next(tc.have, tc.names, true, now); did != tc.want || err != nil {
			t.Errorf("%s: %q, %v; want %q", name, did, err, tc.want)
		}
	}
}
