package discover

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

const (
	// DefaultPort is where a metadata server is if nothing else is said.
	DefaultPort = "2510"
	// MaxServers bounds the addresses of a list, and those that any way yields.
	MaxServers = 64

	maxList = 64 << 10 // bytes of a list
)

// hostName is what a host's name or address is made of, an IPv6 zone included.
var hostName = regexp.MustCompile(`^[A-Za-z0-9._:%-]+$`)

// HostPort returns s with the default port if it has none.
func HostPort(s string) (string, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		host, port = strings.Trim(s, "[]"), DefaultPort
		if strings.Contains(host, ":") && net.ParseIP(host) == nil {
			return "", fmt.Errorf("address %q: want HOST[:PORT], such as 10.0.0.1 or 10.0.0.1:%s", s, DefaultPort)
		}
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 || !hostName.MatchString(host) {
		return "", fmt.Errorf("address %q: want HOST[:PORT], such as 10.0.0.1 or 10.0.0.1:%s", s, DefaultPort)
	}
	return net.JoinHostPort(host, port), nil
}

// ParseList reads a bootstrap list: HOST[:PORT] a line; blank lines and what follows a # are ignored.
func ParseList(b []byte) ([]string, error) {
	var addrs []string
	sc := bufio.NewScanner(bytes.NewReader(b))
	for n := 1; sc.Scan(); n++ {
		line, _, _ := strings.Cut(sc.Text(), "#")
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		addr, err := HostPort(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		if slices.Contains(addrs, addr) {
			continue
		}
		if len(addrs) == MaxServers {
			return nil, fmt.Errorf("line %d: more than %d servers", n, MaxServers)
		}
		addrs = append(addrs, addr)
	}
	return addrs, sc.Err()
}

// FormatList returns the bootstrap list of a cluster.
func FormatList(name string, addrs []string) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Metadata servers of the cluster %s, host:port a line. Refreshed by varve.\n", name)
	for _, addr := range addrs {
		fmt.Fprintln(&b, addr)
	}
	return b.Bytes()
}

// ReadList reads the list in a file. One without a server is an error.
func ReadList(path string) ([]string, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no %s: %w", path, fs.ErrNotExist)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxList+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if len(b) > maxList {
		return nil, fmt.Errorf("%s has more than %d bytes", path, maxList)
	}
	addrs, err := ParseList(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(addrs) == 0 {
		return nil, fmt.Errorf("%s names no server", path)
	}
	return addrs, nil
}

// UpdateList has the file name the members, unless it does already, in whatever order. It is replaced as a whole, and is never made one that names
// nobody, or more than a list may.
func UpdateList(path, name string, members []string) (changed bool, err error) {
	var addrs []string
	for _, m := range members {
		addr, err := HostPort(m)
		if err != nil {
			return false, err
		}
		if !slices.Contains(addrs, addr) {
			addrs = append(addrs, addr)
		}
	}
	if len(addrs) == 0 || len(addrs) > MaxServers {
		return false, fmt.Errorf("list of %d servers, want 1 to %d: %s stays as it is", len(addrs), MaxServers, path)
	}
	if old, err := ReadList(path); err == nil && slices.Equal(slices.Sorted(slices.Values(old)), slices.Sorted(slices.Values(addrs))) {
		return false, nil
	}
	return true, replaceFile(path, FormatList(name, addrs))
}

// replaceFile writes a file so that it is there in full, or as it was.
func replaceFile(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, werr := f.Write(b)
	err = errors.Join(werr, f.Chmod(0o644), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
