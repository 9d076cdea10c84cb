package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// task is one thing that runs as long as the server does.
type task struct {
	name string
	run  func(context.Context) error
}

// runAll runs the tasks until the first ends; then all are stopped. The error names the task that failed first; it is nil when ctx ended.
// A task that returns nil before the end is fine: it had only something to begin.
func runAll(ctx context.Context, tasks []task) error {
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	var once sync.Once
	var first error
	var wg sync.WaitGroup
	for _, t := range tasks {
		wg.Go(func() {
			err := t.run(inner)
			if err == nil || ctx.Err() != nil && errors.Is(err, ctx.Err()) {
				return
			}
			once.Do(func() {
				if ctx.Err() == nil || !errors.Is(err, context.Canceled) {
					first = fmt.Errorf("%s: %w", t.name, err)
				}
				cancel()
			})
		})
	}
	wg.Wait()
	return first
}

// bell wakes a loop: rings are merged until it looks.
type bell chan struct{}

func newBell() bell { return make(bell, 1) }

func (b bell) ring() {
	select {
	case b <- struct{}{}:
	default:
	}
}

// persist calls f until it succeeds, with growing pauses up to 10 s, logging each new error once.
func persist(ctx context.Context, log *slog.Logger, what string, f func(context.Context) error) error {
	said := ""
	for pause := 200 * time.Millisecond; ; pause = min(2*pause, 10*time.Second) {
		err := f(ctx)
		if err == nil || ctx.Err() != nil {
			return ctx.Err()
		}
		if err.Error() != said {
			said = err.Error()
			log.Warn("trying again", "what", what, "error", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// every calls f at once, whenever b rings, and after each period. Errors are logged and f is called again after retry.
func every(ctx context.Context, b bell, period time.Duration, log *slog.Logger, what string, f func(context.Context) error) error {
	const retry = 5 * time.Second
	for {
		next := period
		if err := f(ctx); err != nil && ctx.Err() == nil {
			log.Warn("trying again", "what", what, "error", err)
			next = retry
		}
		select {
		case <-ctx.Done():
			return nil
		case <-b:
		case <-time.After(next):
		}
	}
}
