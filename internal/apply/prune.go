package apply

import (
	"context"
	"errors"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"ambitmesh.dev/ambit/internal/mesh"
)

// prune deletes what is ours and no longer desired; done means that it need not be listed any more.
func (a *Applier) prune(ctx context.Context, ref mesh.Ref) (done bool) {
	err := a.remove(ctx, ref)
	if ctx.Err() != nil {
		return false
	}
	if err == nil || errors.As(err, new(unknownKind)) {
		return true
	}
	a.cfg.Log.Warn("an object that is no longer desired could not be deleted", "object", ref.String(), "error", err)
	a.mu.Lock()
	k := a.state[ref]
	k.tries++
	k.next = time.Now().Add(backOff(k.tries))
	a.state[ref] = k
	a.mu.Unlock()
	return false
}

func (a *Applier) remove(ctx context.Context, ref mesh.Ref) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	client, res, err := a.client(ctx, ref)
	if err != nil {
		return err
	}
	live, err := client.Get(ctx, ref.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return explain(ref, "get", res, err)
	case live.GetLabels()[OwnerLabel] != OwnerValue:
		a.cfg.Log.Info("an object that is no longer desired is left: somebody took our owner label off", "object", ref.String())
		return nil
	}
	uid := live.GetUID()
	err = client.Delete(ctx, ref.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
	if err != nil && !apierrors.IsNotFound(err) {
		return explain(ref, "delete", res, err)
	}
	a.cfg.Log.Info("an object that is no longer desired was deleted", "object", ref.String())
	return nil
}
