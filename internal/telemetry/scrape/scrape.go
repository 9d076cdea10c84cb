package scrape

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/dynamic"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/topology"
)

// Config is what New needs.
type Config struct {
	Client         dynamic.Interface
	IstioNamespace string
	// Send takes each report. It must not wait.
	Send func(*topology.Report)
	// Dial reaches Pods; nil: as the network has it.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Extra, if set, gives the state of other sources of the cluster (OTLP) for the report.
	Extra func() ([]topology.Scrape, []topology.CapHit)
	Log   *slog.Logger
}

// Scraper scrapes. New allocates, Run works.
type Scraper struct {
	cfg      Config
	targets  targets
	client   *http.Client
	counters *counters
	epoch    string
	sequence uint64
	said     string

	mu     sync.Mutex
	probes map[mesh.ClusterName]*topology.ProbeResult
}

// New allocates a Scraper.
func New(cfg Config) *Scraper {
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{}).DialContext
	}
	return &Scraper{
		cfg: cfg, targets: targets{istioNamespace: cfg.IstioNamespace, all: map[string]*target{}}, client: newClient(cfg.Dial), counters: newCounters(),
		epoch: rand.Text(), probes: map[mesh.ClusterName]*topology.ProbeResult{},
	}
}

// Probed takes the result of a probe of a peer's gateway; failure is "" for one that answered.
func (s *Scraper) Probed(to mesh.ClusterName, rtt time.Duration, failure string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.probes[to]
	if p == nil {
		p = &topology.ProbeResult{To: to}
		s.probes[to] = p
	}
	p.Sent++
	if failure != "" {
		p.Lost++
		p.Error = failure
		return
	}
	got := p.Sent - p.Lost
	if got == 1 || rtt < p.Min {
		p.Min = rtt
	}
	p.Max = max(p.Max, rtt)
	p.Mean += (rtt - p.Mean) / time.Duration(got)
}

// Run scrapes until ctx ends; it returns nil then.
func (s *Scraper) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { s.targets.run(ctx, s.cfg.Client, s.cfg.Log) })
	// Agents that were started together don't report together.
	wait := mathrand.N(Every / 3) //nolint:gosec // spreads load, guards nothing
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		began := time.Now()
		r := s.round(ctx, last, began)
		last = began
		if ctx.Err() != nil {
			return nil
		}
		s.cfg.Send(r)
		wait = max(time.Second, Every-time.Since(began))
	}
}

// round reads all targets once and makes the report of the interval.
func (s *Scraper) round(ctx context.Context, from, to time.Time) *topology.Report {
	all := s.targets.list()
	slices.SortFunc(all, func(a, b *target) int { return cmp.Compare(a.name, b.name) })
	waypoints := map[string]bool{}
	for _, t := range all {
		if t.kind == kindWaypoint {
			waypoints[t.namespace+"/"+t.workload] = true
		}
	}
	s.counters.next()
	sums := newRollup(waypoints)
	var mu sync.Mutex // of sums, counters and scrapes
	scrapes := map[kind]*topology.Scrape{}
	var wg sync.WaitGroup
	slots := make(chan struct{}, parallel)
	for _, t := range all {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			began := time.Now()
			n, err := s.read(ctx, t, func(x *sample) {
				mu.Lock()
				defer mu.Unlock()
				sums.add(t, x, s.counters.increment(t.name, x, !t.read))
			})
			mu.Lock()
			defer mu.Unlock()
			note(scrapes, t, n, time.Since(began), err)
			t.read = t.read || err == nil
		})
	}
	wg.Wait()
	s.sequence++
	r := &topology.Report{Epoch: s.epoch, Sequence: s.sequence, From: from, To: to}
	r.Edges, r.Caps = sums.finish()
	if n := s.counters.dropped; n > 0 {
		r.Caps = append(r.Caps, topology.CapHit{Cap: "series", Limit: maxSeries, Dropped: n})
	}
	for _, k := range []kind{kindZtunnel, kindWaypoint, kindGateway, kindIstiod} {
		if sc := scrapes[k]; sc != nil {
			r.Scrapes = append(r.Scrapes, *sc)
		}
	}
	if s.cfg.Extra != nil {
		more, hits := s.cfg.Extra()
		r.Scrapes, r.Caps = append(r.Scrapes, more...), append(r.Caps, hits...)
	}
	r.Probes = s.takeProbes()
	s.complain(r.Scrapes)
	return r
}

func note(scrapes map[kind]*topology.Scrape, t *target, series int, took time.Duration, err error) {
	sc := scrapes[t.kind]
	if sc == nil {
		sc = &topology.Scrape{Source: string(t.kind)}
		scrapes[t.kind] = sc
	}
	sc.Targets++
	sc.Series += series
	sc.Took = max(sc.Took, took)
	if err != nil {
		sc.Error = t.name + ": " + err.Error()
		return
	}
	sc.Up++
}

// read reads one target. An error with samples is one of some lines.
func (s *Scraper) read(ctx context.Context, t *target, each func(*sample)) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, t.url, nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Accept", "text/plain;version=0.0.4")
	res, err := s.client.Do(req)
	if err != nil {
		return 0, fmt.Errorf("can't be read: %w", cause(err))
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("answers %s at %s", res.Status, t.url)
	}
	return parse(res.Body, each)
}

// cause drops what a person who sees the Pod's name need not read.
func cause(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op
	}
	return err
}

func (s *Scraper) takeProbes() (out []topology.ProbeResult) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.probes {
		out = append(out, *p)
	}
	clear(s.probes)
	slices.SortFunc(out, func(a, b topology.ProbeResult) int { return cmp.Compare(a.To, b.To) })
	return out
}

// complain logs what can't be read, once until it changes.
func (s *Scraper) complain(scrapes []topology.Scrape) {
	var bad []string
	for _, sc := range scrapes {
		if sc.Error != "" {
			bad = append(bad, sc.Error)
		}
	}
	now := strings.Join(bad, "; ")
	if now != s.said && now != "" {
		s.cfg.Log.Warn("metrics can't be read", "error", now)
	}
	s.said = now
}
