package node

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func running(ready bool) corev1.ContainerStatus {
	return corev1.ContainerStatus{Name: "c", Ready: ready, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}
}

func ended(code int32) corev1.ContainerStatus {
	return corev1.ContainerStatus{Name: "c", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code}}}
}

func waitingAfter(code int32) corev1.ContainerStatus {
	c := ended(code)
	c.LastTerminationState, c.State = c.State, waiting("CrashLoopBackOff", "")
	return c
}

func TestPhase(t *testing.T) {
	fresh := corev1.ContainerStatus{Name: "c", State: waiting("ContainerCreating", "")}
	type list = []corev1.ContainerStatus
	for _, c := range []struct {
		name    string
		policy  corev1.RestartPolicy
		init    bool // the init containers are done
		initBad bool
		main    list
		deleted bool
		want    corev1.PodPhase
	}{
		{"starting", corev1.RestartPolicyAlways, true, false, list{fresh}, false, corev1.PodPending},
		{"initialising", corev1.RestartPolicyAlways, false, false, list{fresh}, false, corev1.PodPending},
		{"init failed", corev1.RestartPolicyNever, false, true, list{fresh}, false, corev1.PodFailed},
		{"running", corev1.RestartPolicyAlways, true, false, list{running(true)}, false, corev1.PodRunning},
		{"one of two starting", corev1.RestartPolicyAlways, true, false, list{running(true), fresh}, false, corev1.PodPending},
		{"one of two crashed", corev1.RestartPolicyAlways, true, false, list{running(true), waitingAfter(1)}, false, corev1.PodRunning},
		{"crash loop", corev1.RestartPolicyAlways, true, false, list{waitingAfter(1)}, false, corev1.PodRunning},
		{"job done", corev1.RestartPolicyNever, true, false, list{ended(0)}, false, corev1.PodSucceeded},
		{"job failed", corev1.RestartPolicyNever, true, false, list{ended(0), ended(1)}, false, corev1.PodFailed},
		{"job again", corev1.RestartPolicyOnFailure, true, false, list{ended(1)}, false, corev1.PodRunning},
		{"job done on failure policy", corev1.RestartPolicyOnFailure, true, false, list{ended(0)}, false, corev1.PodSucceeded},
		{"server deleted cleanly", corev1.RestartPolicyAlways, true, false, list{ended(0)}, true, corev1.PodSucceeded},
		{"server killed", corev1.RestartPolicyAlways, true, false, list{ended(137)}, true, corev1.PodFailed},
	} {
		api := &corev1.Pod{Spec: corev1.PodSpec{RestartPolicy: c.policy}}
		if c.deleted {
			api.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)}
		}
		if got := phase(podState{api: api, initOK: c.init, initBad: c.initBad, main: c.main}); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

func TestConditions(t *testing.T) {
	t0, t1 := time.Unix(100, 0), time.Unix(200, 0)
	api := &corev1.Pod{Spec: corev1.PodSpec{RestartPolicy: corev1.RestartPolicyAlways, ReadinessGates: []corev1.PodReadinessGate{{ConditionType: "x/gate"}}}}
	s := podState{api: api, sandbox: true, initOK: true, main: []corev1.ContainerStatus{running(false)}}
	brief := func(st corev1.PodStatus) map[string]string {
		out := map[string]string{}
		for _, c := range st.Conditions {
			out[string(c.Type)] = string(c.Status) + " " + c.Reason + " " + c.LastTransitionTime.UTC().Format("05")
		}
		return out
	}
	first := podStatus(s, t0)
	want := map[string]string{
		"PodReadyToStartContainers": "True  40", "Initialized": "True  40", "PodScheduled": "True  40",
		"Ready": "False ContainersNotReady 40", "ContainersReady": "False ContainersNotReady 40",
	}
	if diff := cmp.Diff(want, brief(first)); diff != "" {
		t.Errorf("unready (-want +got)\n%s", diff)
	}
	// Ready containers, but the gate is closed: only what changed has a new time.
	s.previous, s.main = first.Conditions, []corev1.ContainerStatus{running(true)}
	second := podStatus(s, t1)
	want["ContainersReady"], want["Ready"] = "True  20", "False ReadinessGatesNotReady 40"
	if diff := cmp.Diff(want, brief(second)); diff != "" {
		t.Errorf("gate closed (-want +got)\n%s", diff)
	}
	// The gate opens; its condition, which is another's, is kept.
	api.Status.Conditions = []corev1.PodCondition{{Type: "x/gate", Status: corev1.ConditionTrue, Reason: "Theirs", LastTransitionTime: metav1.NewTime(t0)}}
	s.previous = second.Conditions
	want["Ready"], want["x/gate"] = "True  20", "True Theirs 40"
	if diff := cmp.Diff(want, brief(podStatus(s, t1))); diff != "" {
		t.Errorf("gate open (-want +got)\n%s", diff)
	}
}

func TestCrashBackoff(t *testing.T) {
	var b crashBackoff
	var got []time.Duration
	for range 9 {
		got = append(got, b.next(time.Second))
	}
	want := []time.Duration{0, 1e9, 2e9, 4e9, 8e9, 16e9, 32e9, 60e9, 60e9}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("back-off (-want +got)\n%s", diff)
	}
	if d := b.next(11 * time.Minute); d != 0 {
		t.Errorf("after running long: %v, want an immediate restart", d)
	}
}

func TestRestarts(t *testing.T) {
	for _, c := range []struct {
		policy string
		code   int
		want   bool
	}{{"Always", 0, true}, {"Always", 1, true}, {"OnFailure", 0, false}, {"OnFailure", 1, true}, {"Never", 0, false}, {"Never", 1, false}} {
		if got := restarts(c.policy, c.code); got != c.want {
			t.Errorf("%s, exit code %d: %v", c.policy, c.code, got)
		}
	}
}
