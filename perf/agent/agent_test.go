package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"varve/perf"
)

const testVersion = "1.2.3-test"

// agentEnv makes the test binary an agent on its standard input and output; its value is the release that it claims.
const agentEnv = "VARVE_TEST_AGENT"

func TestMain(m *testing.M) {
	if v := os.Getenv(agentEnv); v != "" {
		fmt.Println("Welcome to this host!\n{not for machines}") // as login shells do
		fmt.Fprintln(os.Stderr, "pid", os.Getpid())
		if err := Serve(context.Background(), Stdio(os.Stdin, os.Stdout), ServeOptions{Version: v, Silence: 5 * time.Second}); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// process starts an agent as a process of its own, and writes its pid to a file.
func processHost(t *testing.T, name, version string) (h Host, pidFile string) {
	t.Helper()
	pidFile = filepath.Join(t.TempDir(), "pid")
	script := fmt.Sprintf("echo $$ >%s; exec env %s=%s %s", pidFile, agentEnv, version, os.Args[0])
	return Host{Name: name, Command: []string{"sh", "-c", script}}, pidFile
}

func pidIn(t *testing.T, file string) int {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Sscan(string(b), &pid); err != nil {
		t.Fatal(err)
	}
	return pid
}

func processes(t *testing.T, names ...string) (hosts []Host, pids []string) {
	for _, n := range names {
		h, p := processHost(t, n, testVersion)
		hosts, pids = append(hosts, h), append(pids, p)
	}
	return hosts, pids
}

// TestHosts: two processes do their shares of one load; figures add up exactly, jobs have files of their own, and both begin together.
func TestHosts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	hosts, _ := processes(t, "a", "b")
	var mu sync.Mutex
	var told []perf.Progress
	load := perf.Options{
		Target: "mount:" + dir, RW: perf.RandRW, Size: 1 << 20, QD: 2, Jobs: 2, Rate: 800, Ramp: time.Second, Duration: 1500 * time.Millisecond, Verify: true, FsyncEvery: 16,
	}
	res, err := Run(t.Context(), RunOptions{Load: load, Hosts: hosts, Version: testVersion, Progress: func(p perf.Progress) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, p)
	}})
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	if err := res.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	if !res.OK() || len(res.Hosts) != 2 || res.Lost != 0 {
		t.Fatalf("%s", &text)
	}
	var count, bytes, ramp, checked, seconds int64
	for i, h := range res.Hosts {
		r := h.Result
		count, bytes, ramp, checked = count+r.Total.Count, bytes+r.Total.Bytes, ramp+r.Ramp.Total.Count, checked+r.Verify.Checked
		if r.Options.Share.Host != i || r.Total.Count+r.Missed == 0 || h.ClockError <= 0 || h.ClockError > 5*time.Second {
			t.Errorf("%+v", h)
		}
	}
	for _, s := range res.Series {
		seconds += s.Done()
	}
	if res.Total.Count != count || res.Total.Bytes != bytes || res.Ramp.Total.Count != ramp || res.Verify.Checked != checked || seconds != count+ramp {
		t.Errorf("hosts did %d and %d, all together %d and %d, in seconds %d", count, ramp, res.Total.Count, res.Ramp.Total.Count, seconds)
	}
	if due := int64(800); res.Ramp.Total.Count+res.Missed < due-40 || res.Ramp.Total.Count > due+1 { // the rate is that of all, if the disk keeps up
		t.Errorf("%d operations in the ramp, want %d", res.Ramp.Total.Count, due)
	}
	if res.Total.Latency.Max < max(res.Hosts[0].Result.Total.Latency.Max, res.Hosts[1].Result.Total.Latency.Max) || res.Total.Latency.P99 <= 0 {
		t.Errorf("%+v", res.Total.Latency)
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	if len(files) != 4 {
		t.Errorf("files %v", files)
	}
	mu.Lock()
	if len(told) == 0 || !slices.ContainsFunc(told, func(p perf.Progress) bool { return p.IOPS > 0 }) {
		t.Errorf("told %+v", told)
	}
	mu.Unlock()
	if !strings.Contains(text.String(), "on each of 2 hosts") || !strings.Contains(text.String(), "began within") {
		t.Errorf("%s", &text)
	}
	if js, err := json.Marshal(res); err != nil || !bytesContain(js, `"hosts":[{"name":"a"`) {
		t.Errorf("%v: %.300s", err, js)
	}
	if err := res.WriteDir(t.TempDir()); err != nil {
		t.Error(err)
	}
}

