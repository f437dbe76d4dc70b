package main

import (
	"bytes"
	"testing"

	"varve/internal/nbd"
)

// TestExportURIs: what is printed is what programs take, by TLS where that is wanted.
func TestExportURIs(t *testing.T) {
	uris := []nbd.URI{{Network: "tcp", Address: "10.0.0.1:10809"}, {Network: "unix", Address: "/run/s"}}
	for secured, want := range map[bool]string{
		false: "/d.img is nbd://10.0.0.1:10809/d.img\n/d.img is nbd+unix:///d.img?socket=/run/s\n",
		true:  "/d.img is nbds://10.0.0.1:10809/d.img\n/d.img is nbd+unix:///d.img?socket=/run/s\n",
	} {
		var out bytes.Buffer
		a := &app{out: &out}
		if err := a.sayExports([][2]string{{"d.img", "d.img"}}, uris, secured); err != nil {
			t.Fatal(err)
		}
		if out.String() != want {
			t.Errorf("secured %t: %q, want %q", secured, out.String(), want)
		}
	}
}
