package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/mds/event"
	"varve/mds/settings"

	"github.com/spf13/cobra"
)

const (
	// drainPoll is how often it is looked at how far a drain is.
	drainPoll = 500 * time.Millisecond
	// drainQuiet is for how long nobody may tell how far a drain is before the command gives up looking.
	drainQuiet = 2 * time.Minute
)

// modeJSON is what drain, standby, active and rm-cs print with --json.
type modeJSON struct {
	Servers []string `json:"servers"`
	Mode    string   `json:"mode"`            // active, standby, draining, drained, removing or retired
	Done    bool     `json:"done"`            // what was asked for has come to its end
	Until   string   `json:"until,omitempty"` // when standby ends
	Lost    uint64   `json:"lost,omitempty"`  // chunks of which no replica is left
	Paths   []string `json:"lost_paths,omitempty"`
}

func (a *app) modeCommands() []*cobra.Command {
	var out []*cobra.Command
	for _, c := range []struct {
		use, short, long string
		mode             event.ServerMode_Mode
		done             string
	}{
		{"drain", "Move all data of chunk servers to others", "No new data is put on them, and what they have moves to others; they serve until then. The command shows how far that is and\n" +
			"returns when nothing is left; interrupted, it leaves them draining. `varve active` takes it back. Refused where the other servers could not\n" +
			"keep as many replicas as files are to have, or have no room.", event.ServerMode_DRAINING, "drained: nothing is left on"},
		{"standby", "Put chunk servers on standby for maintenance", "No new data is put on them; they serve what they have, and may be stopped and started: they are not taken for lost, and repair\n" +
			"waits for them as long as enough other replicas are there. `varve active` takes it back; with --for it ends by itself, and who is not\n" +
			"back by then is lost like any other. Said again, it counts from then on.", event.ServerMode_STANDBY, "on standby:"},
		{"active", "Have chunk servers take new data again", "Ends drain, standby and a removal that has not come to its end.", event.ServerMode_ACTIVE, "active:"},
	} {
		var noWait bool
		var long string
		cmd := &cobra.Command{
			Use: c.use + " NODE...", Short: c.short,
			Long: c.short + ". NODE is a chunk server (cs3), a host with all its chunk servers, a range of either (cs1-4, vm1-4,vm7), or ALL.\n" + c.long,
			RunE: func(cmd *cobra.Command, args []string) error {
				if len(args) == 0 {
					return usagef("%s: NODE is missing; see %s --help", cmd.CommandPath(), cmd.CommandPath())
				}
				d, err := settings.Age(long)
				if err != nil || d == 0 && cmd.Flags().Changed("for") {
					return usagef("--for %q: want how long, such as 30m", long)
				}
				return a.setMode(cmd.Context(), args, modeChange{c.mode, c.done, noWait, d})
			},
		}
		if c.mode == event.ServerMode_DRAINING {
			cmd.Flags().BoolVar(&noWait, "no-wait", false, "return at once; varve stat shows how far it is")
		}
		if c.mode == event.ServerMode_STANDBY {
			cmd.Flags().StringVar(&long, "for", "", "how long, such as 30m (default: until varve active)")
		}
		out = append(out, cmd)
	}
	return out
}

// modeChange is what chunk servers are to be used for.
type modeChange struct {
	mode   event.ServerMode_Mode
	done   string        // what to say of them then
	noWait bool          // of a drain
	long   time.Duration // of standby; 0: without end
}

