package main

import (
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"varve/internal/client"

	"golang.org/x/sys/unix"
)

// mountOptions are what -o says.
type mountOptions struct {
	readOnly  bool
	transport string        // auto, dev or uring
	noLocal   bool          // read from chunk servers on this host over the network too
	dataTLS   bool          // whether data is encrypted on the way, whatever the cluster's setting says
	relay     client.Relay  // whether large writes may go through one replica
	readAhead int64         // bytes of memory for it; 0: as much as the client likes, less: none
	wait      time.Duration // for the cluster, before an operation fails; 0: for ever
	failFast  bool          // see client.Options.FailFast
	cache     string        // directory of the read cache; "": none
	cacheSize int64         // bytes
	behind    int64         // bytes of memory for writes that return before they are carried out

	classify   string        // instead of the setting net.classify; "": as set
	net        string        // address or interface of this host by which the cluster is reached; "": any
	retry      time.Duration // how long the cluster is looked for; 0: retryFor
	background bool          // if it is not found by then, go on in the background
	guard      bool          // make the mount point immutable first
	flags      uintptr       // MS_* of mount(2)
}

// mountIgnored are the options of mount(8) and fstab(5) that mean nothing to a varve mount, or that it always has.
var mountIgnored = []string{"defaults", "rw", "auto", "noauto", "nofail", "_netdev", "suid", "dev", "exec", "async", "atime", "relatime", "silent",
	"default_permissions", "allow_other", "user", "users", "nouser", "owner", "group", "fg"}

// mountFlags are those that the kernel sees to.
var mountFlags = map[string]uintptr{
	"nosuid": unix.MS_NOSUID, "nodev": unix.MS_NODEV, "noexec": unix.MS_NOEXEC, "noatime": unix.MS_NOATIME, "nodiratime": unix.MS_NODIRATIME,
	"sync": unix.MS_SYNCHRONOUS, "dirsync": unix.MS_DIRSYNC,
}

const (
	retryFor    = 10 * time.Second // without the option retry
	maxRetryFor = time.Hour
)

// mountLater are options of later releases: refused by name, since ignoring one would promise something.
var mountLater = map[string]string{
	"at": "mounting the past",
}

// parseMountOptions reads the arguments of -o.
func parseMountOptions(args []string) (mountOptions, error) {
	o := mountOptions{transport: "auto"}
	for _, word := range splitOptions(args) {
		name, value, hasValue := strings.Cut(word, "=")
		switch {
		case name == "ro" && !hasValue:
			o.readOnly = true
		case name == "transport":
			if err := checkTransport(value); err != nil {
				return o, err
			}
			o.transport = value
		case name == "local":
			if value != "on" && value != "off" {
				return o, usagef("mount option %q: want local=on or local=off", word)
			}
			o.noLocal = value == "off"
		case name == "data-tls":
			if value != "on" && value != "off" {
				return o, usagef("mount option %q: want data-tls=on or data-tls=off", word)
			}
			o.dataTLS = value == "on"
		case name == "relay":
			relay, ok := map[string]client.Relay{"auto": client.RelayAuto, "off": client.RelayNever, "on": client.RelayAlways}[value]
			if !ok {
				return o, usagef("mount option %q: want relay=auto, relay=on or relay=off", word)
			}
			o.relay = relay
		case name == "readahead":
			mb, err := strconv.ParseUint(value, 10, 20)
			if err != nil {
				return o, usagef("mount option %q: want readahead=MB, 0 for none", word)
			}
			o.readAhead = int64(mb) << 20
			if mb == 0 {
				o.readAhead = -1
			}
		case name == "writeback":
			mb, err := strconv.ParseUint(value, 10, 20)
			if err != nil {
				return o, usagef("mount option %q: want writeback=MB, 0 for none", word)
			}
			o.behind = int64(mb) << 20
		case name == "cache":
			if !strings.HasPrefix(value, "/") {
				return o, usagef("mount option %q: want cache=DIR, an absolute path without commas", word)
			}
			o.cache = value
		case name == "cachesize":
			size, err := parseCacheSize(value)
			if err != nil {
				return o, err
			}
			o.cacheSize = size
		case name == "errors":
			wait, failFast, err := parseErrors(value)
			if err != nil {
				return o, err
			}
			o.wait, o.failFast = wait, failFast
		case name == "classify":
			if value != "auto" && value != "on" && value != "off" {
				return o, usagef("mount option %q: want classify=auto, classify=on or classify=off", word)
			}
			o.classify = value
		case name == "net":
			if value == "" {
				return o, usagef("mount option %q: want net=IP or net=INTERFACE of this host", word)
			}
			o.net = value
		case name == "bg" && !hasValue:
			o.background = true
		case name == "guard" && !hasValue:
			o.guard = true
		case name == "retry":
			n, err := strconv.ParseUint(value, 10, 32)
			if o.retry = time.Duration(n) * time.Second; err != nil || n == 0 || o.retry > maxRetryFor {
				return o, usagef("mount option %q: want retry=SECONDS, 1 to %d", word, int(maxRetryFor.Seconds()))
			}
		case name == "remount":
			return o, usagef("mount option remount: only for mount(8), where it means varve restart; a mount keeps the options that it was made with")
		case mountFlags[name] != 0 && !hasValue:
			o.flags |= mountFlags[name]
		case mountLater[name] != "":
			return o, usagef("mount option %q: %s comes with a later release; leave it out", name, mountLater[name])
		case !hasValue && slices.Contains(mountIgnored, name), strings.HasPrefix(name, "x-"), name == "comment":
		default:
			return o, usagef("mount option %q is unknown: want ro, cache=DIR, cachesize=MB, transport=auto|dev|uring, local=on|off, relay=auto|on|off, data-tls=on|off, net=IP|INTERFACE, classify=auto|on|off, readahead=MB, writeback=MB, errors=wait[:SECONDS]|fail[:SECONDS], retry=SECONDS, bg, guard, x-..., or one of %s %s",
				word, strings.Join(slices.Sorted(maps.Keys(mountFlags)), " "), strings.Join(mountIgnored, " "))
		}
	}
	if (o.cache == "") != (o.cacheSize == 0) {
		return o, usagef("mount options cache=DIR and cachesize=MB go together")
	}
	return o, nil
}

