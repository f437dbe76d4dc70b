package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"varve/fuse"
	"varve/internal/client"
	"varve/internal/fserr"
	"varve/internal/pki"
	"varve/internal/wire"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

const (
	unmountTimeout = 10 * time.Second
	logDir         = "/var/log/varve"
)

// mountSpec is one mount to serve.
type mountSpec struct {
	cluster string // its directory
	dir     string // absolute
	mountOptions
}

func (a *app) mountCommand() *cobra.Command {
	var options []string
	var foreground, onTrial bool
	var logFile string
	var pid pidFile
	cmd := &cobra.Command{
		Use: "mount DIR", Short: "Mount the cluster on a directory", Args: exactArgs("DIR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			from, err := receiveHandover()
			if err != nil {
				return err
			}
			spec, err := a.mountSpec(args[0], options)
			switch {
			case err != nil:
				return from.goBack(err)
			case !foreground:
				return a.mountInBackground(cmd.Context(), spec, options, logFile)
			case onTrial:
				return trial(cmd.Context(), spec, os.Stdout)
			}
			if err := pid.write(); err != nil {
				return from.goBack(err)
			}
			defer pid.remove()
			return runMount(cmd.Context(), spec, slog.Default(), signalReady, newMountLife(spec, from))
		},
	}
	f := cmd.Flags()
	f.StringArrayVarP(&options, "options", "o", nil, "ro, cache=DIR,cachesize=MB (a read cache on a fast disk of this host), transport=auto|dev|uring (how the kernel's requests come: by /dev/fuse or by FUSE over io_uring), local=on|off (off: read over the network also from chunk servers on this host), relay=auto|on|off (whether large writes go through one replica, which sends them on), data-tls=on|off (on: data is encrypted on the way, whatever the setting net.data.tls says), net=IP|INTERFACE (by which of this host's addresses or interfaces the cluster is reached), classify=auto|on|off (instead of the setting net.classify, on this host), readahead=MB (memory for what is read before it is asked for; 64, 0 for none), writeback=MB (memory for buffered writes that return before they are on the servers; a crash of the mount loses those of the last second; none by default), retry=SECONDS (how long the cluster is looked for; 10), bg (go on looking in the background then, and mount when it is there), guard (make the empty mount point immutable, so that nothing is put there while nothing is mounted), errors=wait[:SECONDS]|fail[:SECONDS] (what reads and writes do when the cluster does not answer: wait, for ever by default, or fail, and others at once then); those of fstab that mean nothing here are accepted")
	f.BoolVarP(&foreground, "foreground", "f", false, "serve in this process until it is told to stop")
	f.StringVarP(&logFile, "log", "l", "", "log of the process in the background (default "+logDir+"/mount-DIR.log)")
	f.BoolVar(&onTrial, "trial", false, "with -f: find out whether this program can serve the mount, and mount nothing")
	_ = f.MarkHidden("trial")
	pid.flag(cmd)
	return cmd
}

func (a *app) mountSpec(dir string, options []string) (spec mountSpec, err error) {
	if spec.mountOptions, err = parseMountOptions(options); err != nil {
		return spec, err
	}
	d, err := a.readCluster()
	if err != nil {
		return spec, err
	}
	spec.cluster = d.path
	spec.dir, err = filepath.Abs(dir)
	return spec, err
}

// mountInBackground starts a process that serves the mount, and returns when it is mounted.
func (a *app) mountInBackground(ctx context.Context, spec mountSpec, options []string, logFile string) error {
	if logFile == "" {
		logFile = os.DevNull
		if err := os.MkdirAll(logDir, 0o755); err == nil {
			logFile = filepath.Join(logDir, "mount-"+strings.ReplaceAll(strings.Trim(spec.dir, "/"), "/", "-")+".log")
		}
	}
	args := []string{"-c", spec.cluster, "mount", "-f"}
	for _, o := range options {
		args = append(args, "-o", o)
	}
	said, err := startDaemon(ctx, append(args, "--", spec.dir), logFile)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(map[string]string{"mount": spec.dir, "log": logFile, "waits": said})
	}
	if said != "" {
		fmt.Fprintf(a.err, "varve: %s\n", said)
	}
	return nil
}

