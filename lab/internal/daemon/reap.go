package daemon

import (
	"context"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// reapEvery is how often orphans are looked for.
const reapEvery = 3 * time.Second

// reap collects orphans: processes whose parents died before them and that the
// kernel gave to us, process 1. Our own children are waited for by who started
// them, and promptly; so a zombie of ours that is there in two looks in a row
// is an orphan. (Waiting for "any child" would steal from the others.)
func reap(ctx context.Context) {
	tick := time.NewTicker(reapEvery)
	defer tick.Stop()
	var before map[int]bool
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := map[int]bool{}
		for _, pid := range zombies(os.Getpid()) {
			if before[pid] {
				_, _ = syscall.Wait4(pid, nil, syscall.WNOHANG, nil)
				continue
			}
			now[pid] = true
		}
		before = now
	}
}

// zombies lists the ended, uncollected children of a process.
func zombies(parent int) []int {
	var out []int
	for _, pid := range pids() {
		data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil {
			continue
		}
		s := string(data)
		f := strings.Fields(s[strings.LastIndexByte(s, ')')+1:]) // state, ppid, ...
		if len(f) > 1 && f[0] == "Z" && f[1] == strconv.Itoa(parent) {
			out = append(out, pid)
		}
	}
	return out
}

// pids lists the processes of this pid namespace.
func pids() []int {
	d, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1)
	var out []int
	for _, n := range names {
		if pid, err := strconv.Atoi(n); err == nil {
			out = append(out, pid)
		}
	}
	return out
}
