// Package probe decides from the answers of a container whether it has started, is ready and is alive.
//
// What goes in: a probe of a Pod's specification and a Target to ask. What comes out: changes of opinion.
// What it must not do: act on them.
package probe

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Tracker turns single answers into an opinion by the probe's thresholds. It is pure.
type Tracker struct {
	// Healthy is the opinion; its initial value is the caller's: false for startup and readiness, true for liveness.
	Healthy          bool
	SuccessThreshold int32
	FailureThreshold int32
	run              int32 // answers in a row that equal last
	last             bool
	undecided        bool // no opinion yet, so that either is a change
}

// NewTracker takes the thresholds of p, with the API's defaults for zero.
func NewTracker(p *corev1.Probe, healthy bool) *Tracker {
	return &Tracker{Healthy: healthy, SuccessThreshold: max(p.SuccessThreshold, 1), FailureThreshold: def(p.FailureThreshold, 3)}
}

// Observe records one answer and reports whether it changes the opinion.
func (t *Tracker) Observe(ok bool) (changed bool) {
	if ok != t.last || t.run == 0 {
		t.last, t.run = ok, 0
	}
	t.run++
	threshold := t.SuccessThreshold
	if !ok {
		threshold = t.FailureThreshold
	}
	if t.run < threshold {
		return false
	}
	changed = t.Healthy != ok || t.undecided
	t.Healthy, t.undecided = ok, false
	return changed
}

// Kind is which of the three probes it is.
type Kind string

// The kinds of probes.
const (
	Startup   Kind = "Startup"
	Readiness Kind = "Readiness"
	Liveness  Kind = "Liveness"
)

// An unready container is asked more often at first, whatever the period of its readiness probe: in a lab people wait for
// it. It can't change the outcome, since failures of a readiness probe count only once it has passed.
const (
	eagerFirst = 20 * time.Millisecond
	eagerMax   = 500 * time.Millisecond // reached by doubling
	eagerFor   = 30 * time.Second
)

// Check asks once; output explains a failure.
type Check func(ctx context.Context) (ok bool, output string)

// Report is told failed answers (with changed false or true) and every change of opinion.
type Report func(healthy, changed bool, output string)

// Run asks check by the schedule of p until ctx ends.
func Run(ctx context.Context, kind Kind, p *corev1.Probe, check Check, report Report) {
	t := NewTracker(p, kind == Liveness)
	t.undecided = kind == Startup
	period := time.Duration(def(p.PeriodSeconds, 10)) * time.Second
	timeout := time.Duration(def(p.TimeoutSeconds, 1)) * time.Second
	if !sleep(ctx, time.Duration(p.InitialDelaySeconds)*time.Second) {
		return
	}
	began, eager := time.Now(), eagerFirst
	reported := began
	for {
		asking, cancel := context.WithTimeout(ctx, timeout)
		ok, output := check(asking)
		cancel()
		if ctx.Err() != nil {
			return
		}
		changed := t.Observe(ok)
		// Failures while being eager are not news; those by the schedule are.
		if changed || !ok && time.Since(reported) >= period/2 {
			report(t.Healthy, changed, output)
			reported = time.Now()
		}
		wait := period
		if kind == Readiness && !t.Healthy && time.Since(began) < eagerFor {
			wait = min(wait, eager)
			eager = min(2*eager, eagerMax)
		}
		if !sleep(ctx, wait) {
			return
		}
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

func def(v, d int32) int32 {
	if v == 0 {
		return d
	}
	return v
}
