package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"
)

// outbound is where the data plane listens inside a Pod that is in the mesh. In
// a real cluster nobody needs to know it: traffic is redirected there.
const outbound = "127.0.0.1:15001"

// dialMesh connects through the mesh, or directly where the Pod is not in it.
func dialMesh(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{Timeout: 5 * time.Second}
	host, _, err := net.SplitHostPort(address)
	if ip := net.ParseIP(host); err == nil && ip.IsLoopback() {
		return d.DialContext(ctx, network, address)
	}
	c, err := d.DialContext(ctx, "tcp", outbound)
	if err != nil {
		return d.DialContext(ctx, network, address)
	}
	// Redirected traffic goes to addresses: names are the application's business.
	if address, err = resolve(ctx, address); err != nil {
		_ = c.Close()
		return nil, err
	}
	if t, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(t)
	}
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: address}, Host: address}
	if err = req.Write(c); err == nil {
		var resp *http.Response
		//nolint:bodyclose // the body is the tunnel
		if resp, err = http.ReadResponse(bufio.NewReader(c), req); err == nil && resp.StatusCode != http.StatusOK {
			err = fmt.Errorf("the mesh says %s: %s", resp.Status, resp.Header.Get("X-Lab-Verdict"))
		}
	}
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	_ = c.SetDeadline(time.Time{})
	return c, nil
}

func resolve(ctx context.Context, address string) (string, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", err
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip4", host)
	if err != nil {
		return "", err
	}
	return net.JoinHostPort(ips[0].Unmap().String(), port), nil
}
