package traffic

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/test/netns"
)

// blockServers has servers of block devices on a host of their own reach the cluster by one of its two addresses, and tell their traffic apart as mounts do.
func (c *cluster) blockServers(t *testing.T, image string) {
	t.Helper()
	s := netns.New(t, 9)
	const at = "10.88.9.77"
	s.IP(t, "addr add "+at+"/24 dev e")
	for _, kind := range []string{"nbd", "vhost"} {
		log, err := os.Create(filepath.Join(c.dir, kind+".log"))
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(os.Getenv(netns.Binary), "-c", c.path, kind, "-o", "net="+at, "--socket", filepath.Join(c.dir, kind), image)
		cmd.Stdout, cmd.Stderr = log, log
		cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
		s.Do(func() { err = cmd.Start() })
		log.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		c.eventually("varve "+kind+" to be ready", time.Minute, func() bool {
			b, _ := os.ReadFile(log.Name())
			return strings.Contains(string(b), " is ")
		})
		from, err := established(cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range from {
			if a.String() != at {
				t.Errorf("varve %s -o net=%s has a connection from %s", kind, at, a)
			}
		}
		if len(from) == 0 {
			t.Errorf("varve %s has no connections", kind)
		}
		c.eventually("varve "+kind+" to tell its traffic apart", time.Minute, func() bool {
			h := c.host(s)
			return h.Classify == "on" && len(h.Interfaces) > 0
		})
		if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
			t.Error(err)
		}
		if err := cmd.Wait(); err != nil {
			b, _ := os.ReadFile(log.Name())
			t.Errorf("varve %s: %v\n%s", kind, err, b)
		}
	}
}

// established returns from which addresses connections of IPv4 lead out of a process' network namespace.
func established(pid int) (from []netip.Addr, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/tcp", pid))
	if err != nil {
		return nil, err
	}
	for _, line := range strings.Split(string(b), "\n")[1:] {
		f := strings.Fields(line)
		if len(f) < 4 || f[3] != "01" {
			continue
		}
		var a uint32
		if _, err := fmt.Sscanf(f[1], "%X:", &a); err != nil {
			return nil, fmt.Errorf("%q: %w", line, err)
		}
		from = append(from, netip.AddrFrom4([4]byte(binary.NativeEndian.AppendUint32(nil, a))))
	}
	return from, nil
}
