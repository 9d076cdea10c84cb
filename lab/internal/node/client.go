package node

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/record"
)

// newClient reads a kubeconfig. Limits are generous: the lab's node must not be what people wait for.
func newClient(kubeconfig string) (kubernetes.Interface, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, err
	}
	cfg.QPS, cfg.Burst = 200, 400
	cfg.UserAgent = "ambit-lab-node"
	cfg.ContentConfig = rest.ContentConfig{ContentType: runtime.ContentTypeProtobuf, AcceptContentTypes: runtime.ContentTypeProtobuf + ",application/json"}
	return kubernetes.NewForConfig(cfg)
}

// trim drops from cached objects what the node never reads.
func trim(obj any) (any, error) {
	if m, err := meta.Accessor(obj); err == nil {
		m.SetManagedFields(nil)
	}
	if s, ok := obj.(*corev1.Secret); ok && s.Type == "helm.sh/release.v1" {
		s.Data = nil // up to a megabyte each, and never mounted
	}
	return obj, nil
}

// podClient gives virtual-kubelet's Pod controller a client whose UpdateStatus patches the status alone. The controller
// writes whole Pods as it last saw them, which would bring back labels, annotations and finalizers that others removed.
type podClient struct{ corev1client.PodsGetter }

// Pods implements corev1client.PodsGetter.
func (c podClient) Pods(namespace string) corev1client.PodInterface {
	return statusPatcher{c.PodsGetter.Pods(namespace)}
}

type statusPatcher struct{ corev1client.PodInterface }

// UpdateStatus implements corev1client.PodInterface.
func (c statusPatcher) UpdateStatus(ctx context.Context, pod *corev1.Pod, _ metav1.UpdateOptions) (*corev1.Pod, error) {
	return pod, patchStatus(ctx, c.PodInterface, pod)
}

// patchStatus replaces the status of pod, provided it is still the same Pod.
func patchStatus(ctx context.Context, pods corev1client.PodInterface, pod *corev1.Pod) error {
	raw, err := json.Marshal(pod.Status)
	if err != nil {
		return err
	}
	status := map[string]any{}
	if err := json.Unmarshal(raw, &status); err != nil {
		return err
	}
	// A merge patch removes only what it names.
	for _, field := range []string{"reason", "message"} {
		if _, ok := status[field]; !ok {
			status[field] = nil
		}
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": pod.UID}, "status": status})
	if err != nil {
		return err
	}
	_, err = pods.Patch(ctx, pod.Name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
	return err
}

// kubeletEvents passes on the node's own events and drops those of virtual-kubelet's Pod controller, which say nothing that
// a person who knows the kubelet's would look for.
type kubeletEvents struct{ record.EventRecorder }

// Event implements record.EventRecorder.
func (e kubeletEvents) Event(obj runtime.Object, kind, reason, message string) {
	if !strings.HasPrefix(reason, "Provider") {
		e.EventRecorder.Event(obj, kind, reason, message)
	}
}

// Eventf implements record.EventRecorder.
func (e kubeletEvents) Eventf(obj runtime.Object, kind, reason, format string, args ...any) {
	if !strings.HasPrefix(reason, "Provider") {
		e.EventRecorder.Eventf(obj, kind, reason, format, args...)
	}
}

// keepTrying never gives up on a Pod: the API server may be away for longer than virtual-kubelet's twenty attempts last.
func keepTrying(_ context.Context, _ string, tries int, _ time.Time, _ error) (*time.Duration, error) {
	d := min(50*time.Millisecond<<min(tries, 7), 5*time.Second)
	return &d, nil
}
