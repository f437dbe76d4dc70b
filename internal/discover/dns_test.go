package discover

import (
	"context"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"varve/internal/id"
)

// zone is what a DNS server of a test knows: by lower-case name with a dot at the end.
type zone struct {
	srv  map[string][]dnsmessage.SRVResource
	txt  map[string][]string
	dead bool // it answers nobody
}

func target(name string, port, priority uint16) dnsmessage.SRVResource {
	return dnsmessage.SRVResource{Target: dnsmessage.MustNewName(name), Port: port, Priority: priority}
}

// resolver returns one that asks a server with this zone, and nobody else.
func (z *zone) resolver(t *testing.T) *net.Resolver {
	t.Helper()
	var u net.PacketConn
	var l net.Listener // for answers that are too long for a datagram
	for try := 0; ; try++ {
		var err error
		if u, err = net.ListenPacket("udp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		if l, err = net.Listen("tcp", u.LocalAddr().String()); err == nil {
			break
		}
		u.Close()
		if try == 100 { // ports that another has
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		b := make([]byte, 2048)
		for {
			n, from, err := u.ReadFrom(b)
			if err != nil {
				return
			}
			if out := z.answer(b[:n], 512); out != nil {
				_, _ = u.WriteTo(out, from)
			}
		}
	})
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.SetDeadline(time.Now().Add(5 * time.Second))
			b := make([]byte, 2048)
			if n, err := c.Read(b); err == nil && n > 2 {
				if out := z.answer(b[2:n], 1<<16-1); out != nil {
					_, _ = c.Write(append([]byte{byte(len(out) >> 8), byte(len(out))}, out...))
				}
			}
			_ = c.Close()
		}
	})
	t.Cleanup(func() { u.Close(); l.Close(); wg.Wait() })
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, u.LocalAddr().String())
	}}
}

func (z *zone) answer(b []byte, limit int) []byte {
	var m dnsmessage.Message
	if m.Unpack(b) != nil || len(m.Questions) != 1 || z.dead {
		return nil
	}
	q := m.Questions[0]
	name := strings.ToLower(q.Name.String())
	m.Response, m.Authoritative, m.RecursionAvailable, m.Additionals = true, true, true, nil
	h := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: dnsmessage.ClassINET, TTL: 1}
	switch q.Type {
	case dnsmessage.TypeSRV:
		for _, r := range z.srv[name] {
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: &r})
		}
	case dnsmessage.TypeTXT:
		for _, s := range z.txt[name] {
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.TXTResource{TXT: strings.Split(s, "|")}})
		}
	}
	if len(m.Answers) == 0 {
		m.RCode = dnsmessage.RCodeNameError
	}
	out, err := m.Pack()
	if err != nil {
		return nil
	}
	if len(out) > limit {
		m.Truncated, m.Answers = true, nil
		out, _ = m.Pack()
	}
	return out
}

var lake = id.Cluster{0x0f, 0x8f, 0xad, 0x5b, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}

const elsewhere = "00000000-0000-0000-0000-000000000001"

