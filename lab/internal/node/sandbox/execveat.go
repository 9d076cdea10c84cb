package sandbox

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// execveat executes the open file fd itself, so that a program need not be visible in the root it runs in.
func execveat(fd int, argv, envp []*byte) syscall.Errno {
	var empty [1]byte
	_, _, errno := syscall.Syscall6(unix.SYS_EXECVEAT, uintptr(fd),
		uintptr(unsafe.Pointer(&empty[0])), //nolint:gosec // the empty path of AT_EMPTY_PATH
		uintptr(unsafe.Pointer(&argv[0])),  //nolint:gosec // argv of the system call
		uintptr(unsafe.Pointer(&envp[0])),  //nolint:gosec // envp of the system call
		unix.AT_EMPTY_PATH, 0)
	return errno
}
