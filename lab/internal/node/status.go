package node

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// podState is what the node knows about a Pod, from which its status follows.
type podState struct {
	api      *corev1.Pod // the Pod as the API has it, with its former status
	previous []corev1.PodCondition
	podIP    string
	hostIP   string
	sandbox  bool // network and volumes are there
	initOK   bool // all init containers have done their part
	initBad  bool // one failed for good
	init     []corev1.ContainerStatus
	main     []corev1.ContainerStatus
	deadline bool // activeDeadlineSeconds has passed
	started  metav1.Time
}

// podStatus is the status to report. It is pure but for the time of transitions, now.
func podStatus(s podState, now time.Time) corev1.PodStatus {
	st := corev1.PodStatus{
		ObservedGeneration:    s.api.Generation,
		Phase:                 phase(s),
		StartTime:             &s.started,
		HostIP:                s.hostIP,
		HostIPs:               []corev1.HostIP{{IP: s.hostIP}},
		InitContainerStatuses: s.init,
		ContainerStatuses:     s.main,
		QOSClass:              s.api.Status.QOSClass,
	}
	if s.podIP != "" {
		st.PodIP = s.podIP
		st.PodIPs = []corev1.PodIP{{IP: s.podIP}}
	}
	if s.deadline {
		st.Phase, st.Reason = corev1.PodFailed, "DeadlineExceeded"
		st.Message = "Pod was active on the node longer than the specified deadline"
	}
	st.Conditions = conditions(s, st.Phase, now)
	return st
}

// phase follows the kubelet's getPhase.
func phase(s podState) corev1.PodPhase {
	policy := s.api.Spec.RestartPolicy
	if s.initBad {
		return corev1.PodFailed
	}
	if !s.initOK {
		return corev1.PodPending
	}
	var run, wait, stopped, succeeded int
	for _, c := range s.main {
		switch {
		case c.State.Running != nil:
			run++
		case c.State.Terminated != nil, c.LastTerminationState.Terminated != nil:
			stopped++
			if t := c.State.Terminated; t != nil && t.ExitCode == 0 {
				succeeded++
			}
		default:
			wait++
		}
	}
	switch {
	case wait > 0:
		return corev1.PodPending
	case run > 0 || policy == corev1.RestartPolicyAlways && s.api.DeletionTimestamp == nil:
		return corev1.PodRunning
	case stopped == succeeded:
		return corev1.PodSucceeded
	case policy == corev1.RestartPolicyOnFailure && s.api.DeletionTimestamp == nil:
		return corev1.PodRunning
	}
	return corev1.PodFailed
}

func conditions(s podState, ph corev1.PodPhase, now time.Time) []corev1.PodCondition {
	finished := ph == corev1.PodSucceeded || ph == corev1.PodFailed
	ready := func() (bool, string, string) {
		if ph == corev1.PodSucceeded {
			return false, "PodCompleted", ""
		}
		if ph == corev1.PodFailed {
			return false, "PodFailed", ""
		}
		var un []string
		for _, c := range s.main {
			if !c.Ready {
				un = append(un, c.Name)
			}
		}
		if len(un) > 0 {
			return false, "ContainersNotReady", fmt.Sprintf("containers with unready status: [%s]", strings.Join(un, " "))
		}
		return true, "", ""
	}
	containers, reason, message := ready()
	own := []corev1.PodCondition{
		condition(corev1.PodReadyToStartContainers, s.sandbox && !finished, "", ""),
		condition(corev1.PodInitialized, s.initOK, initReason(s), initMessage(s)),
		condition(corev1.PodReady, containers, reason, message),
		condition(corev1.ContainersReady, containers, reason, message),
		condition(corev1.PodScheduled, true, "", ""),
	}
	// A readiness gate is the word of another controller, found among the conditions that are not ours.
	for _, g := range s.api.Spec.ReadinessGates {
		if containers && !hasTrue(s.api.Status.Conditions, g.ConditionType) {
			own[2] = condition(corev1.PodReady, false, "ReadinessGatesNotReady", fmt.Sprintf("corresponding condition of pod readiness gate %q does not exist or is not True.", g.ConditionType))
		}
	}
	out := make([]corev1.PodCondition, 0, len(own))
	for _, c := range own {
		c.LastTransitionTime = metav1.NewTime(now)
		c.ObservedGeneration = s.api.Generation
		if old := find(s.previous, c.Type); old != nil && old.Status == c.Status {
			c.LastTransitionTime = old.LastTransitionTime
		}
		out = append(out, c)
	}
	for _, c := range s.api.Status.Conditions {
		if find(own, c.Type) == nil {
			out = append(out, c)
		}
	}
	return out
}

func condition(t corev1.PodConditionType, ok bool, reason, message string) corev1.PodCondition {
	c := corev1.PodCondition{Type: t, Status: corev1.ConditionTrue}
	if !ok {
		c.Status, c.Reason, c.Message = corev1.ConditionFalse, reason, message
	}
	return c
}

func find(list []corev1.PodCondition, t corev1.PodConditionType) *corev1.PodCondition {
	if i := slices.IndexFunc(list, func(c corev1.PodCondition) bool { return c.Type == t }); i >= 0 {
		return &list[i]
	}
	return nil
}

func hasTrue(list []corev1.PodCondition, t corev1.PodConditionType) bool {
	c := find(list, t)
	return c != nil && c.Status == corev1.ConditionTrue
}

func initReason(s podState) string {
	if s.initOK {
		return ""
	}
	return "ContainersNotInitialized"
}

func initMessage(s podState) string {
	var open []string
	for _, c := range s.init {
		if c.State.Terminated == nil || c.State.Terminated.ExitCode != 0 {
			open = append(open, c.Name)
		}
	}
	return fmt.Sprintf("containers with incomplete status: [%s]", strings.Join(open, " "))
}
