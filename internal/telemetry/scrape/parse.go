package scrape

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// wanted are the metrics of which edges are made, and those of istiod that a person is shown.
func wanted(name string) bool {
	switch name {
	case "istio_requests_total", "istio_request_duration_milliseconds_bucket", "istio_request_duration_milliseconds_sum",
		"istio_tcp_connections_opened_total", "istio_tcp_connections_closed_total", "istio_tcp_connections_failed_total", "istio_tcp_connections_failed",
		"istio_tcp_sent_bytes_total", "istio_tcp_received_bytes_total", "istio_build", "pilot_xds":
		return true
	default:
		return false
	}
}

// parse reads Prometheus text and calls each with every wanted sample. Bodies are read to their end, or to maxBody; a block that can't be parsed is skipped, and the
// error of the first is returned with what was read after all.
func parse(body io.Reader, each func(name string, m *dto.Metric)) (n int, err error) {
	in := bufio.NewScanner(io.LimitReader(body, maxBody))
	in.Buffer(make([]byte, 0, 4<<10), maxLine)
	var block bytes.Buffer
	lines := 0
	var first error
	flush := func() {
		if lines == 0 {
			return
		}
		got, err := parseBlock(&block, each)
		n += got
		if first == nil {
			first = err
		}
		block.Reset()
		lines = 0
	}
	for in.Scan() {
		line := in.Bytes()
		end := bytes.IndexAny(line, "{ \t")
		if end <= 0 || !wanted(string(line[:end])) {
			continue
		}
		block.Write(line)
		block.WriteByte('\n')
		if lines++; lines == blockLines {
			flush()
		}
	}
	flush()
	if err := in.Err(); err != nil && first == nil {
		first = err
		if errors.Is(err, bufio.ErrTooLong) {
			first = fmt.Errorf("a line of more than %d bytes", maxLine)
		}
	}
	return n, first
}

// parseBlock parses lines without their TYPE: every one is a sample of its own.
func parseBlock(block io.Reader, each func(name string, m *dto.Metric)) (n int, err error) {
	p := expfmt.NewTextParser(model.UTF8Validation)
	families, err := p.TextToMetricFamilies(block)
	for name, f := range families {
		for _, m := range f.GetMetric() {
			each(name, m)
			n++
		}
	}
	if err != nil {
		return n, fmt.Errorf("metrics: %s", strings.TrimSpace(err.Error()))
	}
	return n, nil
}
