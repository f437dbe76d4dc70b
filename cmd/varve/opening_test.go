package main

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"varve/internal/id"
	"varve/internal/pki"
	"varve/internal/secure"
)

// TestCredentialsOfAnotherAuthority: credentials that are left of a security that was given up are no reason to ask for no others.
func TestCredentialsOfAnotherAuthority(t *testing.T) {
	cluster := id.Cluster{1}
	dirs := make([]string, 2)
	for i := range dirs {
		a, err := pki.NewAuthority(cluster, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		key, csr, err := pki.NewKey()
		if err != nil {
			t.Fatal(err)
		}
		pub, err := pki.ReadCSR(csr)
		if err != nil {
			t.Fatal(err)
		}
		chain, _, err := a.IssueNow(pub, pki.Identity{Role: pki.RoleNode, Node: "n"}, time.Now(), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		dirs[i] = t.TempDir()
		if err := errors.Join(pki.WriteBundle(dirs[i], a.Bundle()), pki.WriteCredentials(dirs[i], pki.EncodeChain(chain), key)); err != nil {
			t.Fatal(err)
		}
	}
	creds, err := pki.LoadCredentials(dirs[0])
	if err != nil {
		t.Fatal(err)
	}
	l, err := secure.New(secure.Options{Credentials: creds, Logger: slog.New(slog.DiscardHandler)}).Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for c, err := l.Accept(); err == nil; c, err = l.Accept() {
			c.Close()
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for i, want := range []bool{true, false} {
		d := &clusterDir{path: dirs[i], uuid: cluster, mds: []string{l.Addr().String()}}
		if _, ok := d.valid(ctx, pki.RoleNode); ok != want {
			t.Errorf("credentials of authority %d: valid %v, want %v", i+1, ok, want)
		}
	}
}
