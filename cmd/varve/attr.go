package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"varve/fuse"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/mds/state"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// attrJSON is what `get-attr --json` prints.
type attrJSON struct {
	Path     string      `json:"path"`
	Ino      uint64      `json:"ino"`
	Replicas string      `json:"replicas"`      // in effect, NORM:MIN
	Own      string      `json:"own,omitempty"` // set on the path itself
	Tier     string      `json:"tier"`          // 0 to 3, or any
	Domain   string      `json:"failure_domain"`
	Prefer   []string    `json:"prefer"` // hosts
	Set      []string    `json:"set"`    // which of all these are set on the path itself
	Chunks   []chunkJSON `json:"chunks"`
}

type chunkJSON struct {
	Index    uint32        `json:"index"`
	ID       string        `json:"id"`
	Epoch    uint64        `json:"epoch"`
	Replicas []replicaJSON `json:"replicas"`
}

type replicaJSON struct {
	Server  string `json:"server"`
	Addr    string `json:"addr"`
	Joining bool   `json:"joining"`
}

// mounted is a path on a varve mount: the inode, and the cluster that holds it.
type mounted struct {
	path    string
	ino     id.Ino
	dev     uint64
	cluster *clusterDir
}

// findMounted finds what path is on which varve mount.
func findMounted(path string) (*mounted, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil, fmt.Errorf("%w; give a path on a varve mount, which are listed by: findmnt -t fuse.varve", &fs.PathError{Op: "stat", Path: path, Err: err})
	}
	mounts, err := fuse.Mounts()
	if err != nil {
		return nil, err
	}
	for _, m := range mounts {
		if m.Major != unix.Major(st.Dev) || m.Minor != unix.Minor(st.Dev) {
			continue
		}
		where, err := sourceCluster(m.Source)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", m.Dir, err)
		}
		d, err := readClusterDir(where)
		if err != nil {
			return nil, err
		}
		return &mounted{path: path, ino: id.Ino(st.Ino), dev: st.Dev, cluster: d}, nil
	}
	return nil, usagef("%s is not on a varve mount; varve mounts are listed by: findmnt -t fuse.varve", path)
}

// dialLeader connects to the leader.
func (d *clusterDir) dialLeader(ctx context.Context) (*admin, error) {
	if err := d.prove(false); err != nil {
		return nil, err
	}
	m, err := d.dialAny(ctx)
	if err != nil {
		return nil, err
	}
	members := new(msg.MembersReply)
	if err := m.ask(ctx, wire.Members, &msg.Members{}, members); err != nil {
		m.close()
		return nil, err
	}
	if members.Leader == m.addr {
		return m, nil
	}
	m.close()
	if members.Leader == "" {
		return nil, unreachablef("cluster %s has no leader at the moment; see varve -c %s stat, and try again", d.name, shellQuote(d.path))
	}
	return d.dialMeta(ctx, members.Leader)
}

// meta asks the leader for one operation, as an administrator, without a session.
func (m *admin) meta(ctx context.Context, req *msg.MetaRequest) (*msg.MetaReply, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*adminTimeout)
	defer cancel()
	reply := new(msg.MetaReply)
	code, err := m.conn.CallMessage(ctx, wire.Meta, wire.ClassMeta, req, reply)
	if err != nil {
		return nil, err
	}
	if code != fserr.OK && reply.Detail != "" {
		return reply, fmt.Errorf("%s: %w", reply.Detail, code)
	}
	return reply, code.Err()
}

func (m *admin) policy(ctx context.Context, ino id.Ino) (*msg.PolicyReply, error) {
	reply, err := m.meta(ctx, &msg.MetaRequest{Op: &msg.MetaRequest_GetPolicy{GetPolicy: &msg.GetPolicy{Ino: uint64(ino)}}})
	if err != nil {
		return nil, err
	}
	if reply.GetPolicy() == nil {
		return nil, fmt.Errorf("%s answered without a policy: %w", m.addr, fserr.Protocol)
	}
	return reply.GetPolicy(), nil
}

func (m *admin) setPolicy(ctx context.Context, ino id.Ino, attrs *attrs) error {
	cred := &msg.Cred{Uid: uint32(os.Geteuid()), Gid: uint32(os.Getegid())}
	_, err := m.meta(ctx, &msg.MetaRequest{Cred: cred, Op: &msg.MetaRequest_SetPolicy{SetPolicy: &msg.SetPolicy{
		Ino: uint64(ino), Policy: &attrs.policy, Fields: attrs.fields}}})
	return err
}

func (a *app) getAttrCommand() *cobra.Command {
	return &cobra.Command{
		Use: "get-attr PATH", Short: "Show how a file or directory of a mount is replicated and placed, and where its chunks are", Args: exactArgs("PATH"),
		RunE: func(cmd *cobra.Command, args []string) error {
			at, err := findMounted(args[0])
			if err != nil {
				return err
			}
			m, err := at.cluster.dialLeader(cmd.Context())
			if err != nil {
				return err
			}
			defer m.close()
			p, err := m.policy(cmd.Context(), at.ino)
			if err != nil {
				return fmt.Errorf("%s: %w", at.path, err)
			}
			return a.printAttr(newAttrJSON(at, p))
		},
	}
}

