package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"varve/internal/block"
	"varve/internal/nbd"
	"varve/internal/nbd/nbdserver"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// blockStopTimeout is how long requests under way have to end when the server is told to stop.
const blockStopTimeout = 20 * time.Second

// nbdFlags are the command line of `varve nbd`.
type nbdFlags struct {
	socket, listen, mode string
	creds                string
	exports, options     []string
	readOnly, insecure   bool
	threads, connections int
	memory               int
	pid                  pidFile
}

func (a *app) nbdCommand() *cobra.Command {
	var f nbdFlags
	cmd := &cobra.Command{
		Use: "nbd (--socket PATH | --listen IP:PORT) IMAGE...", Short: "Serve images as network block devices, without a mount",
		Long: `Serves images, named by their path from the cluster's root, by the NBD protocol, to qemu, qemu-img, nbdcopy, nbd-client and fio, until it is told to stop
(SIGTERM: requests under way are answered, what was written is flushed, the images are given back). Several clients may be connected to one image, and a
flush of one covers them all. An image is held while a client uses it. The first IMAGE is also the default export.

  varve -c main nbd --socket /run/vm.sock images/vm.img
  qemu-system-x86_64 -drive file=nbd+unix:///images/vm.img?socket=/run/vm.sock,format=raw,if=virtio,cache=none ...

Who may connect to the socket is what its mode says. An address that is not of this host's loopback wants --tls-creds DIR, with ca-cert.pem, server-cert.pem
and server-key.pem as qemu-nbd has them: clients must then begin TLS and show a certificate of that authority. The files are read again for each client.`,
		RunE: func(cmd *cobra.Command, args []string) error { return a.runNBD(cmd.Context(), &f, args) },
	}
	fl := cmd.Flags()
	fl.StringVar(&f.socket, "socket", "", "listen on a UNIX socket there")
	fl.StringVar(&f.mode, "socket-mode", "0600", "permissions of the socket")
	fl.StringVar(&f.listen, "listen", "", "listen on this address; without a port on "+nbd.DefaultPort)
	fl.StringVar(&f.creds, "tls-creds", "", "directory with ca-cert.pem, server-cert.pem and server-key.pem: clients of --listen must use TLS and have a certificate of the authority")
	fl.BoolVar(&f.insecure, "insecure", false, "without --tls-creds, listen also where others reach it: whoever does may read and write the images")
	fl.StringArrayVar(&f.exports, "export", nil, "NAME=IMAGE: an image under another name; may be given several times")
	fl.BoolVar(&f.readOnly, "read-only", false, "take no writes")
	imageFlag(fl, &f.options)
	fl.IntVar(&f.threads, "threads", 0, "threads that serve connections (default: half of the processors, at most 8)")
	fl.IntVar(&f.memory, "memory", 0, "MiB for the data of requests (default and least: 64 for each thread)")
	fl.IntVar(&f.connections, "connections", 256, "most clients at once")
	f.pid.flag(cmd)
	return cmd
}

// images returns what is to be served: pairs of name and path, the default first.
func (f *nbdFlags) images(args []string) (all [][2]string, err error) {
	for _, arg := range args {
		p, err := imagePath(arg)
		if err != nil {
			return nil, err
		}
		all = append(all, [2]string{p, p})
	}
	for _, e := range f.exports {
		name, arg, ok := strings.Cut(e, "=")
		if !ok || name == "" {
			return nil, usagef("--export %q: want NAME=IMAGE", e)
		}
		p, err := imagePath(arg)
		if err != nil {
			return nil, err
		}
		all = append(all, [2]string{strings.TrimPrefix(name, "/"), p})
	}
	if len(all) == 0 {
		return nil, usagef("which image? Name its path from the cluster's root, such as images/vm.img")
	}
	return all, nil
}

// bind makes the sockets, and returns the URIs that lead to them, without export.
func (f *nbdFlags) bind() (all []net.Listener, uris []nbd.URI, err error) {
	defer func() {
		if err != nil {
			for _, l := range all {
				l.Close()
			}
		}
	}()
	if f.socket == "" && f.listen == "" {
		return nil, nil, usagef("where to listen? Give --socket PATH or --listen IP:PORT")
	}
	if f.creds != "" && f.listen == "" {
		return nil, nil, usagef("--tls-creds is for --listen; who may connect to a socket is what its mode says")
	}
	if f.listen != "" {
		addr, err := f.address()
		if err != nil {
			return nil, nil, err
		}
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return nil, nil, err
		}
		all, uris = append(all, l), append(uris, nbd.URI{Network: "tcp", Address: l.Addr().String()})
	}
	if f.socket != "" {
		mode, err := strconv.ParseUint(f.mode, 8, 9)
		if err != nil {
			return all, nil, usagef("--socket-mode %q: want an octal number such as 0660", f.mode)
		}
		l, path, err := listenUnix(f.socket, os.FileMode(mode))
		if err != nil {
			return all, nil, err
		}
		all, uris = append(all, l), append(uris, nbd.URI{Network: "unix", Address: path})
	}
	return all, uris, nil
}

// address returns where to listen, and refuses what others reach.
func (f *nbdFlags) address() (string, error) {
	host, port, err := net.SplitHostPort(f.listen)
	if err != nil {
		host, port = strings.Trim(f.listen, "[]"), nbd.DefaultPort
	}
	ip := net.ParseIP(host)
	if host == "localhost" {
		ip = net.IPv4(127, 0, 0, 1)
	}
	if ip == nil {
		return "", usagef("--listen %q: want IP:PORT", f.listen)
	}
	if !ip.IsLoopback() && !f.insecure && f.creds == "" {
		return "", refusedf("--listen %s: whoever reaches this address could read and write the images, since neither clients nor server show who they are and nothing is encrypted; give --tls-creds DIR, listen on 127.0.0.1 or a --socket, or give --insecure on a network of trusted hosts", f.listen)
	}
	return net.JoinHostPort(ip.String(), port), nil
}

