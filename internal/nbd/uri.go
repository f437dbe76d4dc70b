package nbd

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
)

// DefaultPort is where servers listen.
const DefaultPort = "10809"

// URI says where an export is: nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH (doc/uri.md of the protocol).
type URI struct {
	Network string // tcp or unix
	Address string
	Export  string // empty: the server's default
}

// ParseURI reads a URI.
func ParseURI(s string) (URI, error) {
	u, err := parseURI(s)
	if err != nil {
		return URI{}, fmt.Errorf("%q: want nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH: %w", s, err)
	}
	return u, nil
}

func parseURI(s string) (URI, error) {
	u, err := url.Parse(s)
	if err != nil {
		return URI{}, err
	}
	out := URI{Export: strings.TrimPrefix(u.Path, "/")}
	query := u.Query()
	socket := query.Get("socket")
	query.Del("socket")
	switch {
	case u.Opaque != "" || u.Fragment != "":
		return out, errors.New("no // after the scheme, or a #")
	case u.User != nil:
		return out, errors.New("users belong to TLS, which this client does not do")
	case len(query) > 0:
		return out, fmt.Errorf("what is ?%s", query.Encode())
	case len(out.Export) > MaxName:
		return out, fmt.Errorf("an export's name of %d bytes, at most %d", len(out.Export), MaxName)
	}
	switch u.Scheme {
	case "nbd":
		if u.Hostname() == "" || socket != "" {
			return out, errors.New("a host, and no socket")
		}
		port := u.Port()
		if port == "" {
			port = DefaultPort
		}
		out.Network, out.Address = "tcp", net.JoinHostPort(u.Hostname(), port)
	case "nbd+unix":
		if u.Host != "" || socket == "" {
			return out, errors.New("no host, and a socket")
		}
		out.Network, out.Address = "unix", socket
	case "nbds", "nbds+unix":
		return out, errors.New("this client does not do TLS")
	default:
		return out, fmt.Errorf("the scheme %q", u.Scheme)
	}
	return out, nil
}

// String is a URI that ParseURI reads.
func (u URI) String() string {
	x := url.URL{Scheme: "nbd", Host: u.Address, Path: "/" + u.Export}
	if u.Network == "unix" {
		x.Scheme, x.Host, x.RawQuery = "nbd+unix", "", strings.ReplaceAll(url.Values{"socket": {u.Address}}.Encode(), "%2F", "/")
		return "nbd+unix://" + x.EscapedPath() + "?" + x.RawQuery
	}
	return x.String()
}
