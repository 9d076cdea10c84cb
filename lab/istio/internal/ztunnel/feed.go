package ztunnel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// message is what the lab's node says over its Unix socket (one packet each),
// in the part of istio-cni. Package node of the lab's own module writes it; the
// two must agree.
type message struct {
	Op             string // "add" or "remove"
	UID            string
	Namespace      string
	Name           string
	ServiceAccount string
	IP             string
}

// Files of an "add", in this order.
const (
	fdNetns    = iota // the Pod's network namespace
	fdInbound         // a listener on the Pod's :15008
	fdOutbound        // a listener on the Pod's 127.0.0.1:15001
	fdCount
)

// feed follows the node's socket until ctx ends, and hands each message on with
// its files. The node says everything again on every connection; lost is called
// before that.
func feed(ctx context.Context, path string, log *slog.Logger, fresh func(), each func(message, []*os.File)) {
	for ctx.Err() == nil {
		err := feedOnce(ctx, path, fresh, each)
		if ctx.Err() != nil {
			return
		}
		log.Info("no Pods from the node", "socket", path, "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(300 * time.Millisecond):
		}
	}
}

func feedOnce(ctx context.Context, path string, fresh func(), each func(message, []*os.File)) error {
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	fresh()
	buf, oob := make([]byte, 64<<10), make([]byte, unix.CmsgSpace(4*fdCount))
	for {
		n, oobn, _, _, err := c.ReadMsgUnix(buf, oob)
		if err != nil {
			return err
		}
		if n == 0 {
			return errors.New("the node has closed the socket")
		}
		files, err := received(oob[:oobn])
		if err != nil {
			return err
		}
		var m message
		if err := json.Unmarshal(buf[:n], &m); err != nil {
			return fmt.Errorf("message of the node: %w", err)
		}
		each(m, files)
	}
}

func received(oob []byte) ([]*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("files of the node: %w", err)
	}
	var out []*os.File
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return nil, fmt.Errorf("files of the node: %w", err)
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			out = append(out, os.NewFile(uintptr(fd), "handed in"))
		}
	}
	return out, nil
}
