// Package scrape is the agent's ear: it reads the metrics of its cluster's ztunnels, waypoints, gateways and istiods every 15 s and rolls them up to edges.
//
// In: Pods (by the labels that Istio's charts and templates put on them), their Prometheus text, results of the peers' probes. Out: a topology.Report per
// interval: increments per edge, at most 24 numbers each instead of some 67 series per edge, code and proxy; which sources answered; which caps were hit.
// It must not keep a label that is not part of an edge, sum what different kinds of reporters say, or let its memory grow with what it reads: lines that are not
// wanted are dropped as they come.
package scrape

import (
	"time"

	"ambitmesh.dev/ambit/internal/topology"
)

// Caps. What they keep out is in Report.Caps.
const (
	maxSeries          = 200_000 // counters remembered from scrape to scrape, 16 bytes each
	maxEdges           = 5000    // per report
	maxEdgesPerService = 200     // callers of one service with an edge of their own; the rest is one edge from topology.Other
	maxBody            = 64 << 20
	maxLine            = 16 << 10
	scrapeTime         = 5 * time.Second
	parallel           = 4
)

// Every is how often it scrapes.
const Every = topology.Interval
