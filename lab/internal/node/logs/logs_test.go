package logs

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func newLog(t *testing.T) (*Log, *io.PipeWriter) {
	t.Helper()
	l, err := Create(filepath.Join(t.TempDir(), "log"), 1)
	if err != nil {
		t.Fatal(err)
	}
	r, w := io.Pipe()
	go l.Copy("stdout", r)
	t.Cleanup(func() { w.Close() })
	return l, w
}

func read(t *testing.T, l *Log, o Options) string {
	t.Helper()
	var b bytes.Buffer
	if err := l.Read(t.Context(), o, &b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestRead(t *testing.T) {
	l, w := newLog(t)
	long := strings.Repeat("x", maxLine+10)
	fmt.Fprintf(w, "one\ntwo\n%s\nno newline", long)
	w.Close()
	// Follow ends with the log, so it also waits for the copying to be done.
	all := read(t, l, Options{Tail: -1, Follow: true})
	if want := "one\ntwo\n" + long + "\nno newline"; all != want {
		t.Errorf("all: %d bytes, want %d", len(all), len(want))
	}
	for tail, want := range map[int]string{0: "", 1: "no newline"} {
		if got := read(t, l, Options{Tail: tail}); got != want {
			t.Errorf("tail %d: %q", tail, got)
		}
	}
	if got := read(t, l, Options{Tail: -1, LimitBytes: 5}); got != "one\nt" {
		t.Errorf("limit: %q", got)
	}
	if got := read(t, l, Options{Tail: -1, Since: time.Now().Add(time.Hour)}); got != "" {
		t.Errorf("since: %q", got)
	}
	stamp, line, _ := strings.Cut(read(t, l, Options{Tail: 1, Timestamps: true}), " ")
	if _, err := time.Parse(time.RFC3339Nano, stamp); err != nil || line != "no newline" {
		t.Errorf("timestamps: %q %q", stamp, line)
	}
	if got := l.LastBytes(80, 7); got != "newline" {
		t.Errorf("last bytes: %q", got)
	}
}

func TestFollow(t *testing.T) {
	l, w := newLog(t)
	fmt.Fprintln(w, "before")
	r, out := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Read(ctx, Options{Tail: -1, Follow: true}, out) }()
	expect := func(want string) {
		t.Helper()
		buf := make([]byte, len(want))
		if _, err := io.ReadFull(r, buf); err != nil || string(buf) != want {
			t.Fatalf("got %q, %v; want %q", buf, err, want)
		}
	}
	expect("before\n")
	for i := range 3 {
		fmt.Fprintln(w, "line", i)
		expect(fmt.Sprintln("line", i))
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestOldHalfIsDropped(t *testing.T) {
	l, w := newLog(t)
	line := strings.Repeat("y", 1000)
	const n = maxFile/1000 + 3000
	for i := range n {
		fmt.Fprintf(w, "%d %s\n", i, line)
	}
	w.Close()
	got := read(t, l, Options{Tail: -1, Follow: true})
	if !strings.HasPrefix(got[strings.LastIndex(got[:len(got)-1], "\n")+1:], fmt.Sprint(n-1)) || len(got) > maxFile {
		t.Errorf("%d bytes are left", len(got))
	}
	for l := range strings.SplitSeq(strings.TrimSuffix(got, "\n"), "\n") {
		if !strings.HasSuffix(l, line) {
			t.Fatalf("broken line %.40q", l)
		}
	}
}