// runMount mounts and serves until ctx ends or someone unmounts it. ready is called when it is mounted, or goes on in the background, which it
// is told of then. With life the process serves nothing else, and can go on in another program, as it may have from another one.
func runMount(ctx context.Context, spec mountSpec, log *slog.Logger, ready func(string), life *mountLife) error {
	err := serveMount(ctx, spec, log, ready, life)
	if err != nil {
		return life.before().goBack(err)
	}
	return nil
}

// serveMount is runMount; as long as life has something before, it has not taken that mount over.
func serveMount(ctx context.Context, spec mountSpec, log *slog.Logger, ready func(string), life *mountLife) error {
	slackenGC(heapSlack)
	d, err := readClusterDir(spec.cluster)
	if err != nil {
		return err
	}
	if spec.retry == 0 {
		spec.retry = retryFor
	}
	before := life.before()
	if before == nil {
		err = checkPlace(spec.dir)
	}
	if err != nil {
		return err
	}
	if spec.guard && before == nil {
		if err := guardPlace(spec.dir); err != nil {
			return err
		}
	}
	bonds, tcp := watchBonds(log)
	defer bonds.Close()
	network, err := dialFrom(spec.net, tcp)
	if err != nil {
		return err
	}
	creds, err := d.filesCredentials()
	if err != nil {
		return noAccess(err)
	}
	seat := newSeat(spec.classify, log)
	defer seat.leave()
	seat.joinClient("mount of "+spec.dir, spec.net, d.mds)
	if creds != nil && creds.Identity().Role == pki.RoleReader {
		spec.readOnly = true // the servers refuse changes; the kernel says so sooner
	}
	cache := openCache(&spec, d.uuid, log)
	defer cache.close()
	e := newElsewhere(d.name, d.uuid, d.list(), log)
	defer e.Close()
	o := client.Options{
		Bonds:   bonds,
		Cluster: d.uuid, Name: d.name, Addrs: d.mds, Mount: spec.dir, Network: network, Credentials: creds, ClusterDir: d.path, DataTLS: spec.dataTLS, Version: version, Logger: log, StartTimeout: spec.retry,
		Members: e.members, More: e.More, Told: seat.told, NoLocal: spec.noLocal, Relay: spec.relay, ReadAhead: spec.readAhead, WriteBehind: spec.behind,
		Timeout: spec.wait, FailFast: spec.failFast, ReadCache: cache.cache(), Estates: estatesDir(), Mounted: true,
	}
	if before != nil {
		o.Resume = before.Client
	}
	c, err := reach(ctx, spec, o, log, ready)
	if err != nil {
		return unreached(d, err)
	}
	makeRoom(fuse.DefaultLoops() + 1)        // and the client's own ring
	var mounted atomic.Pointer[fuse.Session] // nil until the kernel has begun to use it
	transport := func() string {
		if s := mounted.Load(); s != nil {
			return string(s.Conn().Transport)
		}
		return spec.transport
	}
	fo := fuse.Options{
		Logger: log, MountPoint: spec.dir, FSName: mountSource(spec.cluster), AllowOther: os.Geteuid() == 0, ReadOnly: spec.readOnly,
		Transport: fuse.Transport(spec.transport), Flags: spec.flags,
	}
	var s *fuse.Session
	if tree := newInfo(backend{c}, cache, transport); before == nil {
		s, err = fuse.Mount(ctx, fo, tree)
		if err != nil {
			return errors.Join(mountPointHint(spec.dir, err), c.Close())
		}
	} else {
		if s, err = fuse.Resume(fo, tree, before.Mount); err != nil {
			return err // the session is not this program's to close
		}
		c.Restored()
	}
	mounted.Store(s)
	cache.serve(spec.dir)
	life.serve(log)
	defer life.close()
	go func() {
		if err := c.Know(ctx); err != nil && ctx.Err() == nil {
			log.Warn("the space of the cluster is not known yet", "err", err)
		}
	}()
	ready("")
	for on := true; on; {
		select {
		case <-s.Done():
			err, on = s.Wait(), false
		case <-ctx.Done():
			err, on = s.Unmount(unmountTimeout), false
		case ask := <-life.asked():
			err := life.restart(ctx, ask.program, s, c, cache)
			log.Error("the mount does not go on in the other program, but in this one", "program", ask.program, "cause", err)
			ask.answer <- err
		}
	}
	life.hangUp() // before what may take long
	cache.hangUp()
	if cerr := c.Close(); cerr != nil {
		log.Warn("session not closed in order; the cluster ends it when its lease is over", "err", cerr)
	}
	return err
}

