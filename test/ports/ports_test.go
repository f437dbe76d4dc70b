package ports

import (
	"errors"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestHold: a held port is given to nobody who asks for any, refuses who connects while nobody listens, and can be listened on again and again, also with
// connections left.
func TestHold(t *testing.T) {
	addr := Hold(t)
	for range 3 {
		if c, err := net.DialTimeout("tcp", addr, time.Minute); !errors.Is(err, unix.ECONNREFUSED) {
			if err == nil {
				c.Close()
			}
			t.Fatalf("nobody listens, and a connection ends with %v", err)
		}
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		c, err := net.DialTimeout("tcp", addr, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		s, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if _, err := net.Listen("tcp", addr); !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("two listen: %v", err)
		}
		l.Close()
	}
	others := map[string]bool{addr: true}
	for range 500 {
		o := Hold(t)
		if others[o] {
			t.Fatalf("%s was given twice", o)
		}
		others[o] = true
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if o = l.Addr().String(); others[o] {
			t.Fatalf("%s is held, and somebody who asked for any port got it", o)
		}
	}
}
