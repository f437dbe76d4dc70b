package main

import (
	"fmt"
	"strings"

	"varve/internal/wire"
	"varve/internal/wire/msg"

	"github.com/spf13/cobra"
)

// settingJSON is one setting of `get-config --json`.
type settingJSON struct {
	Key     string `json:"key"`
	Value   string `json:"value"`
	Set     bool   `json:"set"` // else value is the default
	Default string `json:"default"`
	Help    string `json:"help"`
}

func (a *app) getConfigCommand() *cobra.Command {
	return &cobra.Command{
		Use: "get-config [KEY]", Short: "Show the settings of the cluster, or one of them",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usagef("%s: one argument too many: %q; see %s --help", cmd.CommandPath(), args[1], cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := a.readCluster()
			if err != nil {
				return err
			}
			reply := new(msg.GetConfigReply)
			if err := d.atLeader(cmd.Context(), wire.GetConfig, &msg.GetConfig{}, reply); err != nil {
				return err
			}
			list := []settingJSON{}
			var keys []string
			for _, s := range reply.Settings {
				one := settingJSON{Key: s.Key, Value: s.Value, Set: s.Value != "", Default: s.Unset, Help: s.Help}
				if !one.Set {
					one.Value = s.Unset
				}
				keys = append(keys, s.Key)
				if len(args) == 0 || args[0] == s.Key {
					list = append(list, one)
				}
			}
			if len(args) == 1 && len(list) == 0 {
				return usagef("setting %q is not known: want one of %s", args[0], strings.Join(keys, ", "))
			}
			if a.json {
				return a.printJSON(list)
			}
			if len(args) == 1 {
				_, err := fmt.Fprintln(a.out, list[0].Value)
				return err
			}
			rows := [][]string{{"SETTING", "VALUE", "", "MEANING"}}
			for _, s := range list {
				value, from := s.Value, "default"
				if s.Set {
					from = "set"
				}
				if value == "" {
					value = "-"
				}
				rows = append(rows, []string{s.Key, value, from, s.Help})
			}
			return a.table(rows)
		},
	}
}

func (a *app) setConfigCommand() *cobra.Command {
	return &cobra.Command{
		Use: "set-config KEY=VALUE…", Short: "Change settings of the cluster; KEY= takes one back",
		Long: "Change settings of the cluster, for all its servers and at once; KEY= takes one back, so that its default holds again.\n" +
			"varve get-config lists them with what they mean. Each change is an event of the journal.",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("%s: KEY=VALUE is missing; see %s --help", cmd.CommandPath(), cmd.CommandPath())
			}
			for _, arg := range args {
				if key, _, ok := strings.Cut(arg, "="); !ok || key == "" {
					return usagef("%q: want KEY=VALUE, such as repair.grace=10m", arg)
				}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := a.readCluster()
			if err != nil {
				return err
			}
			done := map[string]string{}
			for _, arg := range args {
				key, value, _ := strings.Cut(arg, "=")
				if err := d.atLeader(cmd.Context(), wire.SetConfig, &msg.SetConfig{Key: key, Value: value}, nil); err != nil {
					return err
				}
				done[key] = value
			}
			if a.json {
				return a.printJSON(done)
			}
			return nil
		},
	}
}
