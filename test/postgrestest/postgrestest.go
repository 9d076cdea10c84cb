// Package postgrestest runs a real PostgreSQL server for a test.
//
// In: Debian's package postgresql, or another installation in PATH. Out: a database, reached by a Unix socket, that can be stopped and started. Nothing is left when the test ends.
package postgrestest

import (
	"bytes"
	"errors"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// Server is a running server. The name of its database and superuser is postgres; nobody else reaches its socket.
type Server struct {
	// URL is its connection string.
	URL string

	t    testing.TB
	dir  string
	bin  string
	cred *syscall.Credential
	cmd  *exec.Cmd
	log  bytes.Buffer
}

// Start makes a database cluster and starts a server on it, until the test ends. Without PostgreSQL on the machine the test fails.
func Start(t testing.TB) *Server {
	t.Helper()
	dir, err := os.MkdirTemp("", "ambit-pg-") // short: the path of a socket has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := &Server{t: t, dir: dir, bin: find(t)}
	s.URL = "postgres://postgres@/postgres?" + url.Values{"host": {dir}}.Encode()
	if os.Geteuid() == 0 { // PostgreSQL refuses to run as root
		s.cred = somebody(t)
		if err := errors.Join(os.Chown(dir, int(s.cred.Uid), int(s.cred.Gid)), os.Chmod(dir, 0o700)); err != nil {
			t.Fatal(err)
		}
	}
	initdb := s.command("initdb", "--pgdata", filepath.Join(dir, "data"), "--username", "postgres", "--auth", "trust", "--encoding", "UTF8", "--locale", "C", "--no-sync")
	if out, err := initdb.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	t.Cleanup(s.Stop)
	s.Run()
	return s
}

// find is the folder with PostgreSQL's programs; Debian's is not in PATH.
func find(t testing.TB) string {
	t.Helper()
	if all, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb"); len(all) > 0 {
		return filepath.Dir(all[len(all)-1])
	}
	p, err := exec.LookPath("initdb")
	if err != nil {
		t.Fatal("postgrestest: there is no PostgreSQL on this machine: run hack/prerequisites.sh, or install Debian's package postgresql")
	}
	if p, err = filepath.EvalSymlinks(p); err != nil {
		t.Fatal(err)
	}
	return filepath.Dir(p)
}

func somebody(t testing.TB) *syscall.Credential {
	t.Helper()
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	t.Fatal("postgrestest: no user to run PostgreSQL as")
	return nil
}

func (s *Server) command(program string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.bin, program), args...)
	cmd.Dir, cmd.Env = s.dir, []string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.dir, "LC_ALL=C"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.cred, Pdeathsig: syscall.SIGQUIT}
	return cmd
}

// Run starts the server again after Stop, and waits until it takes connections.
func (s *Server) Run() {
	s.t.Helper()
	s.cmd = s.command("postgres", "-D", filepath.Join(s.dir, "data"), "-c", "listen_addresses=", "-c", "unix_socket_directories="+s.dir, "-c", "shared_buffers=16MB", "-c", "max_connections=40")
	s.cmd.Stderr, s.cmd.Stdout = &s.log, &s.log
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if s.command("pg_isready", "--host", s.dir, "--quiet").Run() == nil {
			return
		}
		if time.Now().After(end) {
			s.Stop()
			s.t.Fatalf("PostgreSQL does not start:\n%s", s.log.String())
		}
	}
}

// Stop ends the server at once, as a crash would: what was not flushed is gone.
func (s *Server) Stop() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Signal(syscall.SIGQUIT)
	_ = s.cmd.Wait()
	s.cmd = nil
}
