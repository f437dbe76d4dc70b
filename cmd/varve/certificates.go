package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"varve/internal/pki"
	"varve/internal/wire"
	"varve/internal/wire/msg"

	"github.com/spf13/cobra"
)

// nodesJSON is what `list-nodes --json` prints.
type nodesJSON struct {
	Authority    uint32     `json:"authority"` // the generation that signs
	Oldest       uint32     `json:"oldest"`    // the oldest that is trusted
	Certificates []certJSON `json:"certificates"`
}

type certJSON struct {
	Node      string     `json:"node"`
	Role      string     `json:"role"`
	Serial    string     `json:"serial"`
	Issued    time.Time  `json:"issued"`
	Expires   time.Time  `json:"expires"`
	Revoked   *time.Time `json:"revoked,omitempty"`
	Authority uint32     `json:"authority"`
}

func (a *app) listNodesCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list-nodes", Short: "List the certificates that nodes have", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, err := a.readCluster()
			if err != nil {
				return err
			}
			r := new(msg.ListCertificatesReply)
			if err := d.atLeader(cmd.Context(), wire.ListCertificates, &msg.ListCertificates{}, r); err != nil {
				return err
			}
			if !r.Secured {
				return fmt.Errorf("cluster %s has no security, so its nodes have no certificates; give it some with: varve -c %s cluster secure -r DIR", d.name, d.name)
			}
			if err := a.printNodes(r); err != nil || a.json {
				return err
			}
			s, err := d.secureState(cmd.Context())
			if err != nil || !s.Opening {
				return err
			}
			return a.secureStatus(cmd.Context(), d)
		},
	}
}

func (a *app) printNodes(r *msg.ListCertificatesReply) error {
	out := nodesJSON{Authority: r.Authority, Oldest: r.Oldest, Certificates: []certJSON{}}
	rows := [][]string{{"NODE", "ROLE", "SERIAL", "ISSUED", "EXPIRES", "CA", "STATE"}}
	day := func(t time.Time) string { return t.Local().Format("2006-01-02 15:04") }
	for _, c := range r.Certificates {
		one := certJSON{Node: c.Node, Role: pki.Role(c.Role).String(), Serial: c.Serial, Issued: time.Unix(0, c.From), Expires: time.Unix(0, c.Until), Authority: c.Authority}
		state := "valid"
		if !time.Now().Before(one.Expires) {
			state = "expired"
		}
		if c.Revoked != 0 {
			t := time.Unix(0, c.Revoked)
			one.Revoked, state = &t, "revoked "+day(t)
		}
		out.Certificates = append(out.Certificates, one)
		rows = append(rows, []string{one.Node, one.Role, one.Serial, day(one.Issued), day(one.Expires), fmt.Sprint(c.Authority), state})
	}
	if a.json {
		return a.printJSON(out)
	}
	return a.table(rows)
}

func (a *app) revokeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "revoke NODE|SERIAL", Short: "Take certificates back: all of a node, or the one with a serial number", Args: exactArgs("NODE|SERIAL"),
		Long: "Take certificates back: all that a node has, or the one with a serial number (list-nodes). Metadata and chunk servers end its connections within\n" +
			"seconds, and its sessions are fenced. A node comes back with auth-node, which needs the password: change that too if it may be known.",
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := a.readCluster()
			if err != nil {
				return err
			}
			r := new(msg.RevokeReply)
			if err := d.atLeader(cmd.Context(), wire.Revoke, &msg.Revoke{Who: args[0]}, r); err != nil {
				return err
			}
			if a.json {
				return a.printJSON(struct {
					Revoked []string `json:"revoked"`
				}{append([]string{}, r.Serials...)})
			}
			if len(r.Serials) == 0 {
				_, err = fmt.Fprintf(a.out, "%s has no valid certificate\n", args[0])
				return err
			}
			_, err = fmt.Fprintf(a.out, "revoked: %s\n", strings.Join(r.Serials, ", "))
			return err
		},
	}
}

func (a *app) clusterCommand() *cobra.Command {
	return groupCommand("cluster", "Change what the whole cluster is secured by", a.clusterSecureCommand(), a.clusterPasswordCommand(), a.rotateCACommand(), a.rotateKeysCommand())
}

