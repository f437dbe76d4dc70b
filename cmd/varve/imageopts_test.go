package main

import (
	"strings"
	"testing"
	"time"
)

// TestImageOptions: servers of block devices take the options of mounts that mean something to them, and say why they do not take the others.
func TestImageOptions(t *testing.T) {
	o, err := parseImageOptions([]string{"ro,net=eth1,data-tls=on,classify=off", "local=off,relay=on,readahead=0,cache=/ssd,cachesize=1024,errors=wait:7,retry=3"})
	if err != nil || !o.readOnly || o.net != "eth1" || !o.dataTLS || o.classify != "off" || !o.noLocal || o.readAhead != -1 || o.cache != "/ssd" ||
		o.cacheSize != 1<<30 || o.wait != 7*time.Second || o.failFast || o.retry != 3*time.Second {
		t.Errorf("%+v, %v", o, err)
	}
	for _, word := range []string{"transport=dev", "writeback=64", "bg", "guard", "nosuid", "sync", "at=1", "nonsense", "net=", "cache=/ssd"} {
		_, err := parseImageOptions([]string{"ro", word})
		if exitCode(err) != exitUsage || !strings.Contains(err.Error(), strings.SplitN(word, "=", 2)[0]) {
			t.Errorf("%s: %v", word, err)
		}
	}
}
