package discover

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
)

// service and proto are the names of the service (RFC 2782).
const (
	service = "varve"
	proto   = "tcp"
	// maxLabel is the longest part of a name in DNS.
	maxLabel = 63
	// maxText bounds the TXT records that are looked at, and the bytes of one.
	maxText, maxTextBytes = 64, 255
)

// srv is the answer to one question.
type srv struct {
	question string
	found    []Found
	notes    []string
	err      error
}

// byDNS asks for the cluster by its name, and for what the domain has.
func (o *Options) byDNS(ctx context.Context) ([]Found, []string, error) {
	if o.Name == "" {
		return nil, nil, errors.New("not asked: the cluster's name is not known")
	}
	var own, domain srv
	var wg sync.WaitGroup
	wg.Go(func() {
		if len(o.Name) > maxLabel {
			own = srv{question: "_varve._tcp.NAME", err: fmt.Errorf("not asked: the name is longer than the %d characters that DNS takes", maxLabel)}
			return
		}
		own = o.lookup(ctx, service, proto, o.Name, false)
	})
	wg.Go(func() { domain = o.lookup(ctx, "", "", "_"+service+"._"+proto, true) })
	wg.Wait()
	switch {
	case own.err == nil:
		return own.found, own.notes, nil
	case domain.err == nil:
		return domain.found, append([]string{own.question + ": " + own.err.Error()}, domain.notes...), nil
	}
	return nil, nil, fmt.Errorf("%s: %w, %s: %w", own.question, own.err, domain.question, domain.err)
}

// lookup asks for the SRV records of a name, and for what its TXT records say of the cluster; with named they must.
func (o *Options) lookup(ctx context.Context, service, proto, name string, named bool) srv {
	a := srv{question: strings.TrimPrefix("_"+service+"._"+proto+"."+name, "_._.")}
	cname, records, err := o.Resolver.LookupSRV(ctx, service, proto, name)
	if err != nil && len(records) == 0 {
		a.err = reason(ctx, err)
		return a
	}
	a.question = strings.TrimSuffix(cname, ".")
	if err != nil { // some are of no use
		a.notes = append(a.notes, a.question+": "+err.Error())
	}
	for i, r := range records {
		if i == MaxServers {
			a.notes = append(a.notes, fmt.Sprintf("%s: %d more than %d records refused", a.question, len(records)-i, MaxServers))
			break
		}
		host := strings.TrimSuffix(r.Target, ".")
		if host == "" || r.Port == 0 {
			a.notes = append(a.notes, a.question+": says that there is no such service") // target "."
			continue
		}
		addr, err := HostPort(net.JoinHostPort(host, fmt.Sprint(r.Port)))
		if err != nil {
			a.notes = append(a.notes, fmt.Sprintf("%s: target %s refused", a.question, printable(host)))
			continue
		}
		a.found = addFound(a.found, Found{Addr: addr, From: "SRV " + a.question})
	}
	if len(a.found) == 0 {
		a.err = errors.New(strings.Join(append(a.notes, "no SRV record that can be used"), ", "))
		return a
	}
	texts, err := o.Resolver.LookupTXT(ctx, cname)
	if err != nil && named {
		a.err = fmt.Errorf("no TXT record with cluster=%s: %w", o.Name, reason(ctx, err))
		return a
	}
	a.err = o.compare(texts, named)
	return a
}

// compare reads TXT records: one for each cluster, with cluster=NAME and uuid=UUID in any order, separated by blanks, semicolons or commas, or in strings of their own.
func (o *Options) compare(texts []string, named bool) error {
	var other error
	for i, t := range texts {
		if i == maxText {
			break
		}
		name, uuid := readText(t)
		if name == "" && uuid == "" {
			continue
		}
		err := o.matches(name, uuid)
		if err == nil {
			return nil
		}
		other = err
	}
	if other == nil && named {
		return fmt.Errorf("no TXT record with cluster=%s", o.Name)
	}
	return other
}

// apart parts the strings of one record, which the resolver has joined. No cluster's name has a = in it.
var apart = strings.NewReplacer("cluster=", " cluster=", "uuid=", " uuid=")

// readText returns what a TXT record says of a cluster.
func readText(t string) (name, uuid string) {
	if len(t) > maxTextBytes {
		return "", ""
	}
	for _, f := range strings.FieldsFunc(apart.Replace(t), func(r rune) bool { return r == ' ' || r == ';' || r == ',' || r == '\t' }) {
		key, value, _ := strings.Cut(f, "=")
		switch strings.ToLower(key) {
		case "cluster":
			name = value
		case "uuid":
			uuid = strings.ToLower(value)
		}
	}
	return name, uuid
}

// reason is a failure of DNS in few words.
func reason(ctx context.Context, err error) error {
	var d *net.DNSError
	switch {
	case ctx.Err() != nil, errors.As(err, &d) && d.IsTimeout:
		return errors.New("the DNS server did not answer in time")
	case d != nil && d.IsNotFound:
		return errors.New("no such record")
	}
	return err
}
