package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"strings"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"

	"github.com/spf13/cobra"
)

// fenceTimeout bounds a fencing: chunk servers that are silent have to run into the end of their own lease.
const fenceTimeout = time.Minute

// fenceJSON is what `fence --json` prints.
type fenceJSON struct {
	Session uint64   `json:"session"`
	Index   uint64   `json:"index"`  // of the event; 0: it was fenced before the leader of the moment led
	Silent  []string `json:"silent"` // chunk servers that did not answer and had stopped serving by their own lease
}

func (a *app) fenceCommand() *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use: "fence SESSION [--reason TEXT]", Short: "End a client's session at once: no chunk server takes anything from it any more",
		Long: `Ends a session, which varve stat lists, as if its lease had run out. The client is told; one that does not
answer is waited for until its lease is over, so that it serves nothing of what it keeps. When the command returns,
every chunk server refuses what the client still sends; one that does not answer is waited for until its own lease
has run out, so that it serves nobody. Files that the client has open there fail for good; its mount goes on under a new session.
To fence a session that is fenced already changes nothing. The event in the journal says who did it and why.`,
		Args: exactArgs("SESSION"),
		RunE: func(cmd *cobra.Command, args []string) error {
			session, err := parseSession(args[0])
			if err != nil {
				return err
			}
			d, err := a.readCluster()
			if err != nil {
				return err
			}
			reply := new(msg.FenceSessionReply)
			err = d.askLeader(cmd.Context(), fenceTimeout, wire.FenceSession, &msg.FenceSession{Session: uint64(session), Reason: signed(reason)}, reply)
			if errors.Is(err, fserr.NotExist) {
				return fmt.Errorf("session %v is not open: it never was, it left, or it was fenced long ago; see the open ones with: varve -c %s stat",
					session, shellQuote(d.path))
			}
			if err != nil {
				return fmt.Errorf("fence session %v: %w", session, err)
			}
			out := fenceJSON{uint64(session), reply.Index, serverNames(reply.Silent)}
			if a.json {
				return a.printJSON(out)
			}
			fmt.Fprintf(a.out, "session %v is fenced: no chunk server takes anything from it any more\n", session)
			if len(out.Silent) > 0 {
				fmt.Fprintf(a.out, "silent: %s; what does not answer has stopped serving by its own lease, and is told before it serves again\n",
					strings.Join(out.Silent, " "))
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the journal")
	return cmd
}

func parseSession(s string) (id.SessionID, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || n == 0 {
		return 0, usagef("session %q: want its number, as varve stat shows it", s)
	}
	return id.SessionID(n), nil
}

func serverNames(servers []uint32) []string {
	out := make([]string, len(servers))
	for i, s := range servers {
		out[i] = id.ServerID(s).String()
	}
	return out
}

// signed returns an administrator's reason with who gives it.
func signed(reason string) string {
	who := "uid " + strconv.Itoa(os.Getuid())
	if u, err := user.Current(); err == nil && u.Username != "" {
		who = u.Username
	}
	if host, err := os.Hostname(); err == nil {
		who += "@" + host
	}
	if reason == "" {
		return who
	}
	return who + ": " + reason
}

// askLeader asks the leader, and the next one if there is an election meanwhile. The request may be carried out more than once.
func (d *clusterDir) askLeader(ctx context.Context, limit time.Duration, t wire.Type, req, reply wire.Message) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for patience := time.Now().Add(leaderPatience); ; {
		again, err := d.askLeaderOnce(ctx, t, req, reply)
		if again {
			patience = time.Now().Add(leaderPatience) // it was there a moment ago
		}
		var unreachable *exitError
		noLeader := errors.Is(err, fserr.NotLeader) || errors.As(err, &unreachable) && unreachable.code == exitUnreachable
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return unreachablef("no answer of the leader within %v; see varve -c %s stat: %w", limit, shellQuote(d.path), err)
		case !again && (!noLeader || time.Now().After(patience)):
			return err
		}
		time.Sleep(pollPause)
	}
}

// askLeaderOnce reports again when the connection was lost while the leader was asked.
func (d *clusterDir) askLeaderOnce(ctx context.Context, t wire.Type, req, reply wire.Message) (again bool, err error) {
	m, err := d.dialLeader(ctx)
	if err != nil {
		return false, err
	}
	defer m.close()
	code, err := m.conn.CallMessage(ctx, t, wire.ClassMeta, req, reply)
	if err != nil {
		return errors.Is(err, wire.ErrClosed), fmt.Errorf("ask %s: %w", m.addr, err)
	}
	return false, code.Err()
}
