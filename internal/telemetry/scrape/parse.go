package scrape

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
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

// sample is one line. Its texts and labels are good until the next one.
type sample struct {
	name   string
	series string // name and labels as they stand there
	labels labels
	value  float64
}

type label struct{ name, value string }

// labels are those of one sample.
type labels []label

// parse reads Prometheus text (exposition format 0.0.4) and calls each with every wanted sample. By hand: a few lines of thousands are wanted, and
// prometheus/common/expfmt, against which FuzzAgainstExpfmt compares it, makes objects of them that cost an agent 170 MB of garbage each 15 s in a
// large cluster instead of 66. Bodies are read to their end, or to maxBody; a line that can't be parsed is skipped, and the error of the first is returned with what was
// read after all.
func parse(body io.Reader, each func(s *sample)) (n int, err error) {
	in := bufio.NewScanner(io.LimitReader(body, maxBody))
	in.Buffer(make([]byte, 0, 4<<10), maxLine)
	var s sample
	for in.Scan() {
		line := in.Bytes()
		end := bytes.IndexAny(line, "{ \t")
		if end <= 0 || !wanted(string(line[:end])) {
			continue
		}
		if e := s.read(string(line), end); e != nil {
			if err == nil {
				err = e
			}
			continue
		}
		each(&s)
		n++
	}
	if e := in.Err(); e != nil && err == nil {
		err = e
		if errors.Is(e, bufio.ErrTooLong) {
			err = fmt.Errorf("a line of more than %d bytes", maxLine)
		}
	}
	return n, err
}

// read reads a line of which the name ends at end.
func (s *sample) read(line string, end int) error {
	bad := func(what string) error { return fmt.Errorf("metrics: %s in %.80q", what, line) }
	s.name, s.labels = line[:end], s.labels[:0]
	rest := strings.TrimLeft(line[end:], " \t")
	if strings.HasPrefix(rest, "{") {
		var ok bool
		if rest, ok = s.readLabels(rest[1:]); !ok {
			return bad("labels that can't be read")
		}
	}
	s.series = line[:len(line)-len(rest)]
	fields := strings.Fields(rest)
	if len(fields) == 0 || len(fields) > 2 {
		return bad("no value")
	}
	if len(fields) == 2 {
		if _, err := strconv.ParseInt(fields[1], 10, 64); err != nil {
			return bad("no time")
		}
	}
	var err error
	if s.value, err = strconv.ParseFloat(fields[0], 64); err != nil {
		return bad("no number")
	}
	return nil
}

// readLabels reads up to and with the closing brace, and returns what follows.
func (s *sample) readLabels(in string) (rest string, ok bool) {
	for {
		in = strings.TrimLeft(in, " \t")
		if strings.HasPrefix(in, "}") {
			return in[1:], true
		}
		name, after, found := strings.Cut(in, "=")
		after = strings.TrimLeft(after, " \t")
		if name = strings.TrimRight(name, " \t"); !found || name == "" || strings.ContainsAny(name, "\"{},") || !strings.HasPrefix(after, `"`) {
			return "", false
		}
		value, after, ok := quoted(after[1:])
		if !ok {
			return "", false
		}
		s.labels = append(s.labels, label{name, value})
		in = strings.TrimLeft(after, " \t")
		if strings.HasPrefix(in, ",") {
			in = in[1:]
		} else if !strings.HasPrefix(in, "}") {
			return "", false
		}
	}
}

// quoted reads up to the closing quote: a backslash stands before a quote, a backslash, or n for a line feed.
func quoted(in string) (value, rest string, ok bool) {
	i := strings.IndexAny(in, `"\`)
	if i < 0 {
		return "", "", false
	}
	if in[i] == '"' {
		return in[:i], in[i+1:], true
	}
	var b strings.Builder
	for i := 0; i < len(in); i++ {
		switch c := in[i]; {
		case c == '"':
			return b.String(), in[i+1:], true
		case c != '\\':
			b.WriteByte(c)
		case i+1 == len(in):
			return "", "", false
		default:
			i++
			switch in[i] {
			case 'n':
				b.WriteByte('\n')
			case '"', '\\':
				b.WriteByte(in[i])
			default:
				return "", "", false
			}
		}
	}
	return "", "", false
}