func bytesContain(b []byte, s string) bool { return bytes.Contains(b, []byte(s)) }

// TestLost: an agent that is killed, and one that stands still, are named in the result with what they told until then; the rest counts.
func TestLost(t *testing.T) {
	for name, c := range map[string]struct {
		signal syscall.Signal
		want   string
	}{"killed": {syscall.SIGKILL, "its agent ended"}, "stopped": {syscall.SIGSTOP, "silent for"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			hosts, pids := processes(t, "a", "b", "c")
			var once sync.Once
			load := perf.Options{Target: "null", Rate: 300, QD: 2, Duration: 15 * time.Second}
			res, err := Run(t.Context(), RunOptions{Load: load, Hosts: hosts, Version: testVersion, Silence: 6 * time.Second, Progress: func(p perf.Progress) {
				if p.IOPS > 0 && p.Elapsed >= 2*time.Second {
					once.Do(func() {
						if err := syscall.Kill(pidIn(t, pids[1]), c.signal); err != nil {
							t.Error(err)
						}
					})
				}
			}})
			if err != nil {
				t.Fatal(err)
			}
			if res.OK() || res.Lost != 1 || !strings.Contains(res.Hosts[1].Lost, c.want) || !strings.Contains(res.Stopped, "host b: its agent was lost") {
				t.Fatalf("%q: %+v", res.Stopped, res.Hosts)
			}
			if n := res.Hosts[1].Result.Total.Count; n < 50 || n > 1450 {
				t.Errorf("the lost one told of %d operations", n)
			}
			for _, i := range []int{0, 2} {
				if h := res.Hosts[i]; h.Lost != "" || h.Result.Total.Count < 300 || h.Result.Stopped != "" {
					t.Errorf("%+v", h)
				}
			}
			var sum int64
			for _, h := range res.Hosts {
				sum += h.Result.Total.Count
			}
			if res.Total.Count != sum {
				t.Errorf("%d operations in all, the hosts say %d", res.Total.Count, sum)
			}
			if err := syscall.Kill(pidIn(t, pids[1]), 0); err == nil {
				t.Error("the lost agent was left behind")
			}
		})
	}
}

// TestEnds: Ctrl-C gives the result of what ran, and a load that has settled on all hosts together ends.
func TestEnds(t *testing.T) {
	t.Parallel()
	hosts, _ := processes(t, "a", "b")
	ctx, cancel := context.WithCancel(t.Context())
	res, err := Run(ctx, RunOptions{Load: perf.Options{Target: "null", Rate: 100, Duration: time.Hour}, Hosts: hosts, Version: testVersion, Progress: func(perf.Progress) { cancel() }})
	if err != nil || res.Stopped != "cancelled" || !res.OK() || res.Total.Count == 0 {
		t.Errorf("%v: %+v", err, res)
	}
	steady := perf.Steady{Rounds: 2, Round: time.Second, Range: 100, Slope: 100}
	res, err = Run(t.Context(), RunOptions{Load: perf.Options{Target: "null", Rate: 200, Duration: time.Hour, Steady: steady}, Hosts: hosts, Version: testVersion})
	if err != nil || !res.OK() || res.Steady == nil || !res.Steady.Reached || res.Elapsed > time.Minute || res.Steady.Window == nil {
		t.Errorf("%v: %+v", err, res)
	}
}

