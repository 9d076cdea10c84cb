package sandbox_test

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"ambitmesh.dev/ambit/lab/internal/node/sandbox"
	"ambitmesh.dev/ambit/lab/internal/node/test/nstest"
)

func TestMain(m *testing.M) {
	sandbox.Init()
	os.Exit(nstest.Main(m))
}

func start(t *testing.T, args ...string) (*sandbox.Process, *os.File) {
	t.Helper()
	ns, err := sandbox.NewNetNS()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	data := t.TempDir()
	if err := os.WriteFile(filepath.Join(data, "file"), []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p, err := sandbox.Start(sandbox.Spec{
		Root: t.TempDir(), Mounts: []sandbox.Mount{{Source: data, Target: "/data/sub", ReadOnly: true}},
		Binary: nstest.TestApp(), BinaryPath: "/usr/local/bin/inmate", Args: append([]string{"inmate"}, args...),
		Env: []string{"X=1", "PATH=/usr/local/bin"}, Dir: "/work", Hostname: "pod-1",
	}, ns, nil, w, w)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Signal(syscall.SIGKILL); <-p.Done() })
	return p, r
}

func TestContainerSeesItsOwnWorld(t *testing.T) {
	p, out := start(t, "show")
	b, err := io.ReadAll(out)
	if err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	want := "host=pod-1 dir=/work pid=1 x=1\ndata=hello err=<nil>\nreadonly=true\nhosthome=false\nproc=true null=true tmp=true\n"
	if string(b) != want || p.Exit().Code != 7 {
		t.Errorf("got %q, exit %+v\nwant %q, exit 7", b, p.Exit(), want)
	}
}

func TestExecEntersTheContainer(t *testing.T) {
	p, _ := start(t, "serve")
	for _, binary := range []string{"", nstest.TestApp()} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		run, err := sandbox.Exec(p, sandbox.ExecSpec{Args: []string{"inmate", "show"}, Env: []string{"X=2", "PATH=/usr/local/bin"}, Binary: binary}, sandbox.ExecFiles{Stdout: w, Stderr: w})
		w.Close()
		b, _ := io.ReadAll(r)
		if err != nil {
			t.Fatalf("%v: %s", err, b)
		}
		<-run.Done()
		if !strings.Contains(string(b), "host=pod-1") || !strings.Contains(string(b), "data=hello") || run.Exit().Code != 7 {
			t.Errorf("binary %q: got %q, exit %+v", binary, b, run.Exit())
		}
	}
	p.Signal(syscall.SIGKILL)
	<-p.Done()
	if got := p.Exit(); got.Code != 137 || got.Signal != 9 {
		t.Errorf("killed container: %+v", got)
	}
	if _, err := sandbox.Exec(p, sandbox.ExecSpec{Args: []string{"inmate", "show"}}, sandbox.ExecFiles{}); err == nil {
		t.Error("exec in an ended container succeeded")
	}
}

func TestStartSaysWhyNot(t *testing.T) {
	ns, err := sandbox.NewNetNS()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	file := filepath.Join(t.TempDir(), "no-program")
	if err := os.WriteFile(file, []byte("text"), 0o755); err != nil {
		t.Fatal(err)
	}
	_, err = sandbox.Start(sandbox.Spec{Root: t.TempDir(), Binary: file, BinaryPath: "/bin/p", Args: []string{"p"}, Dir: "/", Hostname: "h"}, ns, nil, nil, nil)
	if err == nil || !strings.Contains(err.Error(), "/bin/p") {
		t.Errorf("got %v", err)
	}
}

func BenchmarkStart(b *testing.B) {
	ns, err := sandbox.NewNetNS()
	if err != nil {
		b.Fatal(err)
	}
	defer ns.Close()
	root := b.TempDir()
	for b.Loop() {
		p, err := sandbox.Start(sandbox.Spec{Root: root, Binary: nstest.TestApp(), BinaryPath: "/bin/inmate", Args: []string{"inmate", "print"}, Dir: "/", Hostname: "h"}, ns, nil, nil, nil)
		if err != nil {
			b.Fatal(err)
		}
		<-p.Done()
	}
}
