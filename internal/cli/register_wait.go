package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"sigs.k8s.io/controller-runtime/pkg/client"

	adminv2 "ambitmesh.dev/ambit/api/admin/v2"
)

// awaitConnected watches the KubernetesCluster until its agent has a session. On a second run it first awaits the agent's rollout,
// since until then the session is the old Pod's.
func (r *registering) awaitConnected(ctx context.Context) error {
	if r.plan.Connected {
		if err := r.remote.awaitRollout(ctx, r.remoteNamespace, agentName); err != nil {
			return r.explain(ctx, err)
		}
	}
	r.out.note("waiting for the agent to connect")
	var lastSaid string
	kc, err := awaitObject(ctx, r.mgmt, &adminv2.KubernetesClusterList{}, r.mgmtNamespace, string(r.name), func(kc *adminv2.KubernetesCluster) (bool, error) {
		if said := refusal(kc); said != "" && said != lastSaid {
			lastSaid = said
			r.out.warn("%s", said)
		}
		return kc.Status.Connection == adminv2.ConnectionConnected && (kc.Status.ClusterUID == "" || kc.Status.ClusterUID == string(r.facts.RemoteUID)), nil
	})
	if err != nil {
		return r.explain(ctx, err)
	}
	r.report.Status, r.report.AgentVersion = string(kc.Status.Connection), kc.Status.AgentVersion
	r.out.fine("%s is Connected (agent %s)", r.name, firstOf(kc.Status.AgentVersion, "of unknown version"))
	return nil
}

// refusal is what the management server says against the agent.
func refusal(kc *adminv2.KubernetesCluster) string {
	for _, c := range kc.Status.Conditions {
		if c.Status == "False" && (c.Type == adminv2.ConditionIdentityVerified || c.Type == adminv2.ConditionVersionSupported || c.Type == adminv2.ConditionClockSynchronised) {
			return fmt.Sprintf("%s: %s", c.Reason, c.Message)
		}
	}
	return ""
}

// errGone: the awaited object was deleted.
var errGone = errors.New("it was deleted meanwhile")

// awaitObject lists and watches one object until ok likes it.
func awaitObject[T client.Object](ctx context.Context, c *cluster, list client.ObjectList, namespace, name string, ok func(T) (bool, error)) (T, error) {
	var zero, seen T
	options := []client.ListOption{client.InNamespace(namespace), client.MatchingFieldsSelector{Selector: fields.OneTermEqualSelector("metadata.name", name)}}
	for attempt := 0; ; attempt++ {
		if attempt > 0 {
			select {
			case <-ctx.Done():
				return seen, ctx.Err()
			case <-time.After(200 * time.Millisecond):
			}
		}
		w, err := c.Watch(ctx, list.DeepCopyObject().(client.ObjectList), options...)
		if err != nil {
			if ctx.Err() != nil {
				return seen, ctx.Err()
			}
			continue
		}
		for event := range w.ResultChan() {
			object, isT := event.Object.(T)
			if !isT {
				break // an error event, such as an expired watch: watch anew
			}
			if event.Type == "DELETED" {
				w.Stop()
				return zero, errGone
			}
			seen = object
			if fine, err := ok(object); err != nil || fine {
				w.Stop()
				return object, err
			}
		}
		w.Stop()
		if ctx.Err() != nil {
			return seen, ctx.Err()
		}
	}
}

// awaitRollout waits until the newest Pods of a Deployment are available.
func (c *cluster) awaitRollout(ctx context.Context, namespace, name string) error {
	_, err := awaitObject(ctx, c, &appsv1.DeploymentList{}, namespace, name, func(d *appsv1.Deployment) (bool, error) { return rolledOut(d), nil })
	return err
}

func rolledOut(d *appsv1.Deployment) bool {
	want := int32(1)
	if d.Spec.Replicas != nil {
		want = *d.Spec.Replicas
	}
	s := d.Status
	// Of several management servers only the leader is Ready.
	return s.ObservedGeneration >= d.Generation && s.UpdatedReplicas >= want && s.Replicas == s.UpdatedReplicas && s.AvailableReplicas >= min(want, 1)
}

// programFacts is what can be seen of an agent that does not connect, or of a server that is not ready.
type programFacts struct {
	Cluster    *adminv2.KubernetesCluster
	Deployment *appsv1.Deployment
	Pods       []corev1.Pod
	Events     []corev1.Event
	Log        string
	Address    string
	Restarted  bool // the log is of a container that ended
}

// explain says why the agent is not connected and how to go on; all was done, so the exit code is ExitNotReached.
func (r *registering) explain(ctx context.Context, cause error) error {
	if errors.Is(cause, errGone) {
		return fmt.Errorf("KubernetesCluster %s on %s was deleted while its agent was awaited: somebody deregistered it. Remove the agent with: %s", r.name, r.mgmt.Context, r.undo())
	}
	if !errors.Is(cause, context.DeadlineExceeded) && !errors.Is(cause, context.Canceled) {
		return r.halfWay(cause)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second) // the time of the command itself is up
	defer cancel()
	f := r.remote.programFacts(ctx, r.remoteNamespace, agentName)
	f.Address = r.address
	kc := &adminv2.KubernetesCluster{}
	if ok, err := r.mgmt.found(ctx, r.mgmtNamespace, string(r.name), kc); ok && err == nil {
		f.Cluster = kc
		r.report.Status = string(kc.Status.Connection)
	}
	why, hints := diagnose(f)
	r.report.Hints = hints
	var b strings.Builder
	fmt.Fprintf(&b, "%s is installed but not Connected after %s: %s\n", r.name, short(r.out.elapsed()), why)
	for _, hint := range hints {
		fmt.Fprintf(&b, "    %s\n", hint)
	}
	fmt.Fprintf(&b, "The agent goes on trying. See it:  kubectl --context %s -n %s logs deployment/%s\nAfter mending the cause, run the same command again, or undo it: %s",
		r.remote.Context, r.remoteNamespace, agentName, r.undo())
	return notReached(errors.New(b.String()))
}

