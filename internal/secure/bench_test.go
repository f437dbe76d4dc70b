package secure

import (
	"context"
	"io"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/id"
	"varve/internal/pki"
	"varve/internal/secure/securetest"
	"varve/internal/wire"
)

// BenchmarkHandshake is one connection, made and ended, between two ends in this process; cpu-µs is the CPU of both.
func BenchmarkHandshake(b *testing.B) {
	ca := securetest.New(b, cluster)
	for name, n := range map[string]struct{ server, client wire.Network }{
		"net=tcp":     {wire.TCP{}, wire.TCP{}},
		"net=secured": {New(Options{Credentials: ca.Node(b, "a"), Logger: quiet()}), New(Options{Credentials: ca.Node(b, "b")})},
	} {
		b.Run(name, func(b *testing.B) {
			l, err := n.server.Listen(context.Background(), "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					go func() {
						_, _ = io.Copy(c, c)
						c.Close()
					}()
				}
			}()
			defer func() { l.Close(); <-done }()
			used := cpu(b)
			b.ReportAllocs()
			for b.Loop() {
				c, err := n.client.Dial(context.Background(), l.Addr().String(), wire.ClassGuest)
				if err != nil {
					b.Fatal(err)
				}
				var x [4]byte
				if _, err := c.Write([]byte("VRV1")); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(c, x[:]); err != nil {
					b.Fatal(err)
				}
				c.Close()
			}
			b.ReportMetric(float64((cpu(b)-used).Microseconds())/float64(b.N), "cpu-µs/op")
		})
	}
}

func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkCapability is what it costs a leader to sign one, and a chunk server to verify one.
func BenchmarkCapability(b *testing.B) {
	signer, err := pki.NewSigner(id.Cluster{1}, 1)
	if err != nil {
		b.Fatal(err)
	}
	v := pki.NewVerifier(id.Cluster{1}, signer.Key())
	c := pki.Capability{Session: 7, Node: "host1", Rights: pki.Read | pki.Write, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour)}
	b.Run("op=sign", func(b *testing.B) {
		for b.Loop() {
			signer.Sign(&c)
		}
	})
	token := signer.Sign(&c)
	b.Run("op=verify", func(b *testing.B) {
		for b.Loop() {
			if _, err := v.Verify(token, time.Now()); err != nil {
				b.Fatal(err)
			}
		}
	})
}
