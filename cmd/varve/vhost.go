package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"

	"varve/internal/block"
	"varve/internal/vhost"

	"github.com/spf13/cobra"
)

// vhostFlags are the command line of `varve vhost`.
type vhostFlags struct {
	socket, mode, serial       string
	options                    []string
	readOnly                   bool
	queues, blockSize, threads int
	memory                     int
	pid                        pidFile
}

func (a *app) vhostCommand() *cobra.Command {
	var f vhostFlags
	cmd := &cobra.Command{
		Use: "vhost --socket PATH IMAGE", Short: "Serve an image to a virtual machine through its memory (vhost-user-blk)",
		Long: `Serves an image, named by its path from the cluster's root, to one virtual machine by the vhost-user protocol: this process takes requests from the guest's
queues and fills the guest's memory itself. It works until it is told to stop (SIGTERM: requests under way are answered, what was written is flushed, the
image is given back). The image is held while the machine runs.

  varve -c main vhost --socket /run/vm.sock images/vm.img
  qemu-system-x86_64 -m 1G -object memory-backend-memfd,id=mem,size=1G,share=on -numa node,memdev=mem \
    -chardev socket,id=disk,path=/run/vm.sock,reconnect=1 -device vhost-user-blk-pci,chardev=disk ...

With reconnect=1 the machine goes on when this process was killed and is started again: it does again what was under way.
To migrate it, start varve vhost for the same image on the other host too: it opens the image when the machine has left this one.
Do not migrate while this server is down: qemu 7.2 does not take along what was under way.
The socket's mode says who may connect; who can gets the whole image.`,
		Args: exactArgs("IMAGE"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.runVhost(cmd.Context(), &f, args[0]) },
	}
	fl := cmd.Flags()
	fl.StringVar(&f.socket, "socket", "", "listen on a UNIX socket there")
	fl.StringVar(&f.mode, "socket-mode", "0600", "permissions of the socket")
	fl.BoolVar(&f.readOnly, "read-only", false, "take no writes")
	imageFlag(fl, &f.options)
	fl.IntVar(&f.queues, "queues", 1, "most queues of the guest, 1 to 64 (qemu: num-queues)")
	fl.IntVar(&f.blockSize, "block-size", 512, "512 or 4096: the sector that the guest sees; 4096 spares the cluster parts of blocks")
	fl.StringVar(&f.serial, "serial", "", "serial number for the guest, at most 20 bytes (default: the end of the image's path)")
	fl.IntVar(&f.threads, "threads", 0, "threads that serve queues (default: half of the processors, at most 8 and one for each queue)")
	fl.IntVar(&f.memory, "memory", 0, "MiB for data that is copied (default and least: 64 for each thread)")
	f.pid.flag(cmd)
	return cmd
}

func (a *app) runVhost(ctx context.Context, f *vhostFlags, arg string) (err error) {
	path, err := imagePath(arg)
	if err != nil {
		return err
	}
	spec, err := parseImageOptions(f.options)
	if err != nil {
		return err
	}
	if f.socket == "" {
		return usagef("where to listen? Give --socket PATH")
	}
	mode, err := strconv.ParseUint(f.mode, 8, 9)
	if err != nil {
		return usagef("--socket-mode %q: want an octal number such as 0660", f.mode)
	}
	if f.serial == "" {
		f.serial = path[max(0, len(path)-20):]
	}
	log := slog.Default()
	c, err := a.dialImages(ctx, "vhost:"+f.socket, spec, log)
	if err != nil {
		return err
	}
	defer c.close()
	m := image{c.Client, path}
	if _, err := m.Size(ctx); err != nil {
		return fmt.Errorf("%w; an image is named by its path from the cluster's root", err)
	}
	threads := f.threads
	if threads == 0 {
		threads = min(block.DefaultThreads(), max(f.queues, 1))
	}
	loops, err := block.StartLoops(block.LoopOptions{Threads: threads, Memory: f.memory << 20, Host: hostOf(c.Client), Logger: log})
	if err != nil {
		return usagef("%w", err)
	}
	block.MakeRoom(len(loops))
	l, where, err := listenUnix(f.socket, os.FileMode(mode))
	if err != nil {
		return errors.Join(err, block.CloseLoops(context.WithoutCancel(ctx), loops))
	}
	defer ownSocket(where).remove()
	s, err := vhost.Start(vhost.Options{
		Image: m, ReadOnly: f.readOnly || c.readOnly, Loops: loops, Listener: l.(*net.UnixListener), Logger: log, Queues: f.queues, BlockSize: f.blockSize, Serial: f.serial,
	})
	if err != nil {
		return errors.Join(usagef("%w", err), block.CloseLoops(context.WithoutCancel(ctx), loops))
	}
	if err := f.pid.write(); err != nil {
		return err
	}
	defer f.pid.remove()
	if err := a.sayVhost(path, where); err != nil {
		return err
	}
	signalReady("")
	return a.serveBlocks(ctx, loops, s.Shutdown)
}

// sayVhost prints where the image is.
func (a *app) sayVhost(path, socket string) error {
	if a.json {
		return a.printJSON(map[string]string{"image": "/" + path, "socket": socket})
	}
	_, err := fmt.Fprintf(a.out, "/%s is at -chardev socket,id=disk,path=%s,reconnect=1 -device vhost-user-blk-pci,chardev=disk\n", path, socket)
	return err
}
