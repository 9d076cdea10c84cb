package daemon

import (
	"context"
	"sync"
	"time"
)

// Kinds of Event.
const (
	KindStep   = "step"
	KindReady  = "ready"  // the lab is up; nothing follows
	KindFailed = "failed" // the start gave up; what runs goes on running
)

// Event is one line of a start's progress.
type Event struct {
	Kind    string  `json:"kind"`
	Seconds float64 `json:"seconds"` // since the daemon started
	Cluster string  `json:"cluster,omitempty"`
	Text    string  `json:"text"`
}

// progress keeps all events, so that whoever asks later sees them too.
type progress struct {
	start time.Time

	mu      sync.Mutex
	events  []Event
	changed chan struct{}
}

func newProgress() *progress {
	return &progress{start: time.Now(), changed: make(chan struct{})}
}

func (p *progress) add(kind, cluster, text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.events = append(p.events, Event{Kind: kind, Seconds: time.Since(p.start).Seconds(), Cluster: cluster, Text: text})
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *progress) step(cluster, text string) { p.add(KindStep, cluster, text) }

// follow calls each with every event from the first to the last, as they come.
func (p *progress) follow(ctx context.Context, each func(Event) error) error {
	for i := 0; ; {
		p.mu.Lock()
		news, changed := p.events[i:], p.changed
		p.mu.Unlock()
		for _, e := range news {
			if err := each(e); err != nil {
				return err
			}
			if e.Kind != KindStep {
				return nil
			}
		}
		i += len(news)
		if len(news) > 0 {
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// phase is the state of the start: starting, ready or failed, and why.
func (p *progress) phase() (phase, detail string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.events) > 0 {
		if e := p.events[len(p.events)-1]; e.Kind != KindStep {
			return e.Kind, e.Text
		}
	}
	return "starting", ""
}