// TestDoesNotBegin: what is wrong before the start is an error that names the host, and nothing runs.
func TestDoesNotBegin(t *testing.T) {
	t.Parallel()
	good, _ := processHost(t, "good", testVersion)
	old, _ := processHost(t, "old", "1.0")
	for name, c := range map[string]struct {
		host Host
		load perf.Options
		want string
	}{
		"release":    {old, perf.Options{}, "host old: it is varve 1.0, this host has 1.2.3-test"},
		"target":     {Host{Name: "x", Command: good.Command}, perf.Options{Target: "mount:/no/such/place"}, "no/such/place"},
		"no agent":   {Host{Name: "x", Command: []string{"sh", "-c", "echo what?; echo ssh: no route >&2"}}, perf.Options{}, "host x: its agent ended: sh -c"},
		"why":        {Host{Name: "x", Command: []string{"sh", "-c", "echo no route >&2"}}, perf.Options{}, "no route"},
		"noise":      {Host{Name: "x", Command: []string{"sh", "-c", "yes"}}, perf.Options{}, "it is no agent"},
		"no program": {Host{Name: "x", Command: []string{"/no/such/program"}}, perf.Options{}, "no/such/program"},
	} {
		begin := time.Now()
		res, err := Run(t.Context(), RunOptions{Load: c.load, Hosts: []Host{good, c.host}, Version: testVersion})
		if err == nil || !strings.Contains(err.Error(), c.want) || time.Since(begin) > connectTime {
			t.Errorf("%s: %v, %v", name, err, res)
		}
	}
}

