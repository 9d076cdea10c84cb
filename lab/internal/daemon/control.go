package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// The control socket serves HTTP with JSON bodies:
//
//	GET  /status                       Status
//	GET  /progress                     Events, one per line, until the last one
//	POST /stop                         ends the lab
//	POST /components/stop?name=NAME    ends one component and keeps it down
//	POST /components/start?name=NAME   lets it run again
//	POST /partition?cluster=C&on=BOOL  cuts a cluster off, or heals it
//	POST /call?from=A&to=B             Call: one connection from a workload to a service (see ParseParty)
//	POST /load?from=A&to=B&rate=N&for=D  Load: N new connections a second for the duration D
//
// An error is {"error": "..."} with a status of 400 or above.
func (d *daemon) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) { reply(w, d.status(r.Context()), nil) })
	mux.HandleFunc("GET /progress", func(w http.ResponseWriter, r *http.Request) {
		enc, rc := json.NewEncoder(w), http.NewResponseController(w)
		_ = d.progress.follow(r.Context(), func(e Event) error {
			return errors.Join(enc.Encode(e), rc.Flush())
		})
	})
	mux.HandleFunc("POST /stop", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, struct{}{}, nil)
		d.stop()
	})
	mux.HandleFunc("POST /components/stop", func(w http.ResponseWriter, r *http.Request) {
		u, err := d.super.find(r.URL.Query().Get("name"))
		if err == nil {
			err = u.stop(r.Context())
		}
		reply(w, struct{}{}, err)
	})
	mux.HandleFunc("POST /components/start", func(w http.ResponseWriter, r *http.Request) {
		u, err := d.super.find(r.URL.Query().Get("name"))
		if err == nil {
			u.start()
		}
		reply(w, struct{}{}, err)
	})
	mux.HandleFunc("POST /partition", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		c, err := d.lab.Cluster(q.Get("cluster"))
		if err == nil {
			err = partition(c.Index, q.Get("on") == "true")
		}
		reply(w, struct{}{}, err)
	})
	mux.HandleFunc("POST /call", func(w http.ResponseWriter, r *http.Request) {
		c, err := d.caller(r)
		if err != nil {
			reply(w, nil, err)
			return
		}
		reply(w, c.call(r.Context()), nil)
	})
	mux.HandleFunc("POST /load", func(w http.ResponseWriter, r *http.Request) {
		c, err := d.caller(r)
		if err != nil {
			reply(w, nil, err)
			return
		}
		load, err := c.load(r.Context(), r.URL.Query().Get("rate"), r.URL.Query().Get("for"))
		reply(w, load, err)
	})
	return mux
}

func reply(w http.ResponseWriter, v any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		v = map[string]string{"error": err.Error()}
	}
	_ = json.NewEncoder(w).Encode(v)
}

// Client talks to a daemon through its control socket.
type Client struct {
	http *http.Client
}

// Dial returns a client for the socket at path; it does not connect yet.
func Dial(path string) *Client {
	return &Client{http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dialUnix(ctx, path) },
	}}}
}

// dialUnix connects to a socket whose path may be longer than the 108 bytes an
// address holds: it goes through a descriptor of the folder.
func dialUnix(ctx context.Context, path string) (net.Conn, error) {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	short := fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path))
	return (&net.Dialer{}).DialContext(ctx, "unix", short)
}

// ListenUnix opens the control socket for a daemon that is about to start.
func ListenUnix(path string) (*net.UnixListener, error) {
	if err := os.RemoveAll(path); err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	defer dir.Close()
	short := fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path))
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("control socket %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false) // the daemon has it
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	return l, nil
}

func (c *Client) do(ctx context.Context, method, path string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://lab"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("lab daemon: %w", err)
	}
	if resp.StatusCode < http.StatusBadRequest {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	var e struct{ Error string }
	_ = json.NewDecoder(resp.Body).Decode(&e)
	return nil, fmt.Errorf("lab daemon: %s", strings.TrimSpace(e.Error+" "+resp.Status))
}

// Status asks for everything.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	body, err := c.do(ctx, http.MethodGet, "/status")
	if err != nil {
		return s, err
	}
	defer body.Close()
	return s, json.NewDecoder(body).Decode(&s)
}

// Progress calls each with every event of the start, from its beginning.
func (c *Client) Progress(ctx context.Context, each func(Event)) error {
	body, err := c.do(ctx, http.MethodGet, "/progress")
	if err != nil {
		return err
	}
	defer body.Close()
	dec := json.NewDecoder(body)
	last := Event{}
	for {
		var e Event
		err := dec.Decode(&e)
		if errors.Is(err, io.EOF) && (last.Kind == KindReady || last.Kind == KindFailed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("lab daemon went away while starting: %w", err)
		}
		last = e
		each(e)
	}
}

// Call opens one connection from a workload to a service.
func (c *Client) Call(ctx context.Context, from, to string) (Call, error) {
	var out Call
	err := c.ask(ctx, "/call?"+url.Values{"from": {from}, "to": {to}}.Encode(), &out)
	return out, err
}

// Load opens rate connections a second, for a while.
func (c *Client) Load(ctx context.Context, from, to string, rate int, while time.Duration) (Load, error) {
	var out Load
	err := c.ask(ctx, "/load?"+url.Values{"from": {from}, "to": {to}, "rate": {strconv.Itoa(rate)}, "for": {while.String()}}.Encode(), &out)
	return out, err
}

func (c *Client) ask(ctx context.Context, path string, into any) error {
	body, err := c.do(ctx, http.MethodPost, path)
	if err != nil {
		return err
	}
	defer body.Close()
	return json.NewDecoder(body).Decode(into)
}

// Post sends a request without an answer worth reading.
func (c *Client) Post(ctx context.Context, path string) error {
	body, err := c.do(ctx, http.MethodPost, path)
	if err != nil {
		return err
	}
	return body.Close()
}
