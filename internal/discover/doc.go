// Package discover finds the metadata servers of a cluster: by the list in its directory (bs.list), by DNS, by multicast DNS, in this order
// of preference.
//
// Find asks all three and says of each what came of it, also in its error. What it finds are addresses and nothing more: whoever answers there
// has to prove in the handshake that he is of the cluster, which is what Options.Check is for. A Source does the same for a server that runs
// for long, in the background, when it reaches nobody that it knows. Announce answers others' multicast questions; nothing does unless the
// setting net.mdns is on, and nothing ever needs it.
//
// What is asked of DNS, for the cluster NAME, with the search list of resolv.conf:
//
//	_varve._tcp.NAME SRV   the metadata servers, in order of priority
//	_varve._tcp.NAME TXT   uuid=UUID, if it is there, is compared
//	_varve._tcp SRV, TXT   the same for a whole domain of the search list; TXT must have cluster=NAME, a record for each cluster
//
// By multicast a server is an instance of the service _varve._tcp.local (RFC 6763), with cluster=NAME and uuid=UUID in its TXT record.
//
// A cluster whose list names addresses of loopback alone is on this host: nobody else is asked where it is.
//
// Limits, for whatever answers: 64 addresses, 3 s in all, packets of 9,000 bytes with 64 records. What is over them, malformed, of another
// cluster or from beyond the link is refused and counted.
//
// Why the multicast part is our own, on golang.org/x/net/dns/dnsmessage, and not github.com/hashicorp/mdns (1.0.7, the one library of the kind at hand):
// that asks on one interface only, leaves sockets open where one address family has no multicast, takes records of any service into a map
// without a limit, answers each incomplete record with another question, does not look where packets come from, and its responder turns in
// a loop when its socket fails.
package discover
