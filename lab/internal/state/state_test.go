package state

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestClusters(t *testing.T) {
	for spec, want := range map[string]string{
		"4":                  "mgmt cluster-1 cluster-2 cluster-3 (prod-eu-west-3)",
		"0":                  "mgmt",
		"1":                  "mgmt cluster-1",
		"2":                  "mgmt cluster-1 (prod-eu-west-3)",
		"6":                  "mgmt cluster-1 cluster-2 cluster-3 cluster-4 cluster-5 (prod-eu-west-3)",
		"a, b,mgmt":          "mgmt a b",
		"prod-eu-west-3,x-1": "mgmt (prod-eu-west-3) x-1",
		"-1":                 "error", "240": "error", "a,a": "error", "A": "error", "": "error", "a..b": "error",
	} {
		cs, err := Clusters(spec)
		var got []string
		for i, c := range cs {
			if c.Index != i {
				t.Errorf("%q: %s has index %d, want %d", spec, c.Name, c.Index, i)
			}
			if c.Registered || c.Name == Mgmt {
				got = append(got, c.Name)
			} else {
				got = append(got, "("+c.Name+")")
			}
		}
		if err != nil {
			got = []string{"error"}
		}
		if d := cmp.Diff(want, strings.Join(got, " ")); d != "" {
			t.Errorf("%q: %s", spec, d)
		}
	}
}

// TestPorts: chosen free, recorded, taken again; a recorded port that someone
// else has is an error that names it.
func TestPorts(t *testing.T) {
	d, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	cs, err := Clusters("1")
	if err != nil {
		t.Fatal(err)
	}
	lab := &Lab{Clusters: cs}
	ls, err := d.Listen(lab)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Save(lab); err != nil {
		t.Fatal(err)
	}
	ls.Close()
	again, err := d.Load()
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(lab, again); d != "" {
		t.Error(d)
	}
	ls, err = d.Listen(again)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(lab, again); d != "" {
		t.Errorf("ports changed: %s", d)
	}
	ls.Close()

	other, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: lab.Clusters[1].Port})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	_, err = d.Listen(again)
	if err == nil {
		t.Fatal("a port in use was no error")
	}
	for _, say := range []string{other.Addr().String(), "cluster-1", "lab down"} { // our own message: it must name these
		if !strings.Contains(err.Error(), say) {
			t.Errorf("%q does not name %q", err, say)
		}
	}
}

// TestRemove leaves what people put there and nothing else.
func TestRemove(t *testing.T) {
	d := Dir(filepath.Join(t.TempDir(), "lab"))
	if _, err := d.Load(); !errors.Is(err, ErrNoLab) {
		t.Errorf("Load of nothing: %v", err)
	}
	fill := func() {
		if err := d.Make(); err != nil {
			t.Fatal(err)
		}
		if err := d.Save(&Lab{}); err != nil {
			t.Fatal(err)
		}
	}
	fill()
	if err := d.Remove(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(string(d)); !os.IsNotExist(err) {
		t.Errorf("directory still there: %v", err)
	}
	fill()
	mine := filepath.Join(string(d), "notes.txt")
	if err := os.WriteFile(mine, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.Remove(); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(string(d))
	if err != nil || len(left) != 1 || left[0].Name() != "notes.txt" {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestLock(t *testing.T) {
	d := Dir(t.TempDir())
	unlock, err := d.Lock()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Lock(); err == nil {
		t.Error("locked twice")
	}
	unlock()
	if unlock, err = d.Lock(); err != nil {
		t.Error(err)
	} else {
		unlock()
	}
}

func TestProcess(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p, err := Identify(cmd.Process.Pid)
	if err != nil || !p.Alive() {
		t.Fatalf("alive: %v, %v", p.Alive(), err)
	}
	if (Process{PID: p.PID, Start: p.Start + 1}).Alive() {
		t.Error("another process with the same number counts as alive")
	}
	if err := p.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for range 1000 { // a zombie until it is waited for
		if !p.Alive() {
			break
		}
	}
	_ = cmd.Wait()
	if p.Alive() || p.Signal(syscall.SIGKILL) == nil {
		t.Error("alive after its end")
	}
}
