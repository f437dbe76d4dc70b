// Package cs is the chunk server: it keeps replicas of chunks (cs/store) and serves them to clients and to other
// chunk servers, under the direction of the leader of the metadata servers.
//
// Use: Init makes a server's directory and gets its id from the leader; Open takes the directory and the address;
// Run serves until Shutdown, which leaves a clean directory, or the end of its context. A Server's methods may be called at once.
//
// What it guarantees:
//   - Data is served only while the leader has been heard within the lease, on a clock that runs while the host
//     sleeps. After the lease ran out nothing is admitted again before all that was admitted under it has ended.
//   - After Fence was answered no request of the fenced sessions is under way, and none will be admitted.
//   - A (peer, lane) pair has one connection: a new one is greeted when all requests of the older one have ended.
//   - An ordered write holds its blocks until every server of its forward list has answered, or the connection to it is
//     closed; so what a forward list's server applies to a block is in the order of the first replica.
//   - Memory for payload is fixed at start, a part of Options.Memory. That for clients and for peers is apart, since a client's
//     request may wait for a peer, and a peer's request never waits for another server.
//   - Which data request goes on next is decided by class and fairly among clients (cs/admit), before any memory is taken for it;
//     a connection whose request has to wait is not read.
//   - Clients on the same host may read chunk files by themselves, under what package internal/local says: they see nothing that
//     the server would not answer.
//
// In a cluster with security whoever connects has a certificate, and a client a capability of its session, which say what is done for it (package internal/secure);
// in one without, whoever reaches the address and knows the cluster's UUID may read and write.
//
// The directory holds cs.json (identity), what cs/store keeps, and local.used while clients may read by themselves.
package cs
