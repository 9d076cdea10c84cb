package report

import (
	"fmt"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
	networkingv2alpha1 "ambitmesh.dev/ambit/api/networking/v2alpha1"
	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/translate"
)

// maxSentences bounds how much one message says.
const maxSentences = 5

// NextSegment is the status that says what was decided about a Segment (r) and what was seen of it in the clusters.
func NextSegment(old networkingv2alpha1.SegmentStatus, seg *mesh.Segment, r *translate.SegmentReport, clusters []networkingv2alpha1.SegmentClusterStatus, now time.Time) networkingv2alpha1.SegmentStatus {
	st := *old.DeepCopy()
	st.Clusters = clusters
	set := func(kind string, ok bool, reason, message string) {
		status := metav1.ConditionFalse
		if ok {
			status = metav1.ConditionTrue
		}
		meta.SetStatusCondition(&st.Conditions, metav1.Condition{Type: kind, Status: status, Reason: reason, Message: message, ObservedGeneration: seg.Generation, LastTransitionTime: metav1.NewTime(now.Truncate(time.Second))})
	}
	state := adminv2.State{ObservedGeneration: seg.Generation, Approval: adminv2.ApprovalAccepted}
	warn := func(message string) {
		if state.Approval = adminv2.ApprovalWarning; state.Message == "" {
			state.Message = message
		}
	}
	switch {
	case r.Invalid != "":
		state.Approval, state.Message = adminv2.ApprovalInvalid, r.Invalid
		set(networkingv2alpha1.ConditionAccepted, false, networkingv2alpha1.ReasonInvalid, r.Invalid)
	case len(r.Conflicts) > 0:
		warn(sentences(r.Conflicts))
		set(networkingv2alpha1.ConditionAccepted, false, networkingv2alpha1.ReasonHostConflict, sentences(r.Conflicts))
	default:
		set(networkingv2alpha1.ConditionAccepted, true, networkingv2alpha1.ReasonValid, "")
	}
	switch {
	case len(r.Real) == 0:
		message := "no Service of any cluster is selected: " + selectorText(seg.Spec.Selector)
		if r.Invalid == "" {
			warn(message)
		}
		set(networkingv2alpha1.ConditionResolved, false, networkingv2alpha1.ReasonNoServices, message)
	default:
		message := sentences(r.Problems)
		if message != "" {
			warn(message)
		}
		set(networkingv2alpha1.ConditionResolved, true, networkingv2alpha1.ReasonResolved, message)
	}
	var pending, unsupported []string
	for i, c := range clusters {
		if c.Programmed {
			continue
		}
		pending = append(pending, c.Name+": "+c.Message)
		if i < len(clusters) && strings.HasPrefix(c.Message, "its istiod does not honour") {
			unsupported = append(unsupported, c.Name+": "+c.Message)
		}
	}
	switch {
	case len(r.Real) == 0:
		set(networkingv2alpha1.ConditionProgrammed, false, networkingv2alpha1.ReasonNoServices, "there is nothing to serve")
	case len(unsupported) > 0:
		warn(sentences(unsupported))
		set(networkingv2alpha1.ConditionProgrammed, false, networkingv2alpha1.ReasonClustersUnsupported, sentences(unsupported))
	case len(pending) > 0:
		set(networkingv2alpha1.ConditionProgrammed, false, networkingv2alpha1.ReasonClustersPending, sentences(pending))
	default:
		set(networkingv2alpha1.ConditionProgrammed, true, networkingv2alpha1.ReasonProgrammed, "")
	}
	st.Common.State = state
	return st
}

func sentences(list []string) string {
	if len(list) > maxSentences {
		return strings.Join(list[:maxSentences], "; ") + fmt.Sprintf("; and %d more", len(list)-maxSentences)
	}
	return strings.Join(list, "; ")
}

func selectorText(s networkingv2alpha1.SegmentSelector) string {
	var parts []string
	if s.Namespace != "" {
		parts = append(parts, "namespace "+s.Namespace)
	}
	if len(s.Labels) > 0 {
		parts = append(parts, "labels "+metav1.FormatLabelSelector(&metav1.LabelSelector{MatchLabels: s.Labels}))
	}
	return strings.Join(parts, ", ")
}