// TestListen: those with the secret are served, others are not, and what is not allowed is refused.
func TestListen(t *testing.T) {
	t.Parallel()
	secret := []byte("0123456789abcdef0123456789abcdef\n")
	ctx, cancel := context.WithCancel(t.Context())
	addr := make(chan net.Addr, 1)
	done := make(chan error, 2)
	o := ServeOptions{Version: testVersion, Allow: func(o perf.Options) error {
		if strings.HasPrefix(o.Target, "file:") {
			return fmt.Errorf("not that")
		}
		return nil
	}}
	go func() {
		err := Listen(ctx, "127.0.0.1:0", secret, o, func(a net.Addr) { addr <- a }, nil)
		done <- err
		done <- err
	}()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	var host []Host
	select {
	case a := <-addr:
		host = []Host{{Name: "tcp", Addr: a.String()}}
	case err := <-done:
		t.Fatal(err)
	}
	load := perf.Options{Target: "null", Rate: 100, Duration: 300 * time.Millisecond}
	res, err := Run(t.Context(), RunOptions{Load: load, Hosts: host, Version: testVersion, Secret: secret[:32]})
	if err != nil || !res.OK() || res.Total.Count == 0 {
		t.Fatalf("%v: %+v", err, res)
	}
	if _, err = Run(t.Context(), RunOptions{Load: load, Hosts: host, Version: testVersion, Secret: []byte("another secret of the same length")}); err == nil {
		t.Error("another secret is taken")
	}
	if _, err = Run(t.Context(), RunOptions{Load: load, Hosts: host, Version: testVersion, Secret: []byte("short")}); err == nil || !strings.Contains(err.Error(), "guessed") {
		t.Error(err)
	}
	load.Target = "file:/dev/null"
	if _, err = Run(t.Context(), RunOptions{Load: load, Hosts: host, Version: testVersion, Secret: secret}); err == nil || !strings.Contains(err.Error(), "not that") {
		t.Error(err)
	}
	plain, err := net.Dial("tcp", host[0].Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	_ = plain.SetDeadline(time.Now().Add(20 * time.Second))
	fmt.Fprintln(plain, `{"hello":{"protocol":1,"version":"1.2.3-test"}}`)
	b := make([]byte, 1000)
	n, _ := plain.Read(b)
	if bytesContain(b[:n], "varve") {
		t.Errorf("a stranger is told %q", b[:n])
	}
}

// TestAskerGone: the load of an agent ends when the asking host is gone, or silent.
func TestAskerGone(t *testing.T) {
	for _, silent := range []bool{false, true} {
		t.Run(fmt.Sprintf("silent=%v", silent), func(t *testing.T) {
			t.Parallel()
			near, far := net.Pipe()
			served := make(chan error, 1)
			go func() {
				served <- Serve(t.Context(), far, ServeOptions{Version: testVersion, Silence: 2 * time.Second})
			}()
			c := newConn(near)
			defer c.close()
			if _, err := c.receiveHello(); err != nil {
				t.Fatal(err)
			}
			for _, m := range []*message{
				{Hello: &hello{Protocol: Protocol, Version: testVersion}},
				{Prepare: &perf.Options{Target: "null", Rate: 10, Duration: time.Hour}},
			} {
				if err := c.send(m); err != nil {
					t.Fatal(err)
				}
			}
			for seconds := 0; seconds == 0; {
				m, err := c.receive()
				switch {
				case err != nil:
					t.Fatal(err)
				case m.Error != "":
					t.Fatal(m.Error)
				case m.Ready:
					_ = c.send(&message{Start: 1}) // long ago
				case m.Second != nil:
					seconds++
				}
				_ = c.send(&message{Alive: true})
			}
			if !silent {
				c.close()
			} else {
				go func() {
					for {
						if _, err := c.receive(); err != nil {
							return
						}
					}
				}()
			}
			select {
			case err := <-served:
				if silent != (err != nil && strings.Contains(err.Error(), "nothing was heard")) {
					t.Error(err)
				}
			case <-time.After(30 * time.Second):
				t.Fatal("the agent goes on")
			}
		})
	}
}

func TestParseHosts(t *testing.T) {
	got, err := ParseHosts("ssh:root@h1,tcp:10.0.0.1:99,local,local", "", "/bin/varve")
	if err != nil {
		t.Fatal(err)
	}
	var words []string
	for _, h := range got {
		words = append(words, h.Name+"|"+h.Addr+"|"+strings.Join(h.Command, " "))
	}
	want := "root@h1||ssh -o BatchMode=yes -o ConnectTimeout=10 root@h1 varve perf agent --stdio\ntcp:10.0.0.1:99|10.0.0.1:99|\n" +
		"local||/bin/varve perf agent --stdio\nlocal#2||/bin/varve perf agent --stdio"
	if s := strings.Join(words, "\n"); s != want {
		t.Errorf("got\n%s\nwant\n%s", s, want)
	}
	if got, err = ParseHosts("n1", "ip netns exec {host} varve", ""); err != nil || strings.Join(got[0].Command, " ") != "ip netns exec n1 varve perf agent --stdio" {
		t.Errorf("%v: %v", err, got)
	}
	for _, bad := range []string{"", "h1", "ssh:", "ssh:-oProxyCommand=x", "local,,local"} {
		if got, err := ParseHosts(bad, "", "varve"); err == nil {
			t.Errorf("%q: %v", bad, got)
		}
	}
}

// FuzzMessage: what comes over the connection may be anything.
func FuzzMessage(f *testing.F) {
	f.Add([]byte(`{"second":{"second":3,"measured":{"counts":{"read":1},"latency":{"read":"HISTFAAAAB14"}}}}` + "\n"))
	f.Add([]byte(helloMagic + `1,"hello":{"protocol":1}}` + "\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c := newConn(stdio{bytes.NewReader(b), new(bytes.Buffer), func() error { return nil }})
		defer c.close()
		_, _ = c.receiveHello()
		for {
			m, err := c.receive()
			if err != nil {
				return
			}
			if m.Second != nil {
				g := perf.NewGather(perf.Options{})
				g.Add(m.Second)
				g.Result(time.Now(), time.Second)
			}
		}
	})
}
