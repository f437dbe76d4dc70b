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
//
// Job files of fio are read too (ParseFio), as far as their options have a meaning here; what has none is an error, not ignored.
package profile
