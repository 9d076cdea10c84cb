package audit_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ambitmesh.dev/ambit/internal/audit"
)

func records() []audit.Record {
	at := time.Date(2026, 11, 23, 2, 0, 0, 0, time.UTC)
	return []audit.Record{
		{At: at, Act: audit.PolicyWritten, User: "jane.doe@bank.example.com", Object: "AccessPolicy gloo-mesh/billing", Policy: "gloo-mesh/billing"},
		{At: at.Add(time.Minute), Act: audit.DriftCorrected, Manager: "kubectl-edit", Cluster: "cluster-2", Object: "AuthorizationPolicy billing/x", Policy: "gloo-mesh/billing", Detail: `principals: ["*"]`},
		{At: at.Add(time.Hour), Act: audit.OverrideCreated, User: "jane.doe@bank.example.com", Detail: "INC-4711"},
	}
}

func written(t *testing.T) []string {
	t.Helper()
	var out bytes.Buffer
	log := audit.New(&out)
	for _, r := range records() {
		if err := log.Record(r); err != nil {
			t.Fatal(err)
		}
	}
	return strings.SplitAfter(strings.TrimSuffix(out.String(), "\n"), "\n")
}

func TestVerify(t *testing.T) {
	l := written(t)
	other := written(t)
	for name, tc := range map[string]struct {
		lines []string
		bad   string // part of the error; empty: none
	}{
		"whole":                   {l, ""},
		"among other lines":       {[]string{"level=INFO\n", l[0], "{\"level\":\"INFO\"}\n", l[1], l[2]}, ""},
		"two servers, interwoven": {[]string{l[0], other[0], l[1], other[1], other[2] + "\n", l[2]}, ""},
		"altered":                 {[]string{l[0], strings.Replace(l[1], "kubectl-edit", "kubectl-exit", 1), l[2]}, "line 3"},
		"altered, the first":      {[]string{strings.Replace(l[0], "jane.doe", "john.doe", 1), l[1], l[2]}, "line 2"},
		"taken out":               {[]string{l[0], l[2]}, "line 2"},
		"the beginning taken out": {[]string{l[1], l[2]}, "line 1"},
		"moved":                   {[]string{l[0], l[2] + "\n", l[1]}, "line 2"},
		"twice":                   {[]string{l[0], l[0], l[1], l[2]}, "line 2"},
		"cut":                     {[]string{l[0], l[1][:20] + "\n", l[2]}, "line 2"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := audit.Verify(strings.NewReader(strings.Join(tc.lines, "")))
			if tc.bad == "" {
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(records(), got); !strings.Contains(name, "two") && diff != "" {
					t.Error(diff)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.bad) {
				t.Errorf("want an error that names %s, got %v", tc.bad, err)
			}
		})
	}
}

type full struct{ left int }

func (f *full) Write(p []byte) (int, error) {
	if f.left--; f.left < 0 {
		return 0, errors.New("no space left on device")
	}
	return len(p), nil
}

func TestRecordFails(t *testing.T) {
	log := audit.New(&full{left: 1})
	if err := log.Record(records()[0]); err != nil {
		t.Fatal(err)
	}
	if err := log.Record(records()[1]); err == nil {
		t.Error("a record that could not be written counts as recorded")
	}
}