func TestDNS(t *testing.T) {
	own := []dnsmessage.SRVResource{target("mds2.example.com.", 2511, 20), target("mds1.example.com.", 2510, 10), target("mds9.", 2510, 30)}
	want := []string{"mds1.example.com:2510", "mds2.example.com:2511", "mds9:2510"}
	many := make([]dnsmessage.SRVResource, 0, 200)
	for i := range 200 {
		many = append(many, target("m"+strings.Repeat("x", i%50)+string(rune('a'+i%26))+".", uint16(i+1), 1))
	}
	for _, tc := range []struct {
		name   string
		z      zone
		limit  time.Duration
		asName string
		want   []string
		count  int    // of addresses, if want is nil
		err    string // of the way
		note   string
	}{
		{name: "by the cluster's name", z: zone{srv: map[string][]dnsmessage.SRVResource{"_varve._tcp.lake.": own}}, want: want},
		{name: "with the UUID", z: zone{srv: map[string][]dnsmessage.SRVResource{"_varve._tcp.lake.": own},
			txt: map[string][]string{"_varve._tcp.lake.": {"v=spf1", "uuid=" + lake.String()}}}, want: want},
		{name: "another UUID", z: zone{srv: map[string][]dnsmessage.SRVResource{"_varve._tcp.lake.": own},
			txt: map[string][]string{"_varve._tcp.lake.": {"uuid=" + elsewhere}}}, err: "is of the cluster with the UUID " + elsewhere},
		{name: "by the domain", z: zone{srv: map[string][]dnsmessage.SRVResource{"_varve._tcp.": own},
			txt: map[string][]string{"_varve._tcp.": {"cluster=pond", "cluster=lake|uuid=" + lake.String()}}}, want: want, note: "_varve._tcp.lake: no such record"},
		{name: "by the domain, of others", z: zone{srv: map[string][]dnsmessage.SRVResource{"_varve._tcp.": own},
			txt: map[string][]string{"_varve._tcp.": {"cluster=pond"}}}, err: "is of the cluster pond, not lake"},
		{name: "by the domain, of nobody", z: zone{srv: map[string][]dnsmessage.SRVResource{"_varve._tcp.": own}}, err: "no TXT record with cluster=lake"},
		{name: "nothing", err: "_varve._tcp.lake: no such record, _varve._tcp: no such record"},
		{name: "no service", z: zone{srv: map[string][]dnsmessage.SRVResource{"_varve._tcp.lake.": {target(".", 0, 0)}}}, err: "says that there is no such service"},
		{name: "bad targets", z: zone{srv: map[string][]dnsmessage.SRVResource{"_varve._tcp.lake.": append([]dnsmessage.SRVResource{target("a/b.", 1, 0)}, own...)}},
			want: want, note: "invalid names"},
		{name: "too many", z: zone{srv: map[string][]dnsmessage.SRVResource{"_varve._tcp.lake.": many}}, count: MaxServers, note: "more than 64 records refused"},
		{name: "a dead server", z: zone{dead: true}, limit: 300 * time.Millisecond, err: "did not answer in time"},
		{name: "a long name", asName: strings.Repeat("x", 64), err: "longer than the 63 characters"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := Options{Name: "lake", UUID: lake, Resolver: tc.z.resolver(t), MDNSPort: -1, Limit: 20 * time.Second, head: time.Nanosecond}
			if tc.limit > 0 {
				o.Limit = tc.limit
			}
			if tc.asName != "" {
				o.Name = tc.asName
			}
			r, err := Find(t.Context(), o)
			a := r.Tried[1]
			if tc.err != "" {
				if err == nil || a.Err == nil || !strings.Contains(a.Err.Error(), tc.err) || !strings.Contains(err.Error(), "; dns: "+a.Err.Error()) {
					t.Fatalf("found %q, error %v, way's %v, want %q", r.Addrs, err, a.Err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if tc.want != nil && !slices.Equal(r.Addrs, tc.want) || tc.want == nil && len(r.Addrs) != tc.count {
				t.Errorf("found %q, want %q or %d", r.Addrs, tc.want, tc.count)
			}
			if !strings.Contains(strings.Join(a.Notes, "; "), tc.note) {
				t.Errorf("notes %q, want %q", a.Notes, tc.note)
			}
		})
	}
}

func FuzzText(f *testing.F) {
	f.Add("cluster=lake uuid=" + lake.String())
	f.Add("cluster=lakeuuid=" + lake.String())
	f.Add("=;,=cluster==")
	f.Fuzz(func(t *testing.T, s string) {
		name, uuid := readText(s)
		if strings.ContainsAny(name+uuid, " ;,\t") {
			t.Errorf("%q has %q and %q", s, name, uuid)
		}
		if len(name)+len(uuid) > maxTextBytes {
			t.Errorf("%d bytes of a text of %d", len(name)+len(uuid), len(s))
		}
		o := Options{Name: "lake", UUID: lake}
		if err := o.matches(name, uuid); err != nil && len(err.Error()) > 1000 {
			t.Errorf("an error of %d bytes", len(err.Error()))
		}
	})
}
