package cs

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// nicUse measures how full the network interface is that has the server's address. The zero value knows of none.
type nicUse struct {
	dir string // of the interface in sysfs, "" if it is not known
	at  time.Time
	rx  uint64
	tx  uint64
}

// sysNet is where the kernel shows network interfaces.
const sysNet = "/sys/class/net"

// newNICUse returns that of the interface with the address IP:PORT.
func newNICUse(addr string) nicUse {
	host, _, err := net.SplitHostPort(addr)
	ip := net.ParseIP(host)
	if err != nil || ip == nil {
		return nicUse{}
	}
	all, err := net.Interfaces()
	if err != nil {
		return nicUse{}
	}
	for _, i := range all {
		addrs, err := i.Addrs()
		if err != nil || i.Flags&net.FlagLoopback != 0 {
			continue
		}
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok && n.IP.Equal(ip) {
				return nicUse{dir: filepath.Join(sysNet, i.Name)}
			}
		}
	}
	return nicUse{}
}

// nicsUse is that of all interfaces by which a server is reached.
type nicsUse []nicUse

func newNICsUse(addrs []string) (all nicsUse) {
	for _, addr := range addrs {
		n := newNICUse(addr)
		if n.dir != "" && !slices.ContainsFunc(all, func(x nicUse) bool { return x.dir == n.dir }) {
			all = append(all, n)
		}
	}
	return all
}

// use is nicUse.use of the fullest one.
func (all nicsUse) use(now time.Time) (most uint32) {
	for i := range all {
		most = max(most, all[i].use(now))
	}
	return most
}

// use returns what part of its speed the busier direction has used since the last call, in permille; 0 if that is not known. One goroutine calls it.
func (l *nicUse) use(now time.Time) uint32 {
	if l.dir == "" {
		return 0
	}
	speed, err1 := l.read("speed") // Mbit/s; -1 if there is none
	rx, err2 := l.read("statistics/rx_bytes")
	tx, err3 := l.read("statistics/tx_bytes")
	if err1 != nil || err2 != nil || err3 != nil || speed <= 0 {
		return 0
	}
	before, passed := *l, now.Sub(l.at)
	l.at, l.rx, l.tx = now, uint64(rx), uint64(tx)
	if before.at.IsZero() || passed <= 0 || l.rx < before.rx || l.tx < before.tx {
		return 0
	}
	bytes := float64(max(l.rx-before.rx, l.tx-before.tx))
	return uint32(min(bytes*8/(float64(speed)*1e6*passed.Seconds())*1000, 1000))
}

func (l *nicUse) read(name string) (int64, error) {
	b, err := os.ReadFile(filepath.Join(l.dir, name))
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
}
