package sandbox

import (
	"fmt"
	"os"
	"path/filepath"

	securejoin "github.com/cyphar/filepath-securejoin"
	"golang.org/x/sys/unix"
)

// devices that a container finds in /dev. They are bind-mounted, since a user namespace may not make device nodes.
func devices() []string { return []string{"null", "zero", "full", "random", "urandom", "tty"} }

// caCertificates is the one file of the host's trust store that Go programs read.
const caCertificates = "/etc/ssl/certs/ca-certificates.crt"

// buildRoot makes the container's root at s.Root. It runs in the container's own mount namespace.
func buildRoot(s Spec) error {
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("tmpfs", s.Root, "tmpfs", unix.MS_NOSUID, "mode=0755"); err != nil {
		return fmt.Errorf("mount root: %w", err)
	}
	for _, d := range []string{"dev", "dev/shm", "dev/pts", "etc", "proc", "root", "usr/local/bin", "usr/bin", "bin", "sbin", "var/run", "var/tmp", "var/log", "tmp", "run"} {
		if err := os.MkdirAll(filepath.Join(s.Root, d), 0o755); err != nil {
			return err
		}
	}
	for _, d := range []string{"tmp", "var/tmp", "dev/shm"} {
		if err := os.Chmod(filepath.Join(s.Root, d), os.ModeSticky|os.ModePerm); err != nil {
			return err
		}
	}
	for _, f := range []struct{ name, content string }{{"etc/passwd", s.Users}, {"etc/group", s.Groups}, {"etc/nsswitch.conf", "hosts: files dns\n"}} {
		if err := os.WriteFile(filepath.Join(s.Root, f.name), []byte(f.content), 0o644); err != nil {
			return err
		}
	}
	if err := mountDev(s.Root); err != nil {
		return err
	}
	if err := mountProc(filepath.Join(s.Root, "proc")); err != nil {
		return err
	}
	if _, err := os.Stat(caCertificates); err == nil {
		if err := bind(Mount{Source: caCertificates, Target: caCertificates, ReadOnly: true}, s.Root); err != nil {
			return err
		}
	}
	for _, m := range s.Mounts {
		if err := bind(m, s.Root); err != nil {
			return err
		}
	}
	return bind(Mount{Source: s.Binary, Target: s.BinaryPath, ReadOnly: true}, s.Root)
}

func mountDev(root string) error {
	for _, d := range devices() {
		src := "/dev/" + d
		if _, err := os.Stat(src); err != nil {
			continue
		}
		if err := bind(Mount{Source: src, Target: src}, root); err != nil {
			return err
		}
	}
	for name, target := range map[string]string{"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"} {
		if err := os.Symlink(target, filepath.Join(root, "dev", name)); err != nil {
			return err
		}
	}
	// An own pts instance makes `exec -t` possible; where the kernel refuses it, the rest still works.
	pts := filepath.Join(root, "dev/pts")
	if unix.Mount("devpts", pts, "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620") == nil {
		return os.Symlink("pts/ptmx", filepath.Join(root, "dev/ptmx"))
	}
	return nil
}

// mountProc mounts the proc of the container's own pid namespace. In a user namespace on a host whose /proc is partly
// masked the kernel refuses that; then the lab's own /proc is bound, which shows the processes of the lab only.
func mountProc(target string) error {
	if unix.Mount("proc", target, "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "") == nil {
		return nil
	}
	if err := unix.Mount("/proc", target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mount proc: %w", err)
	}
	return nil
}

// bind mounts m below root, making the mount point when it is missing.
func bind(m Mount, root string) error {
	st, err := os.Stat(m.Source)
	if err != nil {
		return fmt.Errorf("mount %s: %w", m.Target, err)
	}
	target, err := securejoin.SecureJoin(root, m.Target)
	if err != nil {
		return fmt.Errorf("mount %s: %w", m.Target, err)
	}
	if st.IsDir() {
		err = os.MkdirAll(target, 0o755)
	} else if err = os.MkdirAll(filepath.Dir(target), 0o755); err == nil {
		err = touch(target)
	}
	if err != nil {
		return fmt.Errorf("mount point %s: %w", m.Target, err)
	}
	if err := unix.Mount(m.Source, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mount %s: %w", m.Target, err)
	}
	if !m.ReadOnly {
		return nil
	}
	// Flags that the outer mount has (nosuid, nodev, ...) are locked in a user namespace, so they are repeated.
	var fs unix.Statfs_t
	if err := unix.Statfs(target, &fs); err != nil {
		return fmt.Errorf("mount %s: %w", m.Target, err)
	}
	const inherited = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOATIME | unix.MS_NODIRATIME | unix.MS_RELATIME
	flags := uintptr(fs.Flags) & inherited //nolint:gosec // a set of bits
	if err := unix.Mount("", target, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|flags, ""); err != nil {
		return fmt.Errorf("mount %s read-only: %w", m.Target, err)
	}
	return nil
}

func touch(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o644) //nolint:gosec // G302: a mount point
	if err != nil {
		return err
	}
	return f.Close()
}

// pivot makes root the root of this mount namespace and drops all that was there before.
func pivot(root string) error {
	if err := unix.Chdir(root); err != nil {
		return fmt.Errorf("enter root: %w", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("drop the old root: %w", err)
	}
	return unix.Chdir("/")
}
