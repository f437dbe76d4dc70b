/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Notes round-trip times and retransmissions of the TCP connections from and to the ports, by peer.
 *
 * The limits and the layouts are repeated in ../watch.go.
 */
#include "headers/kernel.h"

#define MAX_PORTS 1024
#define MAX_PEERS 4096
#define AF_INET 2
#define AF_INET6 10

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, u16);
	__type(value, u32);
	__uint(max_entries, MAX_PORTS);
} watched SEC(".maps");

struct host {
	u8 addr[16];
};

struct health {
	u64 connections; /* made since the watch began */
	u64 samples;     /* of round-trip times */
	u64 sum_us;      /* of the smoothed times at these samples */
	u64 retransmits;
	u32 last_us;
	u32 min_us;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct host);
	__type(value, struct health);
	__uint(max_entries, MAX_PEERS);
} hosts SEC(".maps");

/* peer finds what is known of the other end, and makes it if need be. */
static __always_inline struct health *peer(struct bpf_sock_ops *ops)
{
	struct host h = {};
	struct health none = {}, *known;
	u32 word;

	if (ops->family == AF_INET) {
		word = ops->remote_ip4;
		h.addr[10] = h.addr[11] = 0xff;
		memcpy(h.addr + 12, &word, 4);
	} else if (ops->family == AF_INET6) {
		word = ops->remote_ip6[0];
		memcpy(h.addr, &word, 4);
		word = ops->remote_ip6[1];
		memcpy(h.addr + 4, &word, 4);
		word = ops->remote_ip6[2];
		memcpy(h.addr + 8, &word, 4);
		word = ops->remote_ip6[3];
		memcpy(h.addr + 12, &word, 4);
	} else {
		return 0;
	}
	known = bpf_map_lookup_elem(&hosts, &h);
	if (known)
		return known;
	bpf_map_update_elem(&hosts, &h, &none, BPF_NOEXIST);
	return bpf_map_lookup_elem(&hosts, &h);
}

SEC("sockops")
int watch_sockets(struct bpf_sock_ops *ops)
{
	struct health *h;
	u16 local, remote;
	u32 us;

	switch (ops->op) {
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		local = ops->local_port;
		/* htons(remote_port), of a word that a little-endian machine has in its upper half */
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
		remote = ntohs((u16)(ops->remote_port >> 16));
#else
		remote = (u16)ops->remote_port;
#endif
		if (!bpf_map_lookup_elem(&watched, &local) && !bpf_map_lookup_elem(&watched, &remote))
			return 1;
		h = peer(ops);
		if (h)
			__sync_fetch_and_add(&h->connections, 1);
		bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_RETRANS_CB_FLAG | BPF_SOCK_OPS_RTT_CB_FLAG);
		break;
	case BPF_SOCK_OPS_RETRANS_CB:
		h = peer(ops);
		if (h)
			__sync_fetch_and_add(&h->retransmits, 1);
		break;
	case BPF_SOCK_OPS_RTT_CB:
		h = peer(ops);
		us = ops->srtt_us >> 3;
		if (!h || !us)
			break;
		__sync_fetch_and_add(&h->samples, 1);
		__sync_fetch_and_add(&h->sum_us, us);
		h->last_us = us;
		if (!h->min_us || us < h->min_us)
			h->min_us = us;
		break;
	}
	return 1;
}

char program_license[] SEC("license") = "Apache-2.0";
