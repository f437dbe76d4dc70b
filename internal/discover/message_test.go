package discover

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

func testAdvert(t testing.TB, at string) *advert {
	t.Helper()
	a, err := newAdvert("lake", lake.String(), "mds1", netip.MustParseAddrPort(at))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func mustPack(t testing.TB, m dnsmessage.Message) []byte {
	t.Helper()
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestAnnouncement(t *testing.T) {
	for _, at := range []string{"10.0.0.1:2510", "[fd00::1]:7"} {
		a := testAdvert(t, at)
		b, err := a.announcement(timeToLive)
		if err != nil {
			t.Fatal(err)
		}
		got, err := parseAnswer(b)
		if err != nil || len(got) != 1 {
			t.Fatalf("%s: read %+v, %v", at, got, err)
		}
		i := got[0]
		if i.cluster != "lake" || i.uuid != lake.String() || len(i.ips) != 1 || netip.AddrPortFrom(i.ips[0], i.port).String() != at {
			t.Errorf("%s: read %+v", at, i)
		}
		if b, err = a.announcement(0); err != nil {
			t.Fatal(err)
		}
		if got, err := parseAnswer(b); err != nil || len(got) != 0 {
			t.Errorf("a server that says goodbye is %+v, %v", got, err)
		}
	}
}

func TestAnswer(t *testing.T) {
	a := testAdvert(t, "10.0.0.1:2510")
	ask := func(name string, typ dnsmessage.Type, class dnsmessage.Class) dnsmessage.Question {
		return dnsmessage.Question{Name: dnsmessage.MustNewName(name), Type: typ, Class: class}
	}
	service := ask(strings.ToUpper(serviceName), dnsmessage.TypePTR, dnsmessage.ClassINET)
	knows := func(seconds uint32) []dnsmessage.Resource { return a.records(seconds, false)[:1] }
	for _, tc := range []struct {
		name   string
		m      dnsmessage.Message
		onPort bool
		want   bool
		alone  bool
	}{
		{"the service", dnsmessage.Message{Questions: []dnsmessage.Question{service}}, true, true, false},
		{"from a port of its own", dnsmessage.Message{Header: dnsmessage.Header{ID: 77}, Questions: []dnsmessage.Question{service}}, false, true, true},
		{"alone will do", dnsmessage.Message{Questions: []dnsmessage.Question{ask(serviceName, dnsmessage.TypePTR, dnsmessage.ClassINET|unicastBit)}}, true, true, true},
		{"the instance", dnsmessage.Message{Questions: []dnsmessage.Question{ask(a.instance.String(), dnsmessage.TypeSRV, dnsmessage.ClassINET)}}, true, true, false},
		{"the host", dnsmessage.Message{Questions: []dnsmessage.Question{ask(a.host.String(), dnsmessage.TypeA, dnsmessage.ClassANY)}}, true, true, false},
		{"anything of the host", dnsmessage.Message{Questions: []dnsmessage.Question{ask(a.host.String(), dnsmessage.TypeALL, dnsmessage.ClassINET)}}, true, true, false},
		{"known already", dnsmessage.Message{Questions: []dnsmessage.Question{service}, Answers: knows(timeToLive)}, true, false, false},
		{"known, but not for long", dnsmessage.Message{Questions: []dnsmessage.Question{service}, Answers: knows(timeToLive/2 - 1)}, true, true, false},
		{"another service", dnsmessage.Message{Questions: []dnsmessage.Question{ask("_ipp._tcp.local.", dnsmessage.TypePTR, dnsmessage.ClassINET)}}, true, false, false},
		{"another class", dnsmessage.Message{Questions: []dnsmessage.Question{ask(serviceName, dnsmessage.TypePTR, dnsmessage.ClassCHAOS)}}, true, false, false},
		{"an answer", dnsmessage.Message{Header: dnsmessage.Header{Response: true}, Questions: []dnsmessage.Question{service}}, true, false, false},
		{"nothing", dnsmessage.Message{}, true, false, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, ok, err := a.answer(mustPack(t, tc.m), tc.onPort)
			if err != nil || ok != tc.want || got.alone != tc.alone {
				t.Fatalf("answered %v, alone %v, %v", ok, got.alone, err)
			}
			if !ok {
				return
			}
			var m dnsmessage.Message
			if err := m.Unpack(got.packet); err != nil {
				t.Fatal(err)
			}
			if !tc.onPort && (m.ID != tc.m.ID || len(m.Questions) != 1 || m.Answers[0].Header.TTL > timeToLiveOne || m.Answers[1].Header.Class != dnsmessage.ClassINET) {
				t.Errorf("to an asker without a cache: %+v", m)
			}
			if tc.onPort && (m.ID != 0 || len(m.Questions) != 0 || m.Answers[1].Header.Class != dnsmessage.ClassINET|cacheFlush) {
				t.Errorf("to all: %+v", m)
			}
			if list, err := parseAnswer(got.packet); err != nil || len(list) != 1 {
				t.Errorf("read as %+v, %v", list, err)
			}
		})
	}
	long := dnsmessage.Message{}
	for range maxQuestion + 1 {
		long.Questions = append(long.Questions, service)
	}
	if _, ok, err := a.answer(mustPack(t, long), true); ok || err == nil {
		t.Error("too many questions are answered")
	}
	if _, ok, err := a.answer(make([]byte, maxPacket+1), true); ok || err == nil {
		t.Error("too long a packet is answered")
	}
	// An answer is not much longer than the question it comes for, so that nobody gains by asking in another's name.
	got, _, err := a.answer(question(), false)
	if err != nil || len(got.packet) > 10*len(question()) {
		t.Errorf("%d bytes for %d, %v", len(got.packet), len(question()), err)
	}
}

// TestHostileAnswers: what is too much, or not all there, names nobody.
func TestHostileAnswers(t *testing.T) {
	a := testAdvert(t, "10.0.0.1:2510")
	all := a.records(timeToLive, false)
	many := dnsmessage.Message{Header: dnsmessage.Header{Response: true}}
	for range maxRecords/len(all) + 1 {
		many.Answers = append(many.Answers, all...)
	}
	crowd := dnsmessage.Message{Header: dnsmessage.Header{Response: true}}
	for i := range maxOfPacket + 1 {
		b, err := newAdvert("lake", lake.String(), "mds"+strings.Repeat("1", i+1), netip.MustParseAddrPort("10.0.0.1:2510"))
		if err != nil {
			t.Fatal(err)
		}
		crowd.Answers = append(crowd.Answers, b.records(timeToLive, false)[0])
	}
	for name, b := range map[string][]byte{
		"too many records": mustPack(t, many),
		"too many servers": mustPack(t, crowd),
		"a question":       question(),
		"an error":         mustPack(t, dnsmessage.Message{Header: dnsmessage.Header{Response: true, RCode: dnsmessage.RCodeServerFailure}, Answers: all}),
		"too long":         append(mustPack(t, dnsmessage.Message{Header: dnsmessage.Header{Response: true}, Answers: all}), make([]byte, maxPacket)...),
		"nothing":          nil,
		"cut off":          mustPack(t, dnsmessage.Message{Header: dnsmessage.Header{Response: true}, Answers: all})[:60],
	} {
		if got, err := parseAnswer(b); err == nil {
			t.Errorf("%s: read as %+v", name, got)
		}
	}
	for i := range all {
		part := append(append([]dnsmessage.Resource{}, all[:i]...), all[i+1:]...)
		if got, err := parseAnswer(mustPack(t, dnsmessage.Message{Header: dnsmessage.Header{Response: true}, Answers: part})); err != nil || len(got) != 0 {
			t.Errorf("without record %d: %+v, %v", i, got, err)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	a, err := newAdvert("lake", lake.String(), "mds1", netip.MustParseAddrPort("10.0.0.1:2510"))
	if err != nil {
		f.Fatal(err)
	}
	b, err := a.announcement(timeToLive)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(question())
	f.Add(bytes.Repeat([]byte{0xc0, 0x0c}, 100))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := parseAnswer(b)
		if err != nil && list != nil {
			t.Error("an error and servers")
		}
		if len(list) > maxOfPacket {
			t.Errorf("%d servers of a packet", len(list))
		}
		for _, i := range list {
			if i.port == 0 || len(i.ips) == 0 || len(i.ips) > maxIPs {
				t.Errorf("read %+v", i)
			}
		}
		for _, onPort := range []bool{false, true} {
			if r, ok, err := a.answer(b, onPort); ok && (err != nil || len(r.packet) > 1000) {
				t.Errorf("answered with %d bytes, %v", len(r.packet), err)
			}
		}
	})
}