func (a *app) clusterPasswordCommand() *cobra.Command {
	var password passwordFlags
	cmd := &cobra.Command{
		Use: "password", Short: "Change the password by which nodes join", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, err := a.readCluster()
			if err != nil {
				return err
			}
			p, err := password.read(a, "new password of the cluster "+d.name, true)
			if err != nil {
				return err
			}
			v, err := pki.NewPasswordVerifier(p)
			if err != nil {
				return usagef("%w", err)
			}
			b, err := v.Encode() // the password stays here
			if err != nil {
				return err
			}
			return a.changeSecurity(cmd, d, &msg.ChangeSecurity{What: msg.ChangeSecurity_PASSWORD, Verifier: b}, "the password is changed; certificates stay as they are")
		},
	}
	password.flags(cmd, "the new password")
	return cmd
}

func (a *app) rotateCACommand() *cobra.Command {
	var retire, force bool
	cmd := &cobra.Command{
		Use: "rotate-ca", Short: "Exchange the cluster's certificate authority", Args: noArgs,
		Long: "Exchange the cluster's certificate authority: a new generation signs from now on, and is trusted at once. Nodes that run get new certificates by\n" +
			"themselves within a minute. The old generation is trusted until no node needs it, or until --retire, after which nodes that were off need auth-node; while there are such nodes it needs --force.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, err := a.readCluster()
			if err != nil {
				return err
			}
			if retire {
				if err := d.mayRetire(cmd.Context(), force); err != nil {
					return err
				}
				return a.changeSecurity(cmd, d, &msg.ChangeSecurity{What: msg.ChangeSecurity_RETIRE_AUTHORITY}, "only the newest generation of the authority is trusted")
			}
			return a.changeSecurity(cmd, d, &msg.ChangeSecurity{What: msg.ChangeSecurity_ROTATE_AUTHORITY},
				"a new generation of the authority signs; list-nodes shows which certificates are of it (CA)")
		},
	}
	cmd.Flags().BoolVar(&retire, "retire", false, "trust only the newest generation from now on")
	cmd.Flags().BoolVar(&force, "force", false, "with --retire: also while nodes have no certificate of the newest generation, which are cut off")
	return cmd
}

// shownNodes bounds the nodes that a refusal names.
const shownNodes = 8

// mayRetire refuses to take the trust from certificates in whose place their nodes have no newer ones.
func (d *clusterDir) mayRetire(ctx context.Context, force bool) error {
	if force {
		return nil
	}
	r := new(msg.ListCertificatesReply)
	if err := d.atLeader(ctx, wire.ListCertificates, &msg.ListCertificates{}, r); err != nil {
		return err
	}
	newest := map[string]uint32{}
	for _, c := range r.Certificates {
		if c.Revoked == 0 && time.Now().Before(time.Unix(0, c.Until)) {
			who := pki.Identity{Role: pki.Role(c.Role), Node: c.Node}.String()
			newest[who] = max(newest[who], c.Authority)
		}
	}
	var old []string
	for _, who := range slices.Sorted(maps.Keys(newest)) {
		if newest[who] < r.Authority {
			old = append(old, who)
		}
	}
	if len(old) == 0 {
		return nil
	}
	more := ""
	if n := len(old) - shownNodes; n > 0 {
		old, more = old[:shownNodes], fmt.Sprintf(" and %d more", n)
	}
	return refusedf("%s%s would be cut off, since they have no certificate of generation %d (list-nodes, CA): nodes that run get one within a minute, administrators and readers with "+
		"auth-node --role ROLE --force; revoke those that are gone, or give --force", strings.Join(old, ", "), more, r.Authority)
}

func (a *app) rotateKeysCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rotate-keys", Short: "Exchange the key that signs what sessions may do", Args: noArgs,
		Long: "Exchange the key that signs capabilities, by which chunk servers know what a session may do. Those signed with the key before it stay valid; done\n" +
			"twice, none that were signed before the first time are.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, err := a.readCluster()
			if err != nil {
				return err
			}
			return a.changeSecurity(cmd, d, &msg.ChangeSecurity{What: msg.ChangeSecurity_ROTATE_KEYS}, "a new key signs capabilities; the one before it is still valid")
		},
	}
}

func (a *app) changeSecurity(cmd *cobra.Command, d *clusterDir, req *msg.ChangeSecurity, done string) error {
	if err := d.prove(true); err != nil {
		return err
	}
	if err := d.atLeader(cmd.Context(), wire.ChangeSecurity, req, nil); err != nil {
		return err
	}
	return a.done(done)
}

// done says what was done.
func (a *app) done(what string) error {
	if a.json {
		return a.printJSON(struct {
			Done string `json:"done"`
		}{what})
	}
	_, err := fmt.Fprintln(a.out, what)
	return err
}
