package daemon

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"

	"ambitmesh.dev/ambit/lab/internal/state"
)

// firstFD is the number of the first handed-in descriptor: the control socket,
// then the UI's, then the API servers' in the order of Lab.Clusters.
const firstFD = 3

// Start runs this program's hidden `daemon` command in namespaces of its own
// and hands it the sockets. The daemon outlives the terminal and the caller.
func Start(dir state.Dir, control *net.UnixListener, ls *state.Listeners) (*exec.Cmd, error) {
	log, err := os.OpenFile(dir.DaemonLog(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("daemon log: %w", err)
	}
	defer log.Close()
	sock, err := control.File()
	if err != nil {
		return nil, fmt.Errorf("pass control socket on: %w", err)
	}
	defer sock.Close()
	files, err := ls.Files()
	if err != nil {
		return nil, err
	}
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	cmd := exec.Command(self, "daemon", "--state", string(dir))
	cmd.Dir = "/"
	cmd.Env = withoutProxies(os.Environ())
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = append([]*os.File{sock}, files...)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true,
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
	}
	if uid := os.Getuid(); uid != 0 { // root needs no user namespace; who has one can have the others
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	if err := cmd.Start(); err != nil {
		return nil, explain(err)
	}
	return cmd, nil
}

// withoutProxies drops the settings of a proxy: it is for the host's network,
// and the lab's clients would send their calls to 10.x there.
func withoutProxies(env []string) []string {
	return slices.DeleteFunc(env, func(kv string) bool {
		key, _, _ := strings.Cut(kv, "=")
		return strings.HasSuffix(strings.ToLower(key), "_proxy")
	})
}

// explain says what a machine lacks that refuses namespaces.
func explain(err error) error {
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EACCES) {
		return fmt.Errorf("this machine does not let you make namespaces (%w): allow unprivileged user namespaces "+
			"(sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0, user.max_user_namespaces>0) or run as root; "+
			"in a container, give it CAP_SYS_ADMIN and an unmasked /proc", err)
	}
	return fmt.Errorf("enter namespaces: %w", err)
}

// inherit turns the handed-in descriptors back into listeners.
func inherit(clusters int) (control, ui net.Listener, api []net.Listener, err error) {
	var all []net.Listener
	for fd := firstFD; fd < firstFD+2+clusters; fd++ {
		f := os.NewFile(uintptr(fd), "listener")
		l, err := net.FileListener(f)
		_ = f.Close()
		if err != nil {
			return nil, nil, nil, fmt.Errorf("inherited descriptor %d: %w (the daemon is started by `lab up` only)", fd, err)
		}
		all = append(all, l)
	}
	return all[0], all[1], all[2:], nil
}

// enter makes the namespaces usable: mounts stay inside, /proc shows our own
// processes, the host name says where one is.
func enter() error {
	if os.Getpid() != 1 {
		return errors.New("not process 1 of a pid namespace: the daemon is started by `lab up` only")
	}
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return explain(fmt.Errorf("make mounts private: %w", err))
	}
	if err := syscall.Mount("proc", "/proc", "proc", syscall.MS_NOSUID|syscall.MS_NODEV|syscall.MS_NOEXEC, ""); err != nil {
		return explain(fmt.Errorf("mount /proc: %w", err))
	}
	if err := syscall.Sethostname([]byte("ambit-lab")); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	return nil
}
