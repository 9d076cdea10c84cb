package cli

import (
	"os"
	"strings"
	"testing"
)

func TestQuestion(t *testing.T) {
	for name, tc := range map[string]struct {
		args []string
		code int
		want []string
	}{
		"allowed":            {[]string{"payments/payments@cluster-1", "billing/billing@cluster-2"}, 0, []string{"ALLOWED: payments/payments@cluster-1 -> billing/billing@cluster-2\n", "decided by"}},
		"allowed, with port": {[]string{"--from", "payments/payments@cluster-1", "--to", "billing/billing@cluster-2", "--port", "8080"}, 0, []string{"-> billing/billing@cluster-2 port 8080\n"}},
		"denied":             {[]string{"orders/orders@cluster-1", "billing/billing@cluster-2"}, 1, []string{"DENIED: orders/orders@cluster-1", "decided by"}},
		"denied, as JSON":    {[]string{"orders/orders@cluster-1", "billing/billing@cluster-2", "-o", "json"}, 1, []string{`"allowed": false`}},
		"no such service":    {[]string{"orders/orders@cluster-1", "billing/bill@cluster-2"}, 2, []string{"did you mean billing/billing?"}},
		"no cluster":         {[]string{"orders/orders", "billing/billing@cluster-2"}, 2, []string{"which one?"}},
		"half":               {[]string{"--from", "payments/payments@cluster-1"}, 2, []string{"takes both"}},
		"both ways":          {[]string{"--from", "a/b@c", "--to", "a/b@c", "x"}, 2, []string{"not both"}},
		"three":              {[]string{"a", "b", "c"}, 2, []string{"want a policy, or"}},
		"a policy offline":   {[]string{"billing-allow-payments"}, 2, []string{"--snapshot goes with a question"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := offline(t, testSnapshot(), append([]string{"explain"}, tc.args...)...)
			if r.code != tc.code {
				t.Errorf("exit %d, want %d", r.code, tc.code)
			}
			for _, w := range tc.want {
				if !strings.Contains(r.out+r.err, w) {
					t.Errorf("it does not say %q", w)
				}
			}
		})
	}
	r := offline(t, testSnapshot(), "explain", "payments/payments@cluster-1", "billing/billing@cluster-2", "--snapshot", "none.json") // the last one counts
	if r.code != 0 {
		t.Errorf("exit %d", r.code)
	}
	if _, err := os.Stat("none.json"); err == nil {
		t.Error("it wrote a file")
	}
	s := newPodServer(t, nil)
	if r := s.meshctl("policy", "explain", "payments/payments@cluster-1", "billing/billing@cluster-2"); r.code != 2 || !strings.Contains(r.err, "older than this meshctl") {
		t.Errorf("without a snapshot to be had: exit %d, want 2", r.code)
	}
	s = newPodServer(t, serve(t, testSnapshot()))
	if r := s.meshctl("policy", "explain", "orders/orders@cluster-1", "billing/billing@cluster-2"); r.code != 1 || !strings.Contains(r.out, "old") {
		t.Errorf("through the port-forward: exit %d, want 1, with the snapshot's age", r.code)
	}
}
