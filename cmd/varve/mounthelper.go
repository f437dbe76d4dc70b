package main

import (
	"path/filepath"
	"slices"
	"strings"
)

// helperNames are what mount(8) calls this program as, for `mount -t varve` and `mount -t fuse.varve`, and so for lines of fstab.
var helperNames = []string{"mount.varve", "mount.fuse.varve"}

// helperArgs returns the arguments of `varve mount` for those that mount(8) gives a helper: SOURCE DIR [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE],
// in any order. fake: all is checked and nothing done.
func helperArgs(args []string) (out []string, fake bool, err error) {
	var places, options []string
	sloppy := false
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if !strings.HasPrefix(arg, "-") || arg == "-" {
			places = append(places, arg)
			continue
		}
		for k := 1; k < len(arg); k++ {
			switch c := arg[k]; c {
			case 's':
				sloppy = true
			case 'f':
				fake = true
			case 'n', 'v': // there is no mtab, and little to say
			case 'w':
				options = append(options, "rw")
			case 'r':
				options = append(options, "ro")
			case 'o', 't', 'N':
				value := arg[k+1:]
				if value == "" {
					if i++; i == len(args) {
						return nil, false, usagef("-%c: its value is missing", c)
					}
					value = args[i]
				}
				if c == 'o' {
					options = append(options, value)
				}
				if c == 'N' {
					return nil, false, usagef("-N: a varve mount cannot be made in another namespace; run it there: nsenter")
				}
				k = len(arg)
			default:
				return nil, false, usagef("-%c is unknown; want SOURCE DIR [-sfnv] [-o OPTIONS] [-t TYPE], as mount(8) says", c)
			}
		}
	}
	if len(places) != 2 {
		return nil, false, usagef("want SOURCE DIR, such as %smain /mnt; got %d places", sourceScheme, len(places))
	}
	cluster := places[0]
	if strings.HasPrefix(cluster, sourceScheme) {
		if cluster, err = sourceCluster(cluster); err != nil {
			return nil, false, usagef("%w", err)
		}
	}
	if options = splitOptions(options); sloppy {
		options = slices.DeleteFunc(options, func(o string) bool {
			_, err := parseMountOptions([]string{o})
			return err != nil && o != "remount"
		})
	}
	again := slices.Contains(options, "remount")
	options = slices.DeleteFunc(options, func(o string) bool { return o == "remount" })
	if again && slices.ContainsFunc(options, ofKernel) {
		options = append(slices.DeleteFunc(options, ofKernel), shownOption)
	}
	if _, err := parseMountOptions(options); err != nil {
		return nil, false, err
	}
	if again { // also what systemctl reload of a mount's unit comes to
		return []string{"restart", "--options", strings.Join(append([]string{"defaults"}, options...), ","), "--", places[1]}, fake, nil
	}
	out = []string{"-c", cluster, "mount"}
	if len(options) > 0 {
		out = append(out, "-o", strings.Join(options, ","))
	}
	return append(out, "--", places[1]), fake, nil
}

// shownOption stands for those that the kernel's table of mounts shows, which mount(8) gives when it finds no line in fstab: whatever the table does not show is as it is.
const shownOption = "x-varve.shown"

func ofKernel(option string) bool {
	name, _, _ := strings.Cut(option, "=")
	return slices.Contains([]string{"user_id", "group_id", "max_read", "rootmode", "fd", "blksize"}, name)
}

// isHelper reports whether the program was called by the name of a mount helper, and not by itself.
func isHelper(argv0 string) bool {
	return slices.Contains(helperNames, filepath.Base(argv0)) && tellParent.pipe == nil
}