// unreached says where the addresses came from that led to no cluster, or to another one.
func unreached(d *clusterDir, err error) error {
	if errors.Is(err, wire.ErrNeedsCertificate) {
		return refusedf("cluster %s is secured by now, and this node has no certificate; get one with: varve -c %s auth-node", d.name, d.name)
	}
	list := filepath.Join(d.path, bootstrapFile)
	switch code := fserr.Of(err); code {
	case fserr.WrongCluster:
		return fmt.Errorf("%s names servers of another cluster than %s says; correct it: %w", list, clusterFile, err)
	case fserr.Unavailable, fserr.Timeout:
		return fmt.Errorf("%w; start the metadata servers, or, if others have taken their place, correct %s (copy it from another node)", err, list)
	}
	return err
}

// mountPointHint says what to do about a directory that cannot be mounted on.
func mountPointHint(dir string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w; make it first: mkdir -p %s", err, shellQuote(dir))
	case errors.Is(err, unix.ENOTDIR), fserr.Of(err) == fserr.NotDir:
		return fmt.Errorf("%w; choose a directory", err)
	case fserr.Of(err) == fserr.Busy:
		return fmt.Errorf("%w; choose another directory, or unmount that first: varve umount %s", err, shellQuote(dir))
	}
	return err
}

func (a *app) umountCommand() *cobra.Command {
	var lazy bool
	cmd := &cobra.Command{
		Use: "umount DIR", Short: "Unmount", Args: exactArgs("DIR"),
		RunE: func(_ *cobra.Command, args []string) error {
			using, err := umount(args[0], lazy)
			if len(using) > 0 {
				fmt.Fprintf(a.out, "%s is detached; until they close it, it is still used by:%s\n", args[0], holderLines(using))
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&lazy, "lazy", false, "detach at once; what is open goes on until it is closed")
	return cmd
}

// umount returns, of a lazy one, who still uses the mount.
func umount(dir string, lazy bool) ([]holder, error) {
	var using []holder
	if lazy { // afterwards nobody can tell
		using = holdersOf(dir)
	}
	err := fuse.Unmount(dir, lazy, unmountTimeout)
	if err == nil {
		return using, nil
	}
	if errors.Is(err, fserr.Invalid) {
		if abs, aerr := filepath.Abs(dir); aerr == nil {
			if called, cerr := callOff(abs); called || cerr != nil {
				return nil, cerr
			}
		}
	}
	return nil, umountHint(dir, err)
}

func holdersOf(dir string) []holder {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil
	}
	return holders(abs)
}

func umountHint(dir string, err error) error {
	switch {
	case errors.Is(err, unix.EBUSY):
		return refusedf("%s is in use: close what is open there, or give --lazy: %w%s", dir, err, holderLines(holdersOf(dir)))
	case errors.Is(err, fserr.Invalid), errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w; varve mounts are listed by: findmnt -t fuse.varve", err)
	case fserr.Of(err) == fserr.Timeout:
		return &exitError{exitFailed, err} // not the cluster is out of reach but the process that serves the mount
	}
	return err
}
