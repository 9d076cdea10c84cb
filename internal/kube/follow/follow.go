// Package follow tells what objects of one resource there are, and every change of them, for as long as it runs.
//
// In: a client of one resource and a selection. Out: calls of a Sink, never two at a time: Set for what is there, Gone for what no longer is, Listed when the whole
// has been told once (again). It never polls, and keeps no object: a list is read in small pages and handed on piece by piece, so that memory does
// not grow with the cluster, as it does with a client-go reflector, which holds a whole list at once.
// It must not interpret an object, and must not write.
package follow

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
)

// Sink is told. The objects are its to keep or to change.
type Sink interface {
	// Set tells of an object that is new, has changed, or is among those listed.
	Set(u *unstructured.Unstructured)
	// Gone tells of an object that was deleted, or that the selection no longer covers.
	Gone(u *unstructured.Unstructured)
	// Listed tells that every object there is has been Set; present holds their names ("namespace/name", or "name").
	// What a Sink knows beyond them went while nobody looked.
	Listed(present map[string]bool)
}

// Config says what to follow.
type Config struct {
	Client dynamic.ResourceInterface
	Name   string // of the resource, for the log
	Labels string // label selector
	Fields string // field selector
	// Optional: the kind may be unknown to the cluster (its CRD is missing). Then there are none, and it is looked for again every half minute.
	Optional bool
	// Failed, if set, is told why following does not work at present, and nil when it works again.
	Failed func(error)
	Log    *slog.Logger
}

const (
	page        = 100
	backoffMin  = 500 * time.Millisecond
	backoffMax  = 15 * time.Second
	lookAgain   = 30 * time.Second // for a kind that is missing
	listTimeout = 30 * time.Second // a page
)

// errMissing says that the cluster does not know an optional kind.
var errMissing = errors.New("kind is not known to this cluster")

// Name is the name by which Listed calls an object.
func Name(u *unstructured.Unstructured) string {
	if ns := u.GetNamespace(); ns != "" {
		return ns + "/" + u.GetName()
	}
	return u.GetName()
}

// Run follows until ctx ends.
func Run(ctx context.Context, cfg Config, sink Sink) {
	f := &follower{cfg: cfg, sink: sink}
	failures := 0
	for ctx.Err() == nil {
		began := time.Now()
		err := f.round(ctx)
		if ctx.Err() != nil {
			return
		}
		wait := time.Duration(0)
		switch {
		case errors.Is(err, errMissing):
			f.failed(nil)
			failures, wait = 0, lookAgain+rand.N(lookAgain/4) //nolint:gosec // spreads load, guards nothing
		case err == nil: // the watch had been silent for so long that its place is no longer known: a new list, now
			failures = 0
		default:
			if time.Since(began) > time.Minute {
				failures = 0
			}
			failures++
			f.failed(err)
			wait = backoff(failures)
		}
		if !sleep(ctx, wait) {
			return
		}
	}
}

type follower struct {
	cfg  Config
	sink Sink
	said string // the trouble that was logged last; empty: none
}

// failed logs a trouble once, and its end.
func (f *follower) failed(err error) {
	if f.cfg.Failed != nil {
		f.cfg.Failed(err)
	}
	switch {
	case err == nil && f.said != "":
		f.cfg.Log.Info("watching again", "resource", f.cfg.Name)
		f.said = ""
	case err != nil && err.Error() != f.said:
		f.cfg.Log.Warn("changes can't be watched at present; trying again", "resource", f.cfg.Name, "error", err)
		f.said = err.Error()
	}
}

// round lists, then watches until the watch can't go on where it was. nil: list anew at once.
func (f *follower) round(ctx context.Context) error {
	version, err := f.list(ctx)
	if err != nil {
		return err
	}
	f.failed(nil)
	for {
		began := time.Now()
		next, err := f.watch(ctx, version)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case apierrors.IsResourceExpired(err) || apierrors.IsGone(err):
			return nil
		case err != nil:
			return fmt.Errorf("watch %s: %w", f.cfg.Name, err)
		case next == version && time.Since(began) < time.Second:
			return fmt.Errorf("watch %s: ended at once", f.cfg.Name)
		}
		version = next
	}
}

func (f *follower) options() metav1.ListOptions {
	return metav1.ListOptions{LabelSelector: f.cfg.Labels, FieldSelector: f.cfg.Fields}
}

// list tells all there is and returns the version to watch from.
func (f *follower) list(ctx context.Context) (string, error) {
	present := map[string]bool{}
	opts := f.options()
	opts.Limit = page
	for {
		list, err := f.page(ctx, opts)
		if apierrors.IsNotFound(err) && f.cfg.Optional {
			f.sink.Listed(map[string]bool{})
			return "", errMissing
		}
		if err != nil {
			return "", fmt.Errorf("list %s: %w", f.cfg.Name, err)
		}
		for i := range list.Items {
			u := &list.Items[i]
			present[Name(u)] = true
			f.sink.Set(u)
		}
		if opts.Continue = list.GetContinue(); opts.Continue == "" {
			f.sink.Listed(present)
			return list.GetResourceVersion(), nil
		}
	}
}

func (f *follower) page(ctx context.Context, opts metav1.ListOptions) (*unstructured.UnstructuredList, error) {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	return f.cfg.Client.List(ctx, opts)
}

// watch tells changes after version until the server ends it, and returns the version reached.
func (f *follower) watch(ctx context.Context, version string) (string, error) {
	opts := f.options()
	seconds := int64(300 + rand.N(300)) //nolint:gosec // spreads load, guards nothing
	opts.ResourceVersion, opts.AllowWatchBookmarks, opts.TimeoutSeconds = version, true, &seconds
	w, err := f.cfg.Client.Watch(ctx, opts)
	if err != nil {
		return version, err
	}
	defer w.Stop()
	for e := range w.ResultChan() {
		if e.Type == watch.Error {
			return version, apierrors.FromObject(e.Object)
		}
		u, ok := e.Object.(*unstructured.Unstructured)
		if !ok {
			return version, fmt.Errorf("%s brought a %T: %w", e.Type, e.Object, io.ErrUnexpectedEOF)
		}
		version = u.GetResourceVersion()
		switch e.Type {
		case watch.Added, watch.Modified:
			f.sink.Set(u)
		case watch.Deleted:
			f.sink.Gone(u)
		default: // a bookmark: only its version counts
		}
	}
	return version, nil
}

// backoff is full jitter over a doubling ceiling, but never next to nothing.
func backoff(failures int) time.Duration {
	ceiling := min(backoffMin<<min(failures, 10), backoffMax)
	return ceiling/4 + rand.N(ceiling*3/4) //nolint:gosec // spreads load, guards nothing
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
