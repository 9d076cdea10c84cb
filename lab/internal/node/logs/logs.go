// Package logs keeps what containers print, and reads it back as `kubectl logs` wants it.
//
// What goes in: the standard output and error of one container instance. What comes out: a file of time-stamped lines,
// in the format of the container runtime interface, and readers of it that can follow.
// What it must not do: hold more than a line in memory, or let a chatty container fill the disk.
package logs

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"sync"
	"time"
)

// maxFile bounds a log: at this size the older half is dropped.
const maxFile = 16 << 20

// maxLine is the longest line kept in one piece.
const maxLine = 16 << 10

// Log is the log of one container instance. It is safe for concurrent use.
type Log struct {
	path string

	mu      sync.Mutex
	f       *os.File
	size    int64
	dropped int64         // bytes that rotation has removed from the beginning
	grown   chan struct{} // closed and replaced at every write
	ended   bool
	writers int
}

// Create starts an empty log at path that expects writers streams.
func Create(path string, writers int) (*Log, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	return &Log{path: path, f: f, grown: make(chan struct{}), writers: writers}, nil
}

// Copy reads lines from r until its end and appends them as stream ("stdout" or "stderr"). When the last stream has ended
// the log has ended, and followers return.
func (l *Log) Copy(stream string, r io.ReadCloser) {
	defer r.Close()
	br := bufio.NewReaderSize(r, maxLine)
	for {
		line, err := br.ReadSlice('\n')
		if len(line) > 0 {
			l.append(stream, line)
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			break
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.writers--; l.writers == 0 {
		l.ended = true
		l.wake()
		l.f.Close()
	}
}

func (l *Log) append(stream string, line []byte) {
	tag := " F "
	if line[len(line)-1] != '\n' {
		tag = " P "
	}
	var b bytes.Buffer
	b.WriteString(time.Now().UTC().Format(time.RFC3339Nano))
	b.WriteString(" " + stream + tag)
	b.Write(line)
	if tag == " P " {
		b.WriteByte('\n')
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size+int64(b.Len()) > maxFile {
		l.dropHalf()
	}
	n, _ := l.f.WriteAt(b.Bytes(), l.size)
	l.size += int64(n)
	l.wake()
}

func (l *Log) wake() {
	close(l.grown)
	l.grown = make(chan struct{})
}

// dropHalf removes the older half, at a line's end.
func (l *Log) dropHalf() {
	keep := make([]byte, l.size-l.size/2)
	n, err := l.f.ReadAt(keep, l.size/2)
	if err != nil && !errors.Is(err, io.EOF) {
		return
	}
	keep = keep[:n]
	if i := bytes.IndexByte(keep, '\n'); i >= 0 {
		keep = keep[i+1:]
	}
	l.dropped += l.size - int64(len(keep))
	_, _ = l.f.WriteAt(keep, 0)
	_ = l.f.Truncate(int64(len(keep)))
	l.size = int64(len(keep))
}

// Options are those of `kubectl logs`.
type Options struct {
	Follow     bool
	Timestamps bool
	Tail       int // lines; negative: all
	LimitBytes int // 0: no limit
	Since      time.Time
}

// Read writes the log to w, and with Follow goes on until the container ends or ctx does.
func (l *Log) Read(ctx context.Context, o Options, w io.Writer) error {
	f, err := os.Open(l.path)
	if err != nil {
		return err
	}
	defer f.Close()
	if o.LimitBytes > 0 {
		w = &limited{w: w, left: o.LimitBytes}
	}
	pos, err := l.tail(f, o.Tail)
	if err != nil {
		return err
	}
	for {
		grown, ended, err := l.copyFrom(f, &pos, o, w)
		if errors.Is(err, errLimit) {
			return nil
		}
		if err != nil || !o.Follow || ended {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-grown:
		}
	}
}

// copyFrom writes what stands from pos (counted from the log's very beginning) on, line by line.
func (l *Log) copyFrom(f *os.File, pos *int64, o Options, w io.Writer) (grown <-chan struct{}, ended bool, err error) {
	l.mu.Lock()
	grown, ended = l.grown, l.ended
	*pos = max(*pos, l.dropped)
	section := io.NewSectionReader(f, *pos-l.dropped, l.size-(*pos-l.dropped))
	l.mu.Unlock()
	br := bufio.NewReaderSize(section, 2*maxLine)
	for {
		line, err := br.ReadSlice('\n')
		if err != nil { // only whole lines are written, so the rest is empty
			return grown, ended, nil
		}
		*pos += int64(len(line))
		if err := writeLine(w, line, o); err != nil {
			return nil, false, err
		}
	}
}

func writeLine(w io.Writer, line []byte, o Options) error {
	stamp, rest, ok := bytes.Cut(line, []byte(" "))
	if !ok {
		return nil
	}
	if !o.Since.IsZero() {
		at, err := time.Parse(time.RFC3339Nano, string(stamp))
		if err == nil && at.Before(o.Since) {
			return nil
		}
	}
	_, rest, _ = bytes.Cut(rest, []byte(" "))
	tag, text, _ := bytes.Cut(rest, []byte(" "))
	if string(tag) == "P" {
		text = bytes.TrimSuffix(text, []byte("\n"))
	}
	if o.Timestamps {
		text = append(append(append([]byte{}, stamp...), ' '), text...)
	}
	_, err := w.Write(text)
	return err
}

// tail is the position of the n-th last line.
func (l *Log) tail(f *os.File, n int) (int64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n < 0 {
		return l.dropped, nil
	}
	end := l.size
	for buf := make([]byte, 32<<10); end > 0; {
		from := max(0, end-int64(len(buf)))
		chunk := buf[:end-from]
		if _, err := f.ReadAt(chunk, from); err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		for i, c := range slices.Backward(chunk) {
			if c != '\n' {
				continue
			}
			if n == 0 {
				return l.dropped + from + int64(i) + 1, nil
			}
			n--
		}
		end = from
	}
	return l.dropped, nil
}

var errLimit = errors.New("limit reached")

type limited struct {
	w    io.Writer
	left int
}

func (l *limited) Write(b []byte) (int, error) {
	if len(b) > l.left {
		b = b[:l.left]
	}
	n, err := l.w.Write(b)
	if l.left -= n; err == nil && l.left == 0 {
		err = errLimit
	}
	return n, err
}

// LastBytes is the end of the log without time stamps, for termination messages.
func (l *Log) LastBytes(lines, limit int) string {
	var b bytes.Buffer
	if err := l.Read(context.Background(), Options{Tail: lines}, &b); err != nil {
		return ""
	}
	out := b.Bytes()
	return string(out[max(0, len(out)-limit):])
}
