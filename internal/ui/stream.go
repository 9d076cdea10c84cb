package ui

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"time"
)

const (
	// lookEvery is how often the hub looks for changes while somebody listens, beatEvery how often it says that it lives.
	lookEvery, beatEvery = time.Second, 15 * time.Second
	// maxStreams bounds the browsers that listen.
	maxStreams = 500
)

// hub tells browsers which topics have changed; they ask again for what they show. It looks once for all of them, and only while there is one.
type hub struct {
	ctx        context.Context //nolint:containedctx // of the streams, which outlive no server
	signatures func(ctx context.Context) map[string]string

	mu        sync.Mutex
	listeners map[chan []string]bool
	last      map[string]string
}

func newHub(ctx context.Context, signatures func(context.Context) map[string]string) *hub {
	h := &hub{ctx: ctx, signatures: signatures, listeners: map[chan []string]bool{}}
	go h.run()
	return h
}

func (h *hub) run() {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-h.ctx.Done():
			return
		case <-tick.C:
		}
		h.mu.Lock()
		n := len(h.listeners)
		h.mu.Unlock()
		if n > 0 {
			h.look()
		}
	}
}

func (h *hub) look() {
	now := h.signatures(h.ctx)
	h.mu.Lock()
	defer h.mu.Unlock()
	var changed []string
	for topic, s := range now {
		if h.last != nil && h.last[topic] != s {
			changed = append(changed, topic)
		}
	}
	h.last = now
	if len(changed) == 0 {
		return
	}
	for l := range h.listeners {
		select {
		case l <- changed:
		default: // it has not read the last one yet: tell it of everything
			select {
			case <-l:
			default:
			}
			l <- []string{"*"}
		}
	}
}

func (h *hub) listen() (topics chan []string, leave func(), ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.listeners) >= maxStreams {
		return nil, nil, false
	}
	l := make(chan []string, 1)
	if len(h.listeners) == 0 {
		h.last = nil // nobody looked meanwhile
	}
	h.listeners[l] = true
	return l, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.listeners, l)
	}, true
}

// serve is one stream: server-sent events "changed" with the topics, and a comment as heartbeat. Who reconnects is told that everything may have changed.
func (h *hub) serve(w http.ResponseWriter, r *http.Request) {
	topics, leave, ok := h.listen()
	if !ok {
		answerError(w, http.StatusServiceUnavailable, fmt.Sprintf("%d browsers listen already", maxStreams))
		return
	}
	defer leave()
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	out := http.NewResponseController(w)
	_ = out.SetWriteDeadline(time.Time{})
	say := func(text string) bool {
		if _, err := w.Write([]byte(text)); err != nil {
			return false
		}
		return out.Flush() == nil
	}
	if !say("retry: 2000\nevent: changed\ndata: [\"*\"]\n\n") {
		return
	}
	beat := time.NewTicker(beatEvery)
	defer beat.Stop()
	for {
		select {
		case <-h.ctx.Done():
			return
		case <-r.Context().Done():
			return
		case <-beat.C:
			if !say(": alive\n\n") {
				return
			}
		case changed := <-topics:
			raw, err := json.Marshal(changed)
			if err != nil || !say("event: changed\ndata: "+string(raw)+"\n\n") {
				return
			}
		}
	}
}