// programFacts looks at a program of ours; what can't be read is left out.
func (c *cluster) programFacts(ctx context.Context, namespace, name string) *programFacts {
	f := &programFacts{}
	var d appsv1.Deployment
	if ok, err := c.found(ctx, namespace, name, &d); ok && err == nil {
		f.Deployment = &d
	}
	var pods corev1.PodList
	if c.List(ctx, &pods, client.InNamespace(namespace), client.MatchingLabels{"app": name}) == nil {
		f.Pods = pods.Items
		slices.SortFunc(f.Pods, func(a, b corev1.Pod) int { return b.CreationTimestamp.Compare(a.CreationTimestamp.Time) })
	}
	var events corev1.EventList
	if c.List(ctx, &events, client.InNamespace(namespace)) == nil {
		for _, e := range events.Items {
			if e.Type == corev1.EventTypeWarning && strings.HasPrefix(e.InvolvedObject.Name, name) {
				f.Events = append(f.Events, e)
			}
		}
		slices.SortFunc(f.Events, func(a, b corev1.Event) int { return b.LastTimestamp.Compare(a.LastTimestamp.Time) })
	}
	if len(f.Pods) > 0 {
		f.Restarted = slices.ContainsFunc(f.Pods[0].Status.ContainerStatuses, func(s corev1.ContainerStatus) bool { return s.State.Running == nil && s.RestartCount > 0 })
		f.Log = c.logTail(ctx, namespace, f.Pods[0].Name, f.Restarted)
	}
	return f
}

func (c *cluster) logTail(ctx context.Context, namespace, pod string, previous bool) string {
	lines := int64(8)
	stream, err := c.Typed.CoreV1().Pods(namespace).GetLogs(pod, &corev1.PodLogOptions{TailLines: &lines, Previous: previous}).Stream(ctx)
	if err != nil {
		return ""
	}
	defer stream.Close()
	raw, _ := io.ReadAll(io.LimitReader(stream, 16<<10))
	return strings.TrimSpace(string(raw))
}

// diagnose names the first cause in the order in which things have to work, with what to do about it.
func diagnose(f *programFacts) (why string, hints []string) {
	if f.Deployment == nil {
		return "its Deployment is gone", []string{"somebody or something (GitOps?) removed it after it was installed"}
	}
	defer func() {
		for i, e := range f.Events {
			if i == 3 {
				break
			}
			hints = append(hints, fmt.Sprintf("event %s: %s", e.Reason, e.Message))
		}
		for line := range strings.Lines(f.Log) {
			hints = append(hints, "log: "+strings.TrimSpace(line))
		}
	}()
	if len(f.Pods) == 0 {
		for _, c := range f.Deployment.Status.Conditions {
			if c.Type == appsv1.DeploymentReplicaFailure && c.Status == corev1.ConditionTrue {
				return "its Pod can't be created: " + c.Message, nil
			}
		}
		return "it has no Pod", []string{"does the cluster's controller manager run? does a quota or an admission policy refuse the Pod?"}
	}
	pod := f.Pods[0]
	for _, s := range pod.Status.ContainerStatuses {
		switch {
		case s.State.Waiting != nil && strings.Contains(s.State.Waiting.Reason, "Image") || s.State.Waiting != nil && s.State.Waiting.Reason == "ErrImagePull":
			return fmt.Sprintf("the image %s can't be pulled (%s)", s.Image, s.State.Waiting.Reason),
				[]string{firstOf(s.State.Waiting.Message, "no message"), "is --version right? set another registry: --set common.imageRegistry=..., or pull secrets: --set common.imagePullSecrets[0].name=..."}
		case s.State.Waiting != nil && s.State.Waiting.Reason != "ContainerCreating" && s.State.Waiting.Reason != "PodInitializing":
			return fmt.Sprintf("its container does not run (%s)", s.State.Waiting.Reason), nonEmpty(s.State.Waiting.Message)
		case s.State.Terminated != nil:
			return fmt.Sprintf("its container ended with code %d (%s)", s.State.Terminated.ExitCode, s.State.Terminated.Reason), nonEmpty(s.State.Terminated.Message)
		}
	}
	if pod.Status.Phase == corev1.PodPending {
		for _, c := range pod.Status.Conditions {
			if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
				return "its Pod can't be scheduled: " + c.Message, nil
			}
		}
		return "its Pod is still starting", nil
	}
	if f.Cluster == nil {
		return "its KubernetesCluster is not there", nil
	}
	if said := refusal(f.Cluster); said != "" {
		return "the management server refuses it: " + said, nil
	}
	for _, c := range f.Cluster.Status.Conditions {
		if c.Type == adminv2.ConditionConnected && c.Status != "True" && c.Reason != "" && c.Reason != "NeverConnected" && f.Cluster.Status.Connection != adminv2.ConnectionPending {
			return fmt.Sprintf("%s: %s", c.Reason, c.Message), nil
		}
	}
	if f.Cluster.Status.Common.State.Approval == "" {
		return "the management server has not looked at the KubernetesCluster", []string{"is it running? meshctl check"}
	}
	return "the agent runs, but the management server has not heard of it",
		[]string{fmt.Sprintf("can the cluster reach %s? a firewall, a security group or an address that only works inside the management cluster's network are the usual causes; another address: --relay-server-address HOST:PORT", f.Address)}
}

func nonEmpty(s string) []string {
	if s == "" {
		return nil
	}
	return []string{s}
}
