package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	topologydemo "ambitmesh.dev/ambit/internal/topology/demo"
	"ambitmesh.dev/ambit/internal/ui"
	uidemo "ambitmesh.dev/ambit/internal/ui/demo"
	"ambitmesh.dev/ambit/internal/version"
)

// serveDemo serves the UI with a made-up mesh until ctx ends.
func serveDemo(ctx context.Context, size, address string, log *slog.Logger) error {
	sizes := map[string]topologydemo.Size{"small": topologydemo.Small(), "large": topologydemo.Large()}
	s, ok := sizes[size]
	if !ok {
		return fmt.Errorf("--demo %q: want small or large", size)
	}
	m, err := uidemo.New(s, time.Now)
	if err != nil {
		return err
	}
	go m.Run(ctx)
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("--ui-address %s: %w", address, err)
	}
	srv := &http.Server{
		Handler:           ui.Handler(ctx, ui.Config{World: m.World, Audit: m.Log(), Topology: m.Table, Traces: m, Files: ui.Files(), Version: version.Version, Demo: true, Now: time.Now, Log: log}),
		ReadHeaderTimeout: 10 * time.Second,
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	log.Info("the UI of a made-up mesh", "address", "http://"+l.Addr().String())
	if err := srv.Serve(l); ctx.Err() == nil {
		return err
	}
	return nil
}
