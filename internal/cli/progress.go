package cli

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// progress tells a person what was done, as it is done: one line per step, with the time since the start. Steps may end concurrently.
type progress struct {
	w      io.Writer
	plain  bool
	colour bool
	start  time.Time

	mu    sync.Mutex
	steps []step
}

// step is one line of the report, and one entry of the JSON document.
type step struct {
	Seconds float64 `json:"seconds"` // since the start
	Level   string  `json:"level"`   // ok, note or warning
	Text    string  `json:"text"`
	changed bool    // it is something that exists now, or is gone now
}

func (a *app) newProgress(w io.Writer) *progress {
	return &progress{w: w, plain: a.Plain, colour: a.streams.Terminal && !a.Plain, start: time.Now()}
}

func (p *progress) say(level string, changed bool, format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := step{Seconds: time.Since(p.start).Round(time.Millisecond).Seconds(), Level: level, Text: fmt.Sprintf(format, args...), changed: changed}
	p.steps = append(p.steps, s)
	fmt.Fprintf(p.w, "%6.1fs %s %s\n", s.Seconds, p.mark(level), s.Text)
}

func (p *progress) mark(level string) string {
	mark := map[string]string{"ok": "✓", "note": "·", "warning": "!", "error": "✗"}[level]
	if p.plain {
		return fmt.Sprintf("%-7s", level)
	}
	if !p.colour {
		return mark
	}
	return map[string]string{"ok": "\x1b[32m", "note": "\x1b[90m", "warning": "\x1b[33m", "error": "\x1b[31m"}[level] + mark + "\x1b[0m"
}

// done tells of something that was made or removed.
func (p *progress) done(format string, args ...any) { p.say("ok", true, format, args...) }

// fine tells of something that is as it should be.
func (p *progress) fine(format string, args ...any) { p.say("ok", false, format, args...) }

// note tells of something worth knowing.
func (p *progress) note(format string, args ...any) { p.say("note", false, format, args...) }

// warn tells of something to look at.
func (p *progress) warn(format string, args ...any) { p.say("warning", false, format, args...) }

// made returns what was made or removed so far, for the report of a failure.
func (p *progress) made() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []string
	for _, s := range p.steps {
		if s.changed {
			out = append(out, s.Text)
		}
	}
	return out
}

func (p *progress) all() []step {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]step(nil), p.steps...)
}

func (p *progress) elapsed() time.Duration { return time.Since(p.start) }
