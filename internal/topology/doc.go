// Package topology keeps who calls whom over all clusters as one table in memory, and draws it.
//
// In: a Report per cluster every 15 s (what its agent scraped, rolled up to edges); a query: when, at which level, around what.
// Out: a View: nodes with positions that stay, edges with rates, latencies, failures, the sources and ages of each number; as columns of JSON
// for a browser (View.Columns). The same rows for the CLI and for the store of history.
// It must not do I/O or read a clock: time is an argument. It never sums what two reporters say of the same traffic, never shows a number
// that nobody measured (an edge without request latency has none, not 0), and never drops or zeroes what is merely stale.
package topology
