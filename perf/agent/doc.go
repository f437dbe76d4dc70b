// Package agent runs one load of package perf on several hosts at once and puts what they measured together.
//
// Use: Serve answers on a connection to the host that asks, as `varve perf agent` does: on standard input and output, which is for ssh, or
// on the TLS connections of Listen. Run connects to the agents, has each open and lay out its share of the jobs, has them all begin at the same
// moment, and returns a perf.Result in which histograms are merged, not percentiles, with what each host did in Result.Hosts.
//
// Clocks: the asking host measures the offset of each agent's monotonic clock by round trips and keeps that of the shortest; half of its
// time is the most that the offset can be wrong. The start is told in the agent's own clock. Wall clocks are compared for people only.
//
// An agent that cannot be reached or made ready ends the run before it begins. One that dies, hangs or is cut off later is named in the
// result, with what it told until then; the others go on. An agent whose asker is gone or silent ends its load.
//
// Security: nobody is listened to without a secret. Listen and Dial make an Ed25519 key from it, and each side accepts in TLS 1.3 only who has the
// same key; so the secret must be one that cannot be guessed (at least 32 bytes). What an agent may be asked for is up to Allow.
//
// Format: a JSON object a line in both directions, at most maxLine bytes, one of whose fields says what it is (message). The first line of an agent
// begins with its name (helloMagic); what a login shell prints before it is skipped. Both sides refuse another protocol or another release.
package agent
