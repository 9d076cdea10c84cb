package server

import (
	"io"
	"net"
	"sync"
	"testing"
)

// line is a TCP connection to the API server that can be cut, as a network can: connections are refused, or nothing answers any more.
type line struct {
	address string // of this end

	mu     sync.Mutex
	l      net.Listener
	target string
	down   bool
	hang   bool
	open   map[net.Conn]bool
}

func newLine(t *testing.T, target string) *line {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &line{address: l.Addr().String(), l: l, target: target, open: map[net.Conn]bool{}}
	go n.accept(l)
	t.Cleanup(func() { n.cut(false); l.Close() })
	return n
}

func (n *line) accept(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		n.mu.Lock()
		if n.down && !n.hang {
			c.Close()
			n.mu.Unlock()
			continue
		}
		n.open[c] = true
		hang := n.down
		n.mu.Unlock()
		if hang {
			continue // accepted, and never answered
		}
		s, err := net.Dial("tcp", n.target)
		if err != nil {
			c.Close()
			continue
		}
		n.mu.Lock()
		n.open[s] = true
		n.mu.Unlock()
		go n.copy(c, s)
		go n.copy(s, c)
	}
}

func (n *line) copy(to, from net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		k, err := from.Read(buf)
		n.mu.Lock()
		swallow := n.down && n.hang
		n.mu.Unlock()
		if swallow {
			_, _ = io.Copy(io.Discard, from)
			return
		}
		if k > 0 {
			if _, err := to.Write(buf[:k]); err != nil {
				return
			}
		}
		if err != nil {
			to.Close()
			return
		}
	}
}

func (n *line) cut(hang bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.down, n.hang = true, hang
	if !hang {
		n.closeAll()
	}
}

func (n *line) mend() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.down = false
	n.closeAll()
}

func (n *line) closeAll() {
	for c := range n.open {
		c.Close()
	}
	clear(n.open)
}
