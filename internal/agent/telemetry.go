package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
	"ambitmesh.dev/ambit/internal/relay"
	"ambitmesh.dev/ambit/internal/telemetry/otlp"
	"ambitmesh.dev/ambit/internal/telemetry/scrape"
	"ambitmesh.dev/ambit/internal/telemetry/wire"
	"ambitmesh.dev/ambit/internal/topology"
)

// ears joins what the agent hears of traffic with the relay.
type ears struct {
	cfg     Config
	ring    *relay.Telemetry
	scraper *scrape.Scraper
	spans   *otlp.Receiver
	log     *slog.Logger
}

func newTelemetry(cfg Config, kube *cluster, log *slog.Logger) *ears {
	e := &ears{cfg: cfg, ring: relay.NewTelemetry(0), log: log.With("stage", "telemetry")}
	e.spans = otlp.New(func(b []byte) { e.ring.Put(relay.TelemetryTraces, b) })
	e.scraper = scrape.New(scrape.Config{Client: kube.client, IstioNamespace: cfg.IstioNamespace, Send: e.send, Extra: e.extra, Log: e.log})
	return e
}

func (e *ears) send(r *topology.Report) {
	data, err := wire.Encode(r)
	if err != nil {
		e.log.Error("a report can't be sent", "error", err)
		return
	}
	e.ring.Put(relay.TelemetryReport, data)
	// A round leaves garbage, and nothing comes for 15 s: a collection of a few milliseconds gives the node back what the runtime would keep for the next one.
	debug.FreeOSMemory()
}

// extra is what the report says beyond what was scraped.
func (e *ears) extra() ([]topology.Scrape, []topology.CapHit) {
	scrapes, hits := e.spans.Report()
	if st := e.ring.Stats(); st.Dropped > 0 {
		hits = append(hits, topology.CapHit{Cap: "agentRing", Limit: st.Bytes, Dropped: int(min(st.Dropped, 1<<30))})
	}
	return scrapes, hits
}

func (e *ears) probed(peer mesh.ClusterName, roundTrip time.Duration, failure mesh.PeerFailure) {
	e.scraper.Probed(peer, roundTrip, string(failure))
}

func (e *ears) scrape(ctx context.Context) error {
	if !e.cfg.Telemetry {
		return nil
	}
	return e.scraper.Run(ctx)
}

func (e *ears) receive(ctx context.Context) error {
	if e.cfg.OTLPAddress == off {
		return nil
	}
	address := e.cfg.listenOn(e.cfg.OTLPAddress)
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("--otlp-address %s: %w", address, err)
	}
	return e.spans.Serve(ctx, l)
}
