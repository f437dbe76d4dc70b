// Package profile runs loads that are made of several: phases one after the other, in each of which groups of jobs with a pattern of
// their own work at the same time.
//
// Use: Builtin or Parse gives a Profile; its Run does it on a target and returns a Result, which WriteDir writes for package
// perf/report.
//
// A profile is YAML. The fields of a group are those of perf.Options, with the words of `varve perf run`:
//
//	name: vm-example
//	about: what it imitates, and what to look at
//	phases:
//	- name: steady           # names: letters, digits and "-"
//	  for: 60s
//	  groups:
//	  - name: database       # its files are kept from phase to phase
//	    rw: randrw           # read, write, randread, randwrite, randrw
//	    mix: 70              # percent of reads of randrw
//	    bs: 8k
//	    qd: 16
//	    jobs: 2
//	    size: 1g             # of each job
//	    fsync: 32            # an fdatasync after as many writes
//	    rate: 2000           # operations a second (open loop)
//	    arrival: poisson
//	    dist: zipf:0.99
//	    direct: true
//	    verify: false
//	- name: clone
//	  once: true             # instead of for: until each group has done all its bytes, files or clones once
//	  groups:
//	  - name: vm             # each of its files becomes a clone of the first file of the group golden, in an earlier phase
//	    clone: golden
//	    jobs: 8
//	- name: names
//	  for: 10s               # or less, where nothing is left to do: all files made, or none left
//	  groups:
//	  - name: tree           # each job has a directory
//	    metadata: "stat:80,create:10,delete:10"   # create, stat, lookup, list, rename, delete, with weights, or one of them
//	    files: 2000          # of each job at most
//	    jobs: 4
//	    fsync: 100           # of the directory, after as many changes
//
// Files are cloned by FICLONE, where the filesystem has it, else by copy_file_range, else by reading and writing; the result says by which.
//
// Job files of fio are read too (ParseFio), as far as their options have a meaning here; what has none is an error, not ignored.
package profile