// splitOptions returns the words of the arguments of -o. A comma inside double quotes, as in SELinux contexts, ends no word.
func splitOptions(args []string) (words []string) {
	quoted := false
	for _, word := range strings.FieldsFunc(strings.Join(args, ","), func(r rune) bool {
		if r == '"' {
			quoted = !quoted
		}
		return r == ',' && !quoted
	}) {
		if word = strings.TrimSpace(word); word != "" {
			words = append(words, word)
		}
	}
	return words
}

const (
	failAfter  = 10 * time.Second // errors=fail
	maxErrWait = 24 * time.Hour
)

// parseErrors reads what operations do when the cluster does not answer: wait for ever, wait so many seconds, or fail after so many and then
// at once.
func parseErrors(value string) (wait time.Duration, failFast bool, err error) {
	how, seconds, given := strings.Cut(value, ":")
	if how == "fail" {
		wait, failFast = failAfter, true
	}
	if given {
		n, perr := strconv.ParseUint(seconds, 10, 32)
		if wait = time.Duration(n) * time.Second; perr != nil || n == 0 || wait > maxErrWait {
			how = ""
		}
	}
	if how != "wait" && how != "fail" {
		return 0, false, usagef("mount option %q: want errors=wait (for ever), errors=wait:SECONDS, or errors=fail[:SECONDS] (others fail at once then), up to %d seconds",
			"errors="+value, int(maxErrWait.Seconds()))
	}
	return wait, failFast, nil
}

func checkTransport(t string) error {
	switch t {
	case "auto", "dev", "uring":
		return nil
	}
	return usagef("transport %q: want auto, dev or uring", t)
}

// The source of a mount, as /proc/mounts shows it, says which cluster directory it came from: varve://NAME, or varve://
// and the absolute path with what the kernel's table cannot hold as %XX.
const sourceScheme = "varve://"

func mountSource(clusterPath string) string {
	if name, ok := strings.CutPrefix(clusterPath, clustersDir+"/"); ok && clusterName.MatchString(name) {
		return sourceScheme + name
	}
	var b strings.Builder
	for i := range len(clusterPath) {
		switch c := clusterPath[i]; {
		case c <= ' ' || c == ',' || c == '\\' || c == '%' || c == '#' || c >= 0x7f:
			fmt.Fprintf(&b, "%%%02X", c)
		default:
			b.WriteByte(c)
		}
	}
	return sourceScheme + b.String()
}

// sourceCluster returns the cluster directory that a mount's source names.
func sourceCluster(source string) (string, error) {
	rest, ok := strings.CutPrefix(source, sourceScheme)
	if !ok {
		return "", fmt.Errorf("mount source %q: want %sNAME", source, sourceScheme)
	}
	path, err := url.PathUnescape(rest)
	if err != nil {
		return "", fmt.Errorf("mount source %q: %w", source, err)
	}
	return clusterPath(path)
}
