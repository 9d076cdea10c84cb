package build

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const (
	childEnv  = "AMBIT_BUILD_TEST_CHILD" // module and cache of a child that is to be killed
	markerEnv = "AMBIT_BUILD_TEST_MARKER"
)

func TestMain(m *testing.M) {
	if child := os.Getenv(childEnv); child != "" {
		module, cache, _ := strings.Cut(child, ":")
		_, err := ensure(context.Background(), cache, tinyRecipe(module), func(string, ...any) {})
		fmt.Fprintln(os.Stderr, "not killed:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func tinyRecipe(module string) recipe {
	return recipe{
		name: "tiny", module: module, pkg: ".", out: "tiny", cpuSeconds: 1,
		ldflags: []string{"-X main.version=v1.2.3"},
		links:   map[string]string{"assets/alias": "../tiny"},
		copies:  []moduleFolder{{"example.com/charts", "manifests", "charts/manifests"}},
	}
}

// tinyModule writes a module that builds in a second and needs nothing from the net.
func tinyModule(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"go.mod":  "module example.com/tiny\n\ngo 1.26\n\nrequire example.com/charts v0.0.0\n\nreplace example.com/charts => ./charts\n",
		"main.go": "package main\n\nimport \"os\"\n\nvar version = \"none\"\n\nfunc main() { os.Stdout.WriteString(version) }\n",
		// The module whose files are copied. Nothing imports it.
		"charts/go.mod":                 "module example.com/charts\n\ngo 1.26\n",
		"charts/manifests/a/Chart.yaml": "name: a\n",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// slowGo puts a "go" first in PATH that starts to write its output, says so in a
// file with its process id, and never ends. Everything but "go build" is the real one.
func slowGo(t *testing.T) (marker string) {
	t.Helper()
	real, err := exec.LookPath("go")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	marker = filepath.Join(dir, "pid")
	script := `#!/bin/sh
if [ "$1" != build ]; then exec "` + real + `" "$@"; fi
while [ "$1" != -o ]; do shift; done
echo half >"$2"
echo $$ >"$` + markerEnv + `.tmp" && mv "$` + markerEnv + `.tmp" "$` + markerEnv + `"
exec sleep 300
`
	if err := os.WriteFile(filepath.Join(dir, "go"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	t.Setenv(markerEnv, marker)
	return marker
}

// slowPID waits for slowGo to be at work and returns its process id.
func slowPID(t *testing.T, marker string) int {
	t.Helper()
	for range 200 {
		if raw, err := os.ReadFile(marker); err == nil {
			pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal("the build did not start")
	return 0
}

// assertGone checks that a process ends by itself soon.
func assertGone(t *testing.T, pid int) {
	t.Helper()
	for range 100 {
		// A zombie waits for its new parent only.
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(raw), ") Z ") {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	_ = syscall.Kill(pid, syscall.SIGKILL)
	t.Errorf("the compiler, process %d, outlived the build", pid)
}

// folders lists what a reader of the cache sees, without lock files.
func folders(t *testing.T, cache string) []string {
	t.Helper()
	entries, err := os.ReadDir(cache)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names
}

func assertTiny(t *testing.T, dir string) {
	t.Helper()
	for _, name := range []string{"tiny", "assets/alias"} {
		out, err := exec.Command(filepath.Join(dir, name)).Output()
		if err != nil || string(out) != "v1.2.3" {
			t.Errorf("%s: got %q, %v", name, out, err)
		}
	}
	raw, err := os.ReadFile(filepath.Join(dir, "charts/manifests/a/Chart.yaml"))
	if err != nil || string(raw) != "name: a\n" {
		t.Errorf("copied chart: got %q, %v", raw, err)
	}
}

func TestConcurrentEnsuresBuildOnce(t *testing.T) {
	module, cache := tinyModule(t), t.TempDir()
	var mu sync.Mutex
	built := 0
	progress := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		if strings.HasPrefix(format, "built ") {
			built++
		}
	}
	var all sync.WaitGroup
	dirs := make([]string, 4)
	for i := range dirs {
		all.Go(func() {
			dir, err := ensure(t.Context(), cache, tinyRecipe(module), progress)
			if err != nil {
				t.Error(err)
			}
			dirs[i] = dir
		})
	}
	all.Wait()
	if built != 1 {
		t.Errorf("built %d times, want once", built)
	}
	if diff := cmp.Diff([]string{dirs[0], dirs[0], dirs[0], dirs[0]}, dirs); diff != "" {
		t.Errorf("folders (-want +got):\n%s", diff)
	}
	assertTiny(t, dirs[0])

	silent := func(format string, args ...any) { t.Errorf("from the cache, yet: "+format, args...) }
	if again, err := ensure(t.Context(), cache, tinyRecipe(module), silent); err != nil || again != dirs[0] {
		t.Errorf("from the cache: got %q, %v, want %q", again, err, dirs[0])
	}
}

func TestUnusedBuildsAreRemoved(t *testing.T) {
	module, cache := tinyModule(t), t.TempDir()
	old := time.Now().Add(-2 * keepUnused)
	for name, used := range map[string]time.Time{"tiny-1": old, "tiny-2": time.Now(), "other-1": old} {
		dir := filepath.Join(cache, name)
		if err := errors.Join(os.Mkdir(dir, 0o755), os.Chtimes(dir, used, used)); err != nil {
			t.Fatal(err)
		}
	}
	dir, err := ensure(t.Context(), cache, tinyRecipe(module), t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"other-1", "tiny-2", filepath.Base(dir)}
	got := folders(t, cache)
	sort.Strings(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the cache (-want +got):\n%s", diff)
	}
}

func TestCacheSurvivesAKilledBuild(t *testing.T) {
	module, cache := tinyModule(t), t.TempDir()
	path := os.Getenv("PATH")
	marker := slowGo(t)
	child := exec.Command("/proc/self/exe")
	child.Env = append(os.Environ(), childEnv+"="+module+":"+cache)
	child.Stderr = os.Stderr
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	pid := slowPID(t, marker)
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait()
	assertGone(t, pid)
	left := folders(t, cache)
	if len(left) != 1 || !strings.HasPrefix(left[0], ".tmp-") {
		t.Fatalf("a killed build left %q, want one temporary folder", left)
	}

	t.Setenv("PATH", path)
	dir, err := ensure(t.Context(), cache, tinyRecipe(module), t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	assertTiny(t, dir)
	if diff := cmp.Diff([]string{filepath.Base(dir)}, folders(t, cache)); diff != "" {
		t.Errorf("the cache after the next build (-want +got):\n%s", diff)
	}
}

func TestCancelledBuildLeavesNothing(t *testing.T) {
	module, cache := tinyModule(t), t.TempDir()
	marker := slowGo(t)
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() {
		_, err := ensure(ctx, cache, tinyRecipe(module), func(string, ...any) {})
		result <- err
	}()
	pid := slowPID(t, marker)
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want it to say that the build was cancelled", err)
	}
	assertGone(t, pid)
	if left := folders(t, cache); len(left) > 0 {
		t.Errorf("left in the cache: %q", left)
	}
}

func TestWaitingForTheLockEndsWithTheContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.lock")
	unlock, err := lock(t.Context(), path, func() {})
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	ctx, cancel := context.WithCancel(t.Context())
	told := 0
	if _, err := lock(ctx, path, func() { told++; cancel() }); !errors.Is(err, context.Canceled) || told != 1 {
		t.Errorf("got %v after %d announcements, want context.Canceled after one", err, told)
	}
}

func TestCompileErrorIsShown(t *testing.T) {
	module, cache := tinyModule(t), t.TempDir()
	if err := os.WriteFile(filepath.Join(module, "broken.go"), []byte("package main\n\nvar _ = nosuchname\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := ensure(t.Context(), cache, tinyRecipe(module), func(string, ...any) {})
	if err == nil || !strings.Contains(err.Error(), "broken.go:3") || !strings.Contains(err.Error(), "nosuchname") {
		t.Errorf("got %v, want the compiler's words", err)
	}
	if left := folders(t, cache); len(left) > 0 {
		t.Errorf("left in the cache: %q", left)
	}
}

func TestHashFollowsWhatIsBuilt(t *testing.T) {
	module := tinyModule(t)
	g := goTool{version: "go version go1.26.8 linux/amd64"}
	hash := func(r recipe, g goTool) string {
		t.Helper()
		sum, err := r.hash(g)
		if err != nil {
			t.Fatal(err)
		}
		return sum
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(module, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	first := hash(tinyRecipe(module), g)
	write("x_test.go", "package main\n")
	write("notes.md", "notes\n")
	if hash(tinyRecipe(module), g) != first {
		t.Error("a test or a note makes another build")
	}
	if hash(tinyRecipe(module), goTool{version: "go version go1.27.0 linux/amd64"}) == first {
		t.Error("another toolchain makes the same build")
	}
	other := tinyRecipe(module)
	other.ldflags = []string{"-X main.version=v2"}
	if hash(other, g) == first {
		t.Error("other linker flags make the same build")
	}
	write("go.sum", "example.com/x v1.0.0 h1:=\n")
	if hash(tinyRecipe(module), g) == first {
		t.Error("another go.sum makes the same build")
	}
}

func TestEnsureRefusesUnknownTargets(t *testing.T) {
	if _, err := Ensure(t.Context(), Options{Root: "../../..", CacheDir: t.TempDir(), Targets: []Target{"etcetera"}}); err == nil {
		t.Error("no error")
	}
}