func (a *app) setMode(ctx context.Context, args []string, to modeChange) error {
	d, err := a.readCluster()
	if err != nil {
		return err
	}
	st, err := d.leaderStatus(ctx)
	if err != nil {
		return err
	}
	servers, err := serversOf(st, args)
	if err != nil {
		return err
	}
	mode, done := to.mode, to.done
	req := &msg.SetServerMode{Servers: servers, Mode: uint32(mode), ForMs: uint64(to.long.Milliseconds())}
	if err := d.atLeader(ctx, wire.SetServerMode, req, nil); err != nil {
		return err
	}
	out := modeJSON{Mode: modeName(mode), Done: true}
	if to.long > 0 {
		out.Until = time.Now().Add(to.long).UTC().Format(time.RFC3339)
	}
	for _, s := range servers {
		out.Servers = append(out.Servers, id.ServerID(s).String())
	}
	if mode == event.ServerMode_DRAINING && to.noWait {
		out.Done, done = false, "draining:"
	} else if mode == event.ServerMode_DRAINING {
		err := a.watchDrain(ctx, d, servers, "draining", func(s *msg.ChunkServer) (bool, error) {
			switch s.Mode {
			case "drained", "":
				if s.Mode == "" {
					return false, fmt.Errorf("%s was made active again before it was drained", id.ServerID(s.Server))
				}
				return true, nil
			}
			return false, nil
		}, a.again("active "+nodeArgs(servers))+" takes it back")
		if err != nil {
			return a.unfinished(out, err)
		}
		out.Mode = "drained"
	}
	if a.json {
		return a.printJSON(out)
	}
	if to.long > 0 {
		_, err = fmt.Fprintf(a.out, "%s %s, for %v\n", done, namesOf(servers), to.long)
		return err
	}
	_, err = fmt.Fprintf(a.out, "%s %s\n", done, namesOf(servers))
	return err
}

// unfinished says what was begun and is not done because of err, with --json also in JSON.
func (a *app) unfinished(out modeJSON, err error) error {
	if out.Done = false; a.json {
		return errors.Join(err, a.printJSON(out))
	}
	return err
}

// again is another command for the same cluster.
func (a *app) again(command string) string {
	return "varve -c " + shellQuote(a.cluster) + " " + command
}

// nodeArgs are the servers as arguments.
func nodeArgs(servers []uint32) string {
	out := make([]string, len(servers))
	for i, s := range servers {
		out[i] = id.ServerID(s).String()
	}
	return strings.Join(out, ",")
}

// modeName is a mode as stat names it.
func modeName(m event.ServerMode_Mode) string {
	return map[event.ServerMode_Mode]string{event.ServerMode_ACTIVE: "active", event.ServerMode_DRAINING: "draining", event.ServerMode_STANDBY: "standby",
		event.ServerMode_REMOVING: "removing", event.ServerMode_DRAINED: "drained"}[m]
}

// watchDrain shows how far servers are emptied until done says of each that it is, or ctx ends, which leaves them as they are.
func (a *app) watchDrain(ctx context.Context, d *clusterDir, servers []uint32, what string, done func(*msg.ChunkServer) (bool, error), takeBack string) error {
	at, end := a.byteProgress(what)
	defer end()
	var total uint64
	heard := time.Now()
	for {
		st, err := d.status(ctx)
		if err == nil && serves(st) {
			heard = time.Now()
			var left uint64
			all := true
			for _, s := range st.Servers {
				if !slices.Contains(servers, s.Server) {
					continue
				}
				ok, err := done(s)
				if err != nil {
					return err
				}
				all = all && ok
				left += s.Left
			}
			total = max(total, left)
			if at != nil && total > 0 {
				at(int64(total-left), int64(total))
			}
			if all {
				return nil
			}
		}
		if time.Since(heard) > drainQuiet {
			return unreachablef("nobody has told for %v how far %s is; it goes on as soon as there is a leader; varve -c %s stat", drainQuiet, namesOf(servers), d.name)
		}
		select {
		case <-ctx.Done():
			end()
			return &exitError{exitFailed, fmt.Errorf("interrupted: the cluster goes on %s %s; %s shows how far it is, %s", what, namesOf(servers), a.again("stat"), takeBack)}
		case <-time.After(drainPoll):
		}
	}
}

