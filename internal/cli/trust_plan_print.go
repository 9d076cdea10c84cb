package cli

import (
	"fmt"
	"io"
	"strings"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/trust"
)

// mostPairs of a step are printed; -o json has all.
const mostPairs = 20

// stepText says what each phase does, and what it waits for before the next (docs/design/trust.md).
func stepText(p trust.Phase) (does, barrier string) {
	switch p {
	case trust.Preparing:
		return "each cluster makes a key, and gets an intermediate under the new root; nothing uses it", "every agent holds its new intermediate, checked"
	case trust.AddingRoot:
		return "both roots are trusted, the old one signs", "every istiod hands out both roots, root ConfigMaps and webhooks hold both, every ztunnel, waypoint and gateway accepts both"
	case trust.Switching:
		return "both roots are trusted, the new one signs; the canary first", "every istiod signs and serves under the new root, and nothing presents the old one"
	case trust.DroppingRoot:
		return "the old root is taken out of every bundle", "nothing accepts the old root"
	case trust.Finished:
		return "the keys under the old root are destroyed", "they are gone in every cluster"
	case trust.Steady:
	}
	return "nothing changes", "nothing"
}

func (r *planReport) print(w io.Writer) {
	fmt.Fprintf(w, "Policy %s, phase %s\n", r.Policy, r.Phase)
	for _, n := range r.Notes {
		fmt.Fprintf(w, "  %s\n", n)
	}
	if r.StandIn {
		fmt.Fprintln(w, "  The new root is not made yet: a stand-in takes its place.")
	}
	if len(r.Steps) == 0 {
		return
	}
	r.printFindings(w)
	failures := 0
	for i, s := range r.Steps {
		does, barrier := stepText(s.Phase)
		fmt.Fprintf(w, "\n%d. %s: %s\n   until %s\n", i+1, s.Phase, does, barrier)
		printFailures(w, s)
		failures += len(s.Failures)
	}
	fmt.Fprintf(w, "\nVerified %s against bundles, for %s of clusters: ", count(r.Verified, "chain"), count(r.Pairs, "pair"))
	switch {
	case failures > 0:
		fmt.Fprintf(w, "%s would fail.\n", count(failures, "pair"))
	case r.wrong():
		fmt.Fprintln(w, "none would fail, but the rotation does not start as long as something above refuses it.")
	default:
		fmt.Fprintln(w, "none would fail.")
	}
}

func (r *planReport) printFindings(w io.Writer) {
	for _, refuses := range []bool{true, false} {
		head := map[bool]string{true: "\nRefuses to start:", false: "\nGood to know:"}[refuses]
		for _, f := range r.Findings {
			if f.Refuses != refuses {
				continue
			}
			if head != "" {
				fmt.Fprintln(w, head)
				head = ""
			}
			where := ""
			if f.Cluster != "" {
				where = "cluster " + string(f.Cluster) + ": "
			}
			source := ""
			if f.Source != "" {
				source = ", " + f.Source
			}
			fmt.Fprintf(w, "  %s%s (%s%s)\n", where, f.Message, f.Code, source)
		}
	}
}

func printFailures(w io.Writer, s trust.PlannedStep) {
	all := s.Failures
	switch {
	case len(all) == 0 && len(s.Assumed) > 0:
		fmt.Fprintf(w, "   every cluster accepts every cluster, before, during and after it, if the intermediates that are not issued yet are good: %s\n", some(asStrings(s.Assumed), 8))
		return
	case len(all) == 0:
		fmt.Fprintln(w, "   every cluster accepts every cluster, before, during and after it")
		return
	}
	fmt.Fprintf(w, "   FAILS for %s:\n", count(len(all), "pair"))
	for i, f := range all {
		if i == mostPairs {
			fmt.Fprintf(w, "   ... and %d more (-o json)\n", len(all)-i)
			return
		}
		fmt.Fprintf(w, "   %s presents %s; %s trusts %s: %s\n", f.Presenter, f.Presents, f.Verifier, none(strings.Join(f.Trusts, " and ")), f.Why)
	}
}

func asStrings(names []mesh.ClusterName) []string {
	out := make([]string, len(names))
	for i, n := range names {
		out[i] = string(n)
	}
	return out
}
