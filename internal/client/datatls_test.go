package client

import (
	"context"
	"strings"
	"testing"
	"time"

	"varve/internal/secure/securetest"
)

// TestDataTLSWithoutSecurity: who asks for encrypted data where nothing can be encrypted is told so, and has no session that sends data in the clear.
func TestDataTLSWithoutSecurity(t *testing.T) {
	w := newWorld(t, 1, 1, 1, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	o := Options{Cluster: testCluster, Name: "lake", Logger: quiet(), StartTimeout: 10 * time.Second, Addrs: []string{w.servers[0].addr}}
	for _, dir := range []string{"", t.TempDir()} {
		o.ClusterDir, o.DataTLS = dir, true
		c, err := Dial(ctx, o)
		if err == nil {
			c.Close()
			t.Fatalf("cluster directory %q: a session, though nothing is encrypted", dir)
		}
		if !strings.Contains(err.Error(), "data-tls") || !strings.Contains(err.Error(), "lake has no security") {
			t.Errorf("cluster directory %q: %v", dir, err)
		}
	}
	o.DataTLS = false
	c, err := Dial(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	o.DataTLS, o.Credentials = true, securetest.New(t, testCluster).Node(t, "client")
	o.defaults()
	if err := o.validate(); err != nil {
		t.Errorf("with credentials: %v", err)
	}
}
