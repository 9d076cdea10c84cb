package relay

import (
	"sync"
	"time"

	relayv1 "ambitmesh.dev/ambit/api/relay/v1"
	"ambitmesh.dev/ambit/internal/relay/synclog"
)

const (
	// window is how many bytes may be on their way without an acknowledgement.
	window = 1 << 20
	// ackTimeout is how long a peer may acknowledge nothing while something is on its way. A heartbeat proves that it lives, not that
	// it listens.
	ackTimeout = 60 * time.Second
)

// pump sends a Source to one peer, no faster than the peer acknowledges. Its own memory is a few numbers: what has not been sent
// stays in the Source, where a key that changes again replaces its former value.
type pump struct {
	source *synclog.Source
	cursor *synclog.Cursor

	mu       sync.Mutex
	sizes    []int // of chunks on their way, oldest first
	inFlight int
	acked    uint64 // chunks
	moved    time.Time
	room     chan struct{} // a token whenever the window has been widened
}

func newPump(source *synclog.Source, held synclog.Position) *pump {
	return &pump{source: source, cursor: source.Cursor(held), room: make(chan struct{}, 1)}
}

// next gives the next chunk to send, or nil if all is sent or the window is full.
func (p *pump) next(now time.Time) *relayv1.Chunk {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.inFlight >= window {
		return nil
	}
	c, ok := p.cursor.Next()
	if !ok {
		return nil
	}
	size := 64
	for _, it := range c.Items {
		size += 32 + len(it.Type) + len(it.Name) + len(it.Value)
	}
	if len(p.sizes) == 0 {
		p.moved = now
	}
	p.sizes = append(p.sizes, size)
	p.inFlight += size
	return fromChunk(c)
}

// ack takes note that the peer has received so many chunks in all; false if it claims more than were sent.
func (p *pump) ack(chunks uint64, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if chunks < p.acked {
		return true
	}
	n := chunks - p.acked
	if n > uint64(len(p.sizes)) {
		return false
	}
	for _, size := range p.sizes[:n] {
		p.inFlight -= size
	}
	p.sizes = append(p.sizes[:0], p.sizes[n:]...)
	p.acked = chunks
	p.moved = now
	select {
	case p.room <- struct{}{}:
	default:
	}
	return true
}

// stalled reports whether the peer takes nothing although something is on its way.
func (p *pump) stalled(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.sizes) > 0 && now.Sub(p.moved) > ackTimeout
}

// outbox holds what else is to be sent to the peer: of each kind only the latest, so that it can't grow either.
type outbox[T any] struct {
	mu    sync.Mutex
	slots []T
	full  []bool
	ready chan struct{}
}

func newOutbox[T any](kinds int) *outbox[T] {
	return &outbox[T]{slots: make([]T, kinds), full: make([]bool, kinds), ready: make(chan struct{}, 1)}
}

func (o *outbox[T]) put(kind int, m T) {
	o.mu.Lock()
	o.slots[kind], o.full[kind] = m, true
	o.mu.Unlock()
	select {
	case o.ready <- struct{}{}:
	default:
	}
}

// take returns what is due, lower kinds first.
func (o *outbox[T]) take() []T {
	o.mu.Lock()
	defer o.mu.Unlock()
	var out []T
	for kind, full := range o.full {
		if full {
			out = append(out, o.slots[kind])
			o.full[kind] = false
		}
	}
	return out
}
