package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"

	"varve/internal/readcache"

	"github.com/spf13/cobra"
)

func (a *app) cacheCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "cache", Short: "The read cache of a mount: look at it, resize or move it while it is in use", Args: noArgs,
		Long: "The read cache of a mount (mount -o cache=DIR,cachesize=MB): look at it, resize or move it while it is in use. For the user whose process\n" +
			"serves the mount, on its host. The next mount takes what its options say: change them too.",
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		&cobra.Command{Use: "stat MOUNT", Short: "What is in it, and how often it was of use", Args: exactArgs("MOUNT"),
			RunE: func(cmd *cobra.Command, args []string) error {
				return a.cacheAsk(cmd.Context(), args[0], cacheRequest{Do: "stat"})
			}},
		&cobra.Command{Use: "resize MOUNT MB", Short: "Give it another size; what does not fit any more goes", Args: exactArgs("MOUNT", "MB"),
			RunE: func(cmd *cobra.Command, args []string) error {
				size, err := parseCacheSize(args[1])
				if err != nil {
					return err
				}
				return a.cacheAsk(cmd.Context(), args[0], cacheRequest{Do: "resize", Bytes: size})
			}},
		&cobra.Command{Use: "move MOUNT DIR", Short: "Move it to another directory, with what is in it", Args: exactArgs("MOUNT", "DIR"),
			RunE: func(cmd *cobra.Command, args []string) error {
				dir, err := filepath.Abs(args[1])
				if err != nil {
					return err
				}
				return a.cacheAsk(cmd.Context(), args[0], cacheRequest{Do: "move", Dir: dir})
			}},
	)
	return cmd
}

func parseCacheSize(s string) (int64, error) {
	mb, err := strconv.ParseInt(s, 10, 64)
	if err != nil || mb < readcache.MinBytes>>20 || mb > readcache.MaxBytes>>20 {
		return 0, usagef("size of the read cache %q: want MB, %d to %d", s, readcache.MinBytes>>20, int64(readcache.MaxBytes>>20))
	}
	return mb << 20, nil
}

func (a *app) cacheAsk(ctx context.Context, path string, req cacheRequest) error {
	m, err := mountOf(path)
	if err != nil {
		return err
	}
	st, err := askCache(ctx, m, req)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(st)
	}
	_, err = fmt.Fprint(a.out, st.Text())
	return err
}
