package relay

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"ambitmesh.dev/ambit/internal/relay/family"
)

// strangerLimit is how long a connection may stay without an admitted session: enough to enrol, too short to hoard.
const strangerLimit = 30 * time.Second

// peerConn is one accepted connection. Until a session of it is admitted it is a stranger: counted, and closed after a while.
type peerConn struct {
	net.Conn
	strangers *atomic.Int64

	mu      sync.Mutex
	known   int // admitted sessions
	closed  bool
	timeout *time.Timer

	// Set by the handshake.
	claimed string // CN of what was presented, proven or not
	refusal error  // why it proves nothing
	bound   Identity
}

func newPeerConn(c net.Conn, strangers *atomic.Int64) *peerConn {
	p := &peerConn{Conn: c, strangers: strangers}
	p.timeout = time.AfterFunc(strangerLimit, func() { _ = p.Close() })
	return p
}

// identity is what the certificate of this connection, or the one it was exchanged for by Renew, proves.
func (p *peerConn) identity() (Identity, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.bound, p.refusal
}

func (p *peerConn) rebind(id Identity) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.bound = id
}

func (p *peerConn) admitted() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.known++; p.known == 1 && !p.closed {
		p.timeout.Stop()
		p.strangers.Add(-1)
	}
}

func (p *peerConn) sessionOver() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.known--; p.known == 0 && !p.closed {
		p.timeout.Reset(strangerLimit)
		p.strangers.Add(1)
	}
}

// Close may be called by anyone at any time.
func (p *peerConn) Close() error {
	p.mu.Lock()
	if !p.closed {
		p.closed = true
		p.timeout.Stop()
		if p.known == 0 {
			p.strangers.Add(-1)
		}
	}
	p.mu.Unlock()
	return p.Conn.Close()
}

// boundedListener turns connections away while there are too many strangers. Admitted sessions are not affected.
type boundedListener struct {
	net.Listener
	strangers *atomic.Int64
	limit     int64
	turned    *atomic.Int64
}

// Accept returns the next connection that there is room for.
func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.strangers.Add(1) > l.limit {
			l.strangers.Add(-1)
			l.turned.Add(1)
			_ = c.Close()
			continue
		}
		return newPeerConn(c, l.strangers), nil
	}
}

// hubCredentials does TLS with the family in force at each handshake, and decides what a client certificate proves. A certificate
// that proves nothing does not fail the handshake: an alert is one word, a refused call can say what is wrong and what to do. What
// needs an identity asks for it (peerConn.identity); enrolment does not.
type hubCredentials struct {
	credentials.TransportCredentials
	hub *Hub
}

type peerInfo struct {
	credentials.TLSInfo
	conn *peerConn
}

func newHubCredentials(h *Hub) hubCredentials {
	return hubCredentials{hub: h, TransportCredentials: credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			f := h.cfg.Family.Current()
			if f == nil {
				return nil, errors.New("no certificate family yet")
			}
			return serverTLS(f), nil
		},
	})}
}

func serverTLS(f *family.Family) *tls.Config {
	cert := tls.Certificate{PrivateKey: f.Server.Key, Leaf: f.Server.Chain[0]}
	for _, c := range f.Server.Chain {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, Certificates: []tls.Certificate{cert},
		ClientAuth: tls.RequestClientCert, SessionTicketsDisabled: true, // a resumed session would skip the check of the certificate
	}
}

// ServerHandshake implements credentials.TransportCredentials.
func (c hubCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, auth, err := c.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		c.hub.counters.handshakeFailures.Add(1)
		c.hub.log.Debug("TLS handshake failed", "remote", raw.RemoteAddr().String(), "error", err)
		return nil, nil, err
	}
	info, ok := auth.(credentials.TLSInfo)
	p, isPeer := raw.(*peerConn)
	if !ok || !isPeer {
		_ = conn.Close()
		return nil, nil, errors.New("connection did not come through the relay's listener")
	}
	p.bound, p.refusal = c.hub.prove(info.State.PeerCertificates)
	if len(info.State.PeerCertificates) > 0 {
		p.claimed = clip(info.State.PeerCertificates[0].Subject.CommonName)
	}
	return conn, peerInfo{info, p}, nil
}

// Clone implements credentials.TransportCredentials.
func (c hubCredentials) Clone() credentials.TransportCredentials { return c }

// prove says what a chain proves now.
func (h *Hub) prove(chain []*x509.Certificate) (Identity, error) {
	cluster, err := h.cfg.Family.Current().VerifyClient(chain, time.Now())
	if err != nil {
		return Identity{}, err
	}
	return identityOf(cluster, chain[0])
}

func peerOf(ctx context.Context) (*peerConn, error) {
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(peerInfo); ok {
			return info.conn, nil
		}
	}
	return nil, errors.New("call did not come through the relay's TLS")
}
