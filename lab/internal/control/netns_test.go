package control

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// insideEnv marks the process that runs in namespaces of its own.
const insideEnv = "AMBIT_CONTROL_TEST_INSIDE"

func TestMain(m *testing.M) {
	if os.Getenv(insideEnv) != "" {
		if err := enterLab(0, 1); err != nil {
			fmt.Fprintln(os.Stderr, "set up the test's namespaces:", err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// enterLab gives the process, which is in namespaces of its own, the addresses of
// the clusters with these indexes, and a /proc that shows its own processes.
func enterLab(indexes ...int) error {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := syscall.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	for _, i := range indexes {
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: Cluster{Index: i}.NodeIP().AsSlice(), Mask: net.CIDRMask(32, 32)}}
		if err := netlink.AddrAdd(lo, addr); err != nil {
			return err
		}
	}
	return nil
}

// runInside runs one test of this binary in new network, mount, pid and user
// namespaces: no test sends anything to 10.0.0.0/8 from the host's network, and
// nothing survives it.
func runInside(t *testing.T, name string, env ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "-test.run=^"+name+"$", "-test.v")
	cmd.Env = append(append(os.Environ(), insideEnv+"=1"), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatalf("in its own namespaces: %v", err)
	}
}

func TestAddresses(t *testing.T) {
	t.Parallel()
	c := Cluster{Name: "cluster-1", Index: 1}
	got := []string{
		c.APIAddress(), c.NodeIP().String(), c.PodCIDR().String(), c.LBCIDR().String(), c.ServiceCIDR().String(),
		c.APIServiceIP().String(), c.DNSIP().String(),
	}
	want := []string{"10.11.0.1:6443", "10.11.0.1", "10.11.0.0/18", "10.11.64.0/18", "10.11.128.0/17", "10.11.128.1", "10.11.128.10"}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("address %d: got %s, want %s", i, got[i], want[i])
		}
	}
	if !c.PodCIDR().Contains(netip.MustParseAddr("10.11.63.254")) || c.PodCIDR().Overlaps(c.LBCIDR()) || c.LBCIDR().Overlaps(c.ServiceCIDR()) {
		t.Error("the ranges of Pods, load balancers and Services overlap or are too small")
	}
}
