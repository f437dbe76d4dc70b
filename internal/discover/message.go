package discover

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

// Names and bounds of multicast DNS (RFC 6762) and of the service in it (RFC 6763).
const (
	mdnsPort    = 5353
	serviceName = "_varve._tcp.local."
	maxPacket   = 9000 // bytes, RFC 6762 section 17
	maxRecords  = 64   // of a packet
	maxQuestion = 32   // of a packet
	maxOfPacket = 16   // servers in a packet
	maxIPs      = 8    // of a host

	cacheFlush = 1 << 15 // of a record's class: it replaces those of before
	unicastBit = 1 << 15 // of a question's class: an answer to the asker alone will do

	timeToLive    = 120 // seconds, of records that name a host
	timeToLiveOne = 10  // of those in answers to askers that are not on the port
)

// instance is one server that was named in a packet.
type instance struct {
	name       string // of the instance, with its domain
	text       bool   // it came with a TXT record
	cluster    string // what that says, "" if nothing
	uuid       string
	host       string
	port       uint16
	ips        []netip.Addr
	timeToLive uint32
}

// parseAnswer reads the servers that a packet names. It is strict: a packet with anything that it does not take is refused as a whole.
func parseAnswer(b []byte) ([]instance, error) {
	if len(b) > maxPacket {
		return nil, fmt.Errorf("packet of more than %d bytes", maxPacket)
	}
	var p dnsmessage.Parser
	h, err := p.Start(b)
	if err != nil {
		return nil, err
	}
	if !h.Response || h.OpCode != 0 || h.RCode != 0 {
		return nil, errors.New("no answer")
	}
	if err := p.SkipAllQuestions(); err != nil {
		return nil, err
	}
	r := answers{byName: map[string]*instance{}, ips: map[string][]netip.Addr{}}
	for _, section := range []func() (dnsmessage.Resource, error){p.Answer, p.Authority, p.Additional} {
		for {
			rr, err := section()
			if err == dnsmessage.ErrSectionDone {
				break
			}
			if err != nil {
				return nil, err
			}
			if r.n++; r.n > maxRecords {
				return nil, fmt.Errorf("more than %d records", maxRecords)
			}
			if err := r.take(rr); err != nil {
				return nil, err
			}
		}
	}
	return r.servers(), nil
}

// answers is what was read of a packet so far.
type answers struct {
	n      int
	names  []string // of instances, in order
	byName map[string]*instance
	ips    map[string][]netip.Addr // by host
}

func (r *answers) instance(name dnsmessage.Name) (*instance, error) {
	key := strings.ToLower(name.String())
	if i := r.byName[key]; i != nil {
		return i, nil
	}
	if len(r.names) == maxOfPacket {
		return nil, fmt.Errorf("more than %d servers", maxOfPacket)
	}
	i := &instance{name: name.String()}
	r.byName[key], r.names = i, append(r.names, key)
	return i, nil
}

func (r *answers) take(rr dnsmessage.Resource) error {
	name := rr.Header.Name.String()
	mine := strings.HasSuffix(strings.ToLower(name), "."+serviceName)
	switch body := rr.Body.(type) {
	case *dnsmessage.PTRResource:
		if strings.EqualFold(name, serviceName) {
			i, err := r.instance(body.PTR)
			if err == nil {
				i.timeToLive = rr.Header.TTL
			}
			return err
		}
	case *dnsmessage.SRVResource:
		if mine {
			i, err := r.instance(rr.Header.Name)
			if err == nil {
				i.host, i.port = strings.ToLower(body.Target.String()), body.Port
			}
			return err
		}
	case *dnsmessage.TXTResource:
		if mine {
			i, err := r.instance(rr.Header.Name)
			if err != nil {
				return err
			}
			i.text = true
			for n, t := range body.TXT {
				if n == maxText {
					break
				}
				name, uuid := readText(t)
				if name != "" {
					i.cluster = name
				}
				if uuid != "" {
					i.uuid = uuid
				}
			}
		}
	case *dnsmessage.AResource:
		r.ip(name, netip.AddrFrom4(body.A))
	case *dnsmessage.AAAAResource:
		r.ip(name, netip.AddrFrom16(body.AAAA))
	}
	return nil
}

func (r *answers) ip(host string, ip netip.Addr) {
	host = strings.ToLower(host)
	if l := r.ips[host]; len(l) < maxIPs {
		r.ips[host] = append(l, ip)
	}
}

// servers returns the instances that are said in full: their cluster, port and addresses.
func (r *answers) servers() (out []instance) {
	for _, name := range r.names {
		i := r.byName[name]
		i.ips = r.ips[i.host]
		if i.text && i.port != 0 && len(i.ips) > 0 && i.timeToLive > 0 {
			out = append(out, *i)
		}
	}
	return out
}

// question returns a packet that asks who offers the service.
func question() []byte {
	m := dnsmessage.Message{Questions: []dnsmessage.Question{{
		Name: dnsmessage.MustNewName(serviceName), Type: dnsmessage.TypePTR, Class: dnsmessage.ClassINET,
	}}}
	b, err := m.Pack()
	if err != nil {
		panic(err) // of constants
	}
	return b
}

// advert is what a server says of itself.
type advert struct {
	instance, host dnsmessage.Name
	text           []string
	ip             netip.Addr
	port           uint16
}

