package netcheck

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/test/netns"
)

// memberEnv has a process of this test be a member: NUMBER ADDR SECONDS, by which its clock is ahead; or the hub that the others are joined to.
const memberEnv = "VARVE_NETCHECK_MEMBER"

func TestMain(m *testing.M) {
	if role := os.Getenv(memberEnv); role != "" && role != "hub" {
		var number uint32
		var addr string
		var ahead int
		_, err := fmt.Sscan(role, &number, &addr, &ahead)
		if err == nil {
			ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
			var s *server
			if s, err = serveMember(addr, number, func() time.Time { return time.Now().Add(time.Duration(ahead) * time.Second) }); err == nil {
				<-ctx.Done()
				s.stop()
			}
			stop()
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// tc runs a command of iproute2's tc in the namespace of the calling thread.
func tc(t *testing.T, line string) {
	t.Helper()
	if out, err := exec.Command("tc", strings.Fields(line)...).CombinedOutput(); err != nil {
		t.Skipf("no token bucket: tc %s: %v: %s", line, err, out)
	}
}

// TestBadNetwork: members in network namespaces, one behind a link of 20 Mbit/s, one behind a hop with an MTU of 1400, one whose clock is 3 s ahead,
// and one that is stopped in the middle. Each fault is found, and no other.
func TestBadNetwork(t *testing.T) {
	t.Parallel() // in a process of its own
	if os.Getenv(memberEnv) == "" {
		if os.Getuid() != 0 {
			t.Skip("needs root: it makes network namespaces")
		}
		for _, tool := range []string{"ip", "tc"} {
			if _, err := exec.LookPath(tool); err != nil {
				t.Skip("needs "+tool+": ", err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestBadNetwork$", "-test.v", "-test.count=1", "-test.timeout=5m")
		cmd.Env = append(os.Environ(), memberEnv+"=hub")
		cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL}
		out, err := cmd.CombinedOutput()
		t.Logf("%s", out)
		if errors.Is(err, unix.EPERM) || strings.Contains(string(out), "--- SKIP") {
			t.Skip("no network namespaces as they are needed: ", err)
		}
		if err != nil {
			t.Error(err)
		}
		return
	}
	netns.Hub(t)
	var list []Target
	var procs []*exec.Cmd
	const slow, small, ahead, stopped = 2, 3, 4, 5
	for n := 1; n <= stopped; n++ {
		s := netns.New(t, n)
		addr, clock := s.Host()+":2510", 0
		switch n {
		case slow:
			bucket := "root tbf rate 20mbit burst 32kb latency 100ms"
			tc(t, "qdisc add dev h2 "+bucket)
			s.Do(func() { tc(t, "qdisc add dev e "+bucket) })
		case small:
			netns.IP(t, "link set h3 mtu 1400")
		case ahead:
			clock = 3
		}
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d %s %d", memberEnv, n, addr, clock))
		cmd.Stderr = os.Stderr
		cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
		var err error
		s.Do(func() { err = cmd.Start() })
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
		procs = append(procs, cmd)
		list = append(list, Target{Name: fmt.Sprint("cs", n), Server: uint32(n), Addr: addr})
	}
	for _, m := range list {
		for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
			c, err := asAdmin(t.Context(), m.Addr)
			if err == nil {
				c.Close()
				break
			}
			if time.Now().After(end) {
				t.Fatal(err)
			}
		}
	}
	sent := false
	r, err := Run(t.Context(), RunOptions{Targets: list, Dial: asAdmin, For: 150 * time.Millisecond, Progress: func(done, _ int) {
		if done >= 3 && !sent {
			sent = true
			if err := procs[stopped-1].Process.Signal(unix.SIGSTOP); err != nil {
				t.Error(err)
			}
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range r.Problems {
		t.Logf("%-4s %s: %s", p.Verdict, p.Where, p.What)
	}
	t.Logf("%d pairs in %d ms", len(r.Pairs), r.TookMS)
	says := func(where, what string) bool {
		for _, p := range r.Problems {
			if p.Verdict == Bad && p.Where == where && strings.Contains(p.What, what) {
				return true
			}
		}
		return false
	}
	if !says("cs5", "stopped answering while it was measured") {
		t.Error("the member that was stopped does not show")
	}
	if !says("cs4", "clock 3s ahead") {
		t.Error("the clock that is ahead does not show")
	}
	for i := range r.Pairs {
		p := &r.Pairs[i]
		toSlow, toSmall := p.From == "cs2" || p.To == "cs2", p.From == "cs3" || p.To == "cs3"
		if p.Failed != "" {
			if p.From != "cs5" && p.To != "cs5" {
				t.Errorf("%s: %s", p.name(), p.Failed)
			}
			continue
		}
		if toSlow && !says(p.name(), "throughput ") || toSlow && (p.BytesPerS > 40e6/8 || p.BytesPerS <= 0) {
			t.Errorf("%s: %s over a link of 20 Mbit/s: verdict %s", p.name(), Bits(p.BytesPerS), p.Verdict)
		}
		want := uint32(1500)
		if toSmall {
			want = 1400
		}
		if p.From == "cs3" && p.PathMTU == want+4 {
			want += 4 // a veth takes in as much as a tag of a VLAN would make it
		}
		if p.PathMTU != want || toSmall && !says(p.name(), fmt.Sprintf("path MTU %d but the interfaces say 1500", want)) {
			t.Errorf("%s: path MTU %d by %s", p.name(), p.PathMTU, p.MTUBy)
		}
		// Towards the small hop its router says so; what comes from it is dropped without a word.
		if p.From == "cs3" && !p.Hole || p.To == "cs3" && p.Hole {
			t.Errorf("%s: what is larger vanishes: %v", p.name(), p.Hole)
		}
	}
}
