package state

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// Identify returns the process with a number as it is now.
func Identify(pid int) (Process, error) {
	start, err := startTime(pid)
	return Process{PID: pid, Start: start}, err
}

// Alive reports whether it still runs; another process with its number does
// not count, nor does a zombie.
func (p Process) Alive() bool {
	if p.PID <= 0 {
		return false
	}
	start, err := startTime(p.PID)
	return err == nil && start == p.Start
}

// Signal sends a signal if the process still is the same one.
func (p Process) Signal(sig syscall.Signal) error {
	if !p.Alive() {
		return os.ErrProcessDone
	}
	return syscall.Kill(p.PID, sig)
}

// startTime reads field 22 of /proc/PID/stat (proc(5)). The fields are counted
// after the command's closing bracket, since the command may hold blanks.
func startTime(pid int) (uint64, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, fmt.Errorf("process %d: %w", pid, err)
	}
	_, rest, _ := strings.Cut(string(data[strings.LastIndexByte(string(data), ')'):]), " ")
	fields := strings.Fields(rest)
	if len(fields) < 20 {
		return 0, fmt.Errorf("process %d: short stat %q", pid, data)
	}
	if fields[0] == "Z" || fields[0] == "X" {
		return 0, fmt.Errorf("process %d has ended", pid)
	}
	return strconv.ParseUint(fields[19], 10, 64)
}