// newAdvert makes that of a server, whose name is unique in its cluster.
func newAdvert(cluster, uuid, server string, at netip.AddrPort) (*advert, error) {
	tag := server + "-" + strings.ReplaceAll(uuid, "-", "")[:8]
	instance, err := dnsmessage.NewName(tag + "." + serviceName)
	if err != nil {
		return nil, err
	}
	host, err := dnsmessage.NewName("varve-" + tag + ".local.")
	if err != nil {
		return nil, err
	}
	return &advert{instance: instance, host: host, text: []string{"txtvers=1", "cluster=" + cluster, "uuid=" + uuid}, ip: at.Addr().Unmap(), port: at.Port()}, nil
}

// records returns all that there is to say. one: to an asker that is not on the port, who knows nothing of caches.
func (a *advert) records(seconds uint32, one bool) []dnsmessage.Resource {
	unique := dnsmessage.ClassINET | cacheFlush
	if one {
		unique, seconds = dnsmessage.ClassINET, min(seconds, timeToLiveOne)
	}
	head := func(name dnsmessage.Name, t dnsmessage.Type, c dnsmessage.Class) dnsmessage.ResourceHeader {
		return dnsmessage.ResourceHeader{Name: name, Type: t, Class: c, TTL: seconds}
	}
	out := []dnsmessage.Resource{
		{Header: head(dnsmessage.MustNewName(serviceName), dnsmessage.TypePTR, dnsmessage.ClassINET), Body: &dnsmessage.PTRResource{PTR: a.instance}},
		{Header: head(a.instance, dnsmessage.TypeSRV, unique), Body: &dnsmessage.SRVResource{Port: a.port, Target: a.host}},
		{Header: head(a.instance, dnsmessage.TypeTXT, unique), Body: &dnsmessage.TXTResource{TXT: a.text}},
	}
	if a.ip.Is4() {
		return append(out, dnsmessage.Resource{Header: head(a.host, dnsmessage.TypeA, unique), Body: &dnsmessage.AResource{A: a.ip.As4()}})
	}
	return append(out, dnsmessage.Resource{Header: head(a.host, dnsmessage.TypeAAAA, unique), Body: &dnsmessage.AAAAResource{AAAA: a.ip.As16()}})
}

// announcement returns what is sent without a question, and in answer to one on the port.
func (a *advert) announcement(seconds uint32) ([]byte, error) {
	m := dnsmessage.Message{Header: dnsmessage.Header{Response: true, Authoritative: true}, Answers: a.records(seconds, false)}
	return m.Pack()
}

// reply is what a question is answered with.
type reply struct {
	packet []byte
	alone  bool // it goes to the asker, not to all
}

// answer returns the reply to a packet; false: there is none. onPort says that it came from the port of multicast DNS, so that the asker has a cache.
func (a *advert) answer(b []byte, onPort bool) (reply, bool, error) {
	if len(b) > maxPacket {
		return reply{}, false, fmt.Errorf("packet of more than %d bytes", maxPacket)
	}
	var p dnsmessage.Parser
	h, err := p.Start(b)
	if err != nil {
		return reply{}, false, err
	}
	if h.Response || h.OpCode != 0 || h.RCode != 0 {
		return reply{}, false, nil
	}
	var asked []dnsmessage.Question
	all := false // somebody wants it sent to all
	for n := 0; ; n++ {
		q, err := p.Question()
		if err == dnsmessage.ErrSectionDone {
			break
		}
		if err != nil {
			return reply{}, false, err
		}
		if n == maxQuestion {
			return reply{}, false, fmt.Errorf("more than %d questions", maxQuestion)
		}
		if a.asked(q) {
			asked = append(asked, q)
			all = all || q.Class&unicastBit == 0
		}
	}
	if len(asked) == 0 {
		return reply{}, false, nil
	}
	if onPort {
		known, err := a.known(&p)
		if err != nil || known {
			return reply{}, false, err
		}
		out, err := a.announcement(timeToLive)
		return reply{packet: out, alone: !all}, err == nil, err
	}
	for i := range asked {
		asked[i].Class &^= unicastBit
	}
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: h.ID, Response: true, Authoritative: true}, Questions: asked[:1], Answers: a.records(timeToLive, true)}
	out, err := m.Pack()
	return reply{packet: out, alone: true}, err == nil, err
}

// asked reports whether a question is about this server.
func (a *advert) asked(q dnsmessage.Question) bool {
	if c := q.Class &^ unicastBit; c != dnsmessage.ClassINET && c != dnsmessage.ClassANY {
		return false
	}
	name := q.Name.String()
	switch q.Type {
	case dnsmessage.TypePTR:
		return strings.EqualFold(name, serviceName)
	case dnsmessage.TypeSRV, dnsmessage.TypeTXT:
		return strings.EqualFold(name, a.instance.String())
	case dnsmessage.TypeA, dnsmessage.TypeAAAA:
		return strings.EqualFold(name, a.host.String())
	case dnsmessage.TypeALL:
		return strings.EqualFold(name, serviceName) || strings.EqualFold(name, a.instance.String()) || strings.EqualFold(name, a.host.String())
	}
	return false
}

// known reports whether the asker says that it knows the server already, and will for half the time to live at least.
func (a *advert) known(p *dnsmessage.Parser) (bool, error) {
	for n := 0; ; n++ {
		h, err := p.AnswerHeader()
		if err == dnsmessage.ErrSectionDone {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if n == maxRecords {
			return false, fmt.Errorf("more than %d records", maxRecords)
		}
		if h.Type != dnsmessage.TypePTR || !strings.EqualFold(h.Name.String(), serviceName) || h.TTL < timeToLive/2 {
			if err := p.SkipAnswer(); err != nil {
				return false, err
			}
			continue
		}
		r, err := p.PTRResource()
		if err != nil {
			return false, err
		}
		if strings.EqualFold(r.PTR.String(), a.instance.String()) {
			return true, nil
		}
	}
}