// listenUnix makes a socket in the filesystem, in the place of one that nobody listens on any more.
func listenUnix(path string, mode os.FileMode) (net.Listener, string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, "", err
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return nil, "", fmt.Errorf("%s: a server listens there; stop it first, or choose another path", path)
	} else if info, serr := os.Lstat(path); serr == nil && errors.Is(err, unix.ECONNREFUSED) && info.Mode()&fs.ModeSocket != 0 {
		if err := os.Remove(path); err != nil {
			return nil, "", err
		}
	}
	// Nobody may connect before the mode is set.
	old := unix.Umask(0o777 &^ int(mode.Perm()))
	l, err := net.Listen("unix", path)
	unix.Umask(old)
	if err != nil {
		return nil, "", fmt.Errorf("%w; is the directory there, and the path shorter than 108 bytes?", err)
	}
	return l, path, nil
}

// madeSocket is a socket in the filesystem that this process has made.
type madeSocket struct {
	path string
	info os.FileInfo // nil: there is none
}

func ownSocket(path string) madeSocket {
	info, err := os.Lstat(path)
	if err != nil {
		return madeSocket{}
	}
	return madeSocket{path, info}
}

// remove removes the socket if it still is that of this process: another that was started on the path meanwhile, while this one ended what was under way, must
// stay within reach. Numbers of inodes are used again.
func (s madeSocket) remove() {
	if s.info == nil {
		return
	}
	if now, err := os.Lstat(s.path); err == nil && os.SameFile(now, s.info) && now.ModTime().Equal(s.info.ModTime()) {
		os.Remove(s.path)
	}
}

func (a *app) runNBD(ctx context.Context, f *nbdFlags, args []string) (err error) {
	names, err := f.images(args)
	if err != nil {
		return err
	}
	spec, err := parseImageOptions(f.options)
	if err != nil {
		return err
	}
	listeners, uris, err := f.bind()
	if err != nil {
		return err
	}
	taken, made := false, ownSocket(f.socket)
	defer func() {
		made.remove()
		if !taken {
			for _, l := range listeners {
				l.Close()
			}
		}
	}()
	log := slog.Default()
	c, err := a.dialImages(ctx, "nbd:"+uris[len(uris)-1].Address, spec, log)
	if err != nil {
		return err
	}
	defer c.close()
	o := nbdserver.Options{Listeners: listeners, Logger: log, Connections: f.connections}
	if f.creds != "" {
		if o.TLS, err = nbdserver.LoadTLS(f.creds, log); err != nil {
			return usagef("--tls-creds: %w", err)
		}
		o.Secured, o.Listeners = listeners[:1], listeners[1:] // bind has the address first
	}
	for _, n := range names {
		m := image{c.Client, n[1]}
		if _, err := m.Size(ctx); err != nil {
			return fmt.Errorf("%w; an image is named by its path from the cluster's root", err)
		}
		o.Exports = append(o.Exports, nbdserver.Export{Name: n[0], Description: "varve " + n[1], Image: m, ReadOnly: f.readOnly || c.readOnly})
	}
	if o.Loops, err = block.StartLoops(block.LoopOptions{Threads: f.threads, Memory: f.memory << 20, Host: hostOf(c.Client), Logger: log}); err != nil {
		return usagef("%w", err)
	}
	block.MakeRoom(len(o.Loops))
	taken = true
	s, err := nbdserver.Start(o)
	if err != nil {
		return errors.Join(err, block.CloseLoops(context.WithoutCancel(ctx), o.Loops))
	}
	if err := f.pid.write(); err != nil {
		return err
	}
	defer f.pid.remove()
	if err := a.sayExports(names, uris, o.TLS != nil); err != nil {
		return err
	}
	signalReady("")
	return a.serveBlocks(ctx, o.Loops, s.Shutdown)
}

// serveBlocks waits until it is told to stop, or a thread has failed, and ends in order.
func (a *app) serveBlocks(ctx context.Context, loops []*block.Loop, shutdown func(context.Context) error) error {
	failed := make(chan error, len(loops))
	for _, l := range loops {
		go func() {
			<-l.Done()
			failed <- l.Err()
		}()
	}
	select {
	case <-ctx.Done():
	case err := <-failed:
		if err != nil {
			return fmt.Errorf("reactor: %w", err) // what was under way on it never ends
		}
	}
	sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), blockStopTimeout)
	defer cancel()
	if err := shutdown(sctx); err != nil {
		return err
	}
	return block.CloseLoops(sctx, loops)
}

// sayExports prints where the exports are. secured: those that are reached by TCP are by TLS.
func (a *app) sayExports(names [][2]string, uris []nbd.URI, secured bool) error {
	type line struct {
		Image string   `json:"image"`
		URIs  []string `json:"uris"`
	}
	var all []line
	for _, n := range names {
		l := line{Image: "/" + n[1]}
		for _, u := range uris {
			u.Export = n[0]
			s := u.String()
			if rest, ok := strings.CutPrefix(s, "nbd://"); ok && secured {
				s = "nbds://" + rest
			}
			l.URIs = append(l.URIs, s)
		}
		all = append(all, l)
	}
	if a.json {
		return a.printJSON(map[string]any{"exports": all})
	}
	for _, l := range all {
		for _, u := range l.URIs {
			if _, err := fmt.Fprintf(a.out, "%s is %s\n", l.Image, u); err != nil {
				return err
			}
		}
	}
	return nil
}
