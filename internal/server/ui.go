package server

import (
	"context"
	"net/http"
	"time"

	"ambitmesh.dev/ambit/internal/ui"
	"ambitmesh.dev/ambit/internal/version"
)

// uiHandler serves the UI from what this replica's cache has: also one that does not lead can show that.
func (s *server) uiHandler(ctx context.Context) http.Handler {
	c := ui.Config{
		World:    func(ctx context.Context) (*ui.World, error) { return ui.Read(ctx, s.watch.cache, s.cfg.Namespace) },
		Topology: s.telemetry.Table(), Traces: s.telemetry, Files: ui.Files(), Hosts: s.cfg.UIHosts, Version: version.Version, Now: time.Now, Log: s.log.With("stage", "ui"),
	}
	if s.auditPlace() != "" {
		c.Audit = s.audit
	}
	return ui.Handler(ctx, c)
}
