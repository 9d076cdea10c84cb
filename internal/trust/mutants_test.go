package trust

import (
	"cmp"
	"strings"
	"testing"
)

// mutant takes a rule away from Next. The search has to find harm, or (stuck) a state from which even a helpful world does not finish.
func mutant(t *testing.T, without rule, s setup, stuck bool) {
	t.Helper()
	sound := s // the same world with all rules: it is the rule that matters
	sound.maxStates = 20000
	if whole := newSearch(sound, 0); !testing.Short() {
		if whole.run(); whole.bad != "" {
			t.Fatalf("harm with all rules in force: %s\n%s", whole.bad, whole.trace(whole.badAt))
		}
	}
	x := newSearch(s, without)
	x.run()
	if x.bad != "" {
		t.Logf("outage found after %d states: %s", len(x.order), x.bad)
		if stuck {
			t.Fatal("expected it to be stuck")
		}
		return
	}
	if stuck {
		for _, st := range x.order {
			if ok, why := x.finishes(st); !ok {
				_, line, _ := strings.Cut(why, "waits: ")
				line, _, _ = strings.Cut(line, "\n")
				t.Logf("stuck for ever, found after %d states: %s", len(x.order), line)
				return
			}
		}
	}
	t.Fatalf("nothing found in %d states (at most %d)", len(x.order), cmp.Or(s.maxStates, 1<<20))
}

func TestMutantT1VerifiersNotAsked(t *testing.T) {
	mutant(t, ruleVerifiers, setup{clusters: 2, replicas: 1, verifiers: 1, hot: true}, false)
}

func TestMutantT2WaypointsNotAsked(t *testing.T) {
	mutant(t, ruleAllKinds, setup{clusters: 2, replicas: 1, verifiers: 2, hot: true, secondKind: "waypoint"}, false)
}

func TestMutantT3ConfigMapsNotAsked(t *testing.T) {
	mutant(t, ruleConfigMaps, setup{clusters: 1, replicas: 1, verifiers: 1, hot: true}, false)
}

func TestMutantT3FilesNotWaitedFor(t *testing.T) {
	mutant(t, ruleFiles, setup{clusters: 1, replicas: 1, verifiers: 1, hot: true, time: true, files: true}, false)
}

func TestMutantT4SecretInsteadOfIstiod(t *testing.T) {
	mutant(t, ruleIstiods, setup{clusters: 1, replicas: 2, verifiers: 1, hot: true}, false)
}

func TestMutantT5OneReplica(t *testing.T) {
	mutant(t, ruleReplicas, setup{clusters: 1, replicas: 2, verifiers: 1, hot: true}, false)
}

func TestMutantT5VerifiersBeforeIstiods(t *testing.T) {
	mutant(t, ruleOrdered, setup{clusters: 2, replicas: 2, verifiers: 1, hot: true, unordered: true}, false)
}

func TestMutantT6RootAndSignerAtOnce(t *testing.T) {
	mutant(t, rulePhases, setup{clusters: 1, replicas: 1, verifiers: 2, hot: true}, false)
}

func TestMutantT7LateLeaf(t *testing.T) {
	mutant(t, ruleIssuers, setup{clusters: 2, replicas: 1, verifiers: 1, hot: true}, false)
}

func TestMutantT7UnseenNotWaitedFor(t *testing.T) {
	mutant(t, ruleBound, setup{clusters: 1, replicas: 1, verifiers: 2, hot: true, time: true, silent: true}, false)
}

func TestMutantT7UsualLeafOnly(t *testing.T) {
	mutant(t, ruleLongest, setup{clusters: 1, replicas: 1, verifiers: 2, hot: true, time: true, silent: true}, false)
}

func TestMutantT8SameName(t *testing.T) {
	mutant(t, ruleNames, setup{clusters: 2, replicas: 1, verifiers: 1, hot: true, sameName: true}, false)
}

func TestMutantT10WebhooksNotAsked(t *testing.T) {
	mutant(t, ruleWebhooks, setup{clusters: 1, replicas: 1, verifiers: 1, hot: true, webhooks: true}, false)
}

func TestMutantT17RollbackWithoutProof(t *testing.T) {
	mutant(t, ruleReproof, setup{clusters: 2, replicas: 1, verifiers: 1, hot: true, rollback: true, acts: 1}, false)
}

func TestMutantT18SecretNotWatched(t *testing.T) {
	mutant(t, ruleSecret, setup{clusters: 2, replicas: 1, verifiers: 1, hot: true, foreign: true}, false)
}

func TestMutantStaleObservation(t *testing.T) {
	mutant(t, ruleApplied, setup{clusters: 2, replicas: 1, verifiers: 1, hot: true, rollback: true, acts: 2}, false)
}

func TestMutantTurn(t *testing.T) {
	mutant(t, ruleTurn, setup{clusters: 2, replicas: 1, verifiers: 1, hot: true, rollback: true, acts: 2}, false)
}

func TestMutantUnreachableIgnored(t *testing.T) {
	mutant(t, ruleReachable, setup{clusters: 2, replicas: 1, verifiers: 1, hot: true, away: 1}, false)
}

func TestMutantBundleReordered(t *testing.T) {
	mutant(t, ruleSameBytes, setup{clusters: 1, replicas: 1, verifiers: 1, hot: true, bytes: true}, true)
}

func TestMutantAdmittedUnproven(t *testing.T) {
	mutant(t, ruleAdmission, setup{clusters: 2, replicas: 1, verifiers: 1, hot: true, own: []bool{false, true}}, false)
}

func TestMutantOwnRootDropped(t *testing.T) {
	mutant(t, ruleOwnRoot, setup{clusters: 1, replicas: 1, verifiers: 2, hot: true, own: []bool{true}}, false)
}

func TestMutantFamilyApart(t *testing.T) {
	mutant(t, ruleFamily, setup{clusters: 2, replicas: 1, verifiers: 1, hot: true, own: []bool{true, true}, shared: true}, false)
}
