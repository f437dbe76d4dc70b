// Package netcheck measures the network between the members of a cluster: throughput and latency of pairs, the path's MTU, retransmissions, speeds and
// MTUs of interfaces, and clocks; and says what is wrong with it.
//
// Member is the part of a server: it answers echoes and tells of its interface and clock, and measures the way to another one when an
// administrator orders it. Run is the part of who orders: it asks all members, chooses pairs, has them measured, one at a time for each host, and
// Judge says what is to be thought of it. A client listens nowhere: the leader hands on to it what an administrator asks (RunOptions.Relay), it connects in
// tests of either way, as traffic that goes after guests', and is not measured with other clients.
//
// What is measured takes the way of real traffic: a connection by the members' own Network to the port of data, for a class of traffic (repair, if
// nothing else is said, so that guests go first by all that keeps order: admission, marks and queues), with frames whose payload goes through
// the receiver's payload memory. A window of frames is under way, each about 5 ms of what the way has shown to carry, so no queue is filled for long.
//
// Path MTU: UDP datagrams of several sizes with DF set, to a port that the other member opens for a moment on request and on which it answers, with 20 bytes,
// only what begins with a secret that it gave. Where no datagram comes through, what the kernel knows of the TCP connection (TCP_INFO) is taken, and said.
//
// Clocks: four time stamps, as NTP's, over the control connection; of several exchanges the one that took the least time counts, and half of that is the doubt.
//
// Limits: a member measures one way at a time and refuses others, answers 8 probes at once for 5 s each, and a test takes 10 s at most. Nothing
// grows with the number of members but the report.
package netcheck
