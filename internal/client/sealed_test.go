package client

import (
	"context"
	"net"
	"os"
	"os/exec"
	"testing"

	"varve/internal/records"
	"varve/internal/secure"
	"varve/internal/secure/securetest"
	"varve/internal/wire"
)

// sealedEnv has the tests of this package run with encrypted connections to chunk servers.
const sealedEnv = "VARVE_TEST_CLIENT_SEALED"

// seal is a network whose connections for data are encrypted, at both ends. nil: none are.
type seal struct{ server, client *secure.Network }

var _ wire.Network = (*seal)(nil)

// newSeal returns the network of a world, nil unless sealedEnv wants one.
func newSeal(t *testing.T) *seal {
	if os.Getenv(sealedEnv) == "" {
		return nil
	}
	ca := securetest.New(t, testCluster)
	return &seal{
		server: secure.New(secure.Options{Credentials: ca.Node(t, "server"), DataTLS: true, Logger: quiet()}),
		client: secure.New(secure.Options{Credentials: ca.Node(t, "client"), DataTLS: true, Logger: quiet()}),
	}
}

func (s *seal) wrap(l net.Listener) net.Listener {
	if s == nil {
		return l
	}
	return s.server.Wrap(l)
}

// Dial implements wire.Network.
func (s *seal) Dial(ctx context.Context, addr string, class wire.Class) (net.Conn, error) {
	if class <= wire.ClassMeta {
		return wire.TCP{}.Dial(ctx, addr, class)
	}
	return s.client.Dial(ctx, addr, class)
}

// Listen implements wire.Network.
func (s *seal) Listen(ctx context.Context, addr string) (net.Listener, error) {
	return wire.TCP{}.Listen(ctx, addr)
}

// sealedTests are those in which data goes over connections, on reactors and not.
const sealedTests = "^(TestHotReadsAndWrites|TestHotWrite|TestHotReadFailsOver|TestHotFlush|TestHotUnderFaults|TestBroken|TestReadFails|TestRelayedWrite)"

// TestSealed runs tests of data once more with encrypted connections.
func TestSealed(t *testing.T) {
	switch {
	case os.Getenv(sealedEnv) != "":
		t.Skip("this is that run")
	case testing.Short():
		t.Skip("short")
	case !records.Fast():
		t.Skip("this machine has no instructions for AES")
	}
	cmd := exec.Command(os.Args[0], "-test.timeout=5m", "-test.run="+sealedTests)
	cmd.Env = append(os.Environ(), sealedEnv+"=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