func newAttrJSON(at *mounted, p *msg.PolicyReply) *attrJSON {
	out := &attrJSON{Path: at.path, Ino: uint64(at.ino), Replicas: replicasText(p.Effective), Tier: tierText(p.Effective), Domain: domainText(p.Effective),
		Prefer: policyOf(p.Effective).Prefers(), Set: attrsOf(p.Own).names(), Chunks: []chunkJSON{}}
	if p.Own.GetNorm() != 0 || p.Own.GetMin() != 0 {
		out.Own = replicasText(p.Own)
	}
	if out.Prefer == nil {
		out.Prefer = []string{}
	}
	for _, c := range p.Chunks {
		one := chunkJSON{Index: c.Index, ID: id.ChunkID(c.Id).String(), Epoch: c.Epoch}
		for _, r := range c.Replicas {
			one.Replicas = append(one.Replicas, replicaJSON{id.ServerID(r.Server).String(), r.Addr, r.Joining})
		}
		out.Chunks = append(out.Chunks, one)
	}
	return out
}

func (a *app) printAttr(v *attrJSON) error {
	if a.json {
		return a.printJSON(v)
	}
	from := func(name string) string {
		if name == attrReplicas && v.Own != "" {
			return "set here: " + v.Own
		}
		if slices.Contains(v.Set, name) {
			return "set here"
		}
		return "inherited"
	}
	prefer := strings.Join(v.Prefer, ",")
	if prefer == "" {
		prefer = state.PreferNone
	}
	fmt.Fprintf(a.out, "%s\ninode           %d\nreplicas        %s (%s)\ntier            %s (%s)\nfailure-domain  %s (%s)\nprefer          %s (%s)\n", v.Path, v.Ino,
		v.Replicas, from(attrReplicas), v.Tier, from(attrTier), v.Domain, from(attrDomain), prefer, from(attrPrefer))
	if len(v.Chunks) == 0 {
		return nil
	}
	rows := [][]string{{"CHUNK", "ID", "EPOCH", "REPLICAS"}}
	for _, c := range v.Chunks {
		var on []string
		for _, r := range c.Replicas {
			s := r.Server
			if r.Joining {
				s += " (joining)"
			}
			on = append(on, s)
		}
		rows = append(rows, []string{strconv.FormatUint(uint64(c.Index), 10), c.ID, strconv.FormatUint(c.Epoch, 10), strings.Join(on, " ")})
	}
	return a.table(rows)
}

func (a *app) setAttrCommand() *cobra.Command {
	var recursive bool
	cmd := &cobra.Command{
		Use: "set-attr PATH NAME=VALUE...", Short: "Say how a file, or what is below a directory, is replicated and placed",
		Long: "Set attributes of a file or directory. What is below a directory inherits them, each by itself, unless it has its own. Data that is there already is\n" +
			"moved in the background.\n\n" +
			"  replicas=NORM[:MIN]     how many replicas there should be, and must be for a write to go on, such as 3:2\n" +
			"  tier=0..3|any           the tier of chunk servers it is kept on; while they are full, on the next one\n" +
			"  failure-domain=LEVEL    what no two replicas share: disk, host (at first), rack, row or room\n" +
			"  prefer=HOST[,HOST]|none hosts that should have a replica\n\n" +
			"NAME=inherit takes an attribute back.",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 2 {
				return exactArgs("PATH", "NAME=VALUE")(cmd, args)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			set, err := parseAttrs(args[1:])
			if err != nil {
				return err
			}
			at, err := findMounted(args[0])
			if err != nil {
				return err
			}
			if err := at.cluster.canHave(cmd.Context(), set); err != nil {
				return err
			}
			m, err := at.cluster.dialLeader(cmd.Context())
			if err != nil {
				return err
			}
			defer m.close()
			changed, err := m.setPolicyTree(cmd.Context(), at, set, recursive)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(set.json(at, changed))
			}
			return nil
		},
	}
	cmd.Flags().BoolVarP(&recursive, "recursive", "R", false, "also remove what was set on files and directories below, so that they inherit this")
	return cmd
}

// canHave refuses what would have every write wait.
func (d *clusterDir) canHave(ctx context.Context, set *attrs) error {
	if set.policy.Min == 0 {
		return nil
	}
	st, err := d.status(ctx)
	if err != nil {
		return err
	}
	servers := 0
	for _, s := range st.Servers {
		if s.State != stateRetired {
			servers++
		}
	}
	if int(set.policy.Min) > servers {
		return refusedf("replicas %s needs at least %d chunk servers and cluster %s has %d, so every write would wait; choose a lower MIN, or add servers with make-cs first",
			replicasText(&set.policy), set.policy.Min, d.name, servers)
	}
	return nil
}

// setPolicyTree sets attributes on a path. recursive: what is below it inherits them from now on. It returns how many inodes
// were changed.
func (m *admin) setPolicyTree(ctx context.Context, at *mounted, set *attrs, recursive bool) (changed int, err error) {
	if err := m.setPolicy(ctx, at.ino, set); err != nil {
		return 0, fmt.Errorf("%s: %w", at.path, err)
	}
	if !recursive {
		return 1, nil
	}
	changed = 1
	err = filepath.WalkDir(at.path, func(path string, _ fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed meanwhile
		}
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			if errors.Is(err, unix.ENOENT) {
				return nil
			}
			return &fs.PathError{Op: "lstat", Path: path, Err: err}
		}
		if st.Dev != at.dev || id.Ino(st.Ino) == at.ino {
			return nil // another filesystem mounted below, or the start itself
		}
		now, err := m.policy(ctx, id.Ino(st.Ino))
		if errors.Is(err, fserr.NotExist) || err == nil && attrsOf(now.Own).fields&set.fields == 0 {
			return nil
		}
		if err == nil {
			err = m.setPolicy(ctx, id.Ino(st.Ino), &attrs{fields: set.fields})
			changed++
		}
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		return nil
	})
	return changed, err
}
