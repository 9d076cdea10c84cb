package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// readiness collects what the server still waits for.
type readiness struct {
	mu      sync.Mutex
	waiting map[string]string
}

func newReadiness(names ...string) *readiness {
	r := &readiness{waiting: map[string]string{}}
	for _, n := range names {
		r.waiting[n] = "not yet"
	}
	return r
}

// set says why name is not ready; "" means that it is.
func (r *readiness) set(name, why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if why == "" {
		delete(r.waiting, name)
		return
	}
	r.waiting[name] = why
}

func (r *readiness) reasons() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	for n, why := range r.waiting {
		out = append(out, n+": "+why)
	}
	slices.Sort(out)
	return out
}

func healthHandler(ready *readiness) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if why := ready.reasons(); len(why) > 0 {
			http.Error(w, "not ready:\n"+strings.Join(why, "\n"), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	return mux
}

// serveHTTP serves plain HTTP until ctx ends.
func serveHTTP(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger) error {
	s := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() }) // probes and scrapes need no farewell
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("%s: %w", l.Addr(), err)
	}
	return nil
}