func (a *app) rmCSCommand() *cobra.Command {
	var force, lose, noWait bool
	cmd := &cobra.Command{
		Use: "rm-cs [--force [--lose-data]] ID", Short: "Remove a chunk server from the cluster; its id is retired for good", Args: exactArgs("ID"),
		Long: "Remove a chunk server (cs3, or 3) from the cluster. Its data moves to the others first, while it serves; then its id is retired, the server stops, and its\n" +
			"directory never starts again. The command shows how far that is; interrupted, it leaves the server draining, and it is removed in the end\n" +
			"unless `varve active` takes it back. Refused where the others could not keep as many replicas as files are to have, or have no room.\n" +
			"--force removes it at once, for a server that is lost. If it alone has chunks the command says of which files and refuses: with --lose-data they are given up.",
		RunE: func(cmd *cobra.Command, args []string) error {
			m := serverID.FindStringSubmatch(args[0])
			if m == nil {
				return usagef("%q is no chunk server: want its number, such as 3 or cs3; varve list-services lists them", args[0])
			}
			n, err := strconv.ParseUint(m[1], 10, 32)
			if err != nil {
				return usagef("%q is no chunk server: %w", args[0], err)
			}
			if lose && !force {
				return usagef("rm-cs --lose-data goes with --force; without it nothing is lost")
			}
			return a.removeServer(cmd.Context(), &msg.RemoveServer{Server: uint32(n), Force: force, Lose: lose}, noWait)
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "remove it at once, although its data was not moved")
	cmd.Flags().BoolVar(&lose, "lose-data", false, "with --force: although it alone has some of the data, which is lost for good")
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "return when it is begun")
	return cmd
}

func (a *app) removeServer(ctx context.Context, req *msg.RemoveServer, noWait bool) error {
	d, err := a.readCluster()
	if err != nil {
		return err
	}
	name := id.ServerID(req.Server).String()
	reply := new(msg.RemoveServerReply)
	if err := d.atLeader(ctx, wire.RemoveServer, req, reply); err != nil {
		return err
	}
	out := modeJSON{Servers: []string{name}, Mode: "retired", Done: true, Lost: reply.Lost}
	for _, p := range reply.LostPaths {
		out.Paths = append(out.Paths, string(p))
	}
	if !reply.Retired && noWait {
		out.Mode, out.Done = "removing", false
	} else if !reply.Retired {
		err := a.watchDrain(ctx, d, []uint32{req.Server}, "removing", func(s *msg.ChunkServer) (bool, error) {
			if s.State != stateRetired && s.Mode != "removing" {
				return false, fmt.Errorf("%s is not being removed any more: somebody has made it %s", name, map[bool]string{true: "active", false: s.Mode}[s.Mode == ""])
			}
			return s.State == stateRetired, nil
		}, a.again("active "+name)+" takes it back")
		if err != nil {
			out.Mode = "removing"
			return a.unfinished(out, err)
		}
	}
	if a.json {
		return a.printJSON(out)
	}
	if !out.Done {
		_, err = fmt.Fprintf(a.out, "%s is being emptied, and is removed when nothing is left on it; see varve -c %s stat\n", name, d.name)
		return err
	}
	if out.Lost > 0 {
		fmt.Fprintf(a.out, "lost: %s that no other server has, of %s\n", count(out.Lost, "chunk"), joinWords(out.Paths))
	}
	_, err = fmt.Fprintf(a.out, "%s is removed from cluster %s for good; it stops by itself, and its directory can be erased\n", name, d.name)
	return err
}

func (a *app) setTierCommand() *cobra.Command {
	return &cobra.Command{
		Use: "set-tier ID TIER", Short: "Change the tier of a chunk server; data moves in the background", Args: exactArgs("ID", "TIER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			m := serverID.FindStringSubmatch(args[0])
			tier, err := strconv.ParseUint(args[1], 10, 32)
			if m == nil || err != nil || tier > 3 {
				return usagef("set-tier %s %s: want a chunk server, such as cs3, and a tier from 0 to 3", args[0], args[1])
			}
			n, err := strconv.ParseUint(m[1], 10, 32)
			if err != nil {
				return usagef("%q is no chunk server: %w", args[0], err)
			}
			d, err := a.readCluster()
			if err != nil {
				return err
			}
			if err := d.atLeader(cmd.Context(), wire.SetTier, &msg.SetTier{Server: uint32(n), Tier: uint32(tier)}, nil); err != nil {
				return err
			}
			name := id.ServerID(n).String()
			if a.json {
				return a.printJSON(struct {
					Server string `json:"server"`
					Tier   uint64 `json:"tier"`
				}{name, tier})
			}
			_, err = fmt.Fprintf(a.out, "%s is of tier %d; what belongs elsewhere by that moves in the background\n", name, tier)
			return err
		},
	}
}
