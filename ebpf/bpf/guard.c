/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Drops TCP segments to the ports whose sender is on no list, before the kernel has spent anything on them, and counts them by sender.
 *
 * A list is a set of networks; IPv4 addresses are looked up as ::ffff:a.b.c.d. What is not TCP, or goes to other ports, passes, as does a later
 * fragment: the first one, which has the ports, was dropped, so that nothing comes of the others. So does TCP behind IPv6 extension headers and behind
 * more than one VLAN tag: the servers authenticate whoever connects; this spares them the trouble.
 *
 * The limits and the layouts are repeated in ../guard.go.
 */
#include "headers/kernel.h"

#define MAX_PORTS 1024
#define MAX_NETWORKS 16384
#define MAX_SENDERS 4096 /* that are counted apart; the least recent are forgotten */
#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86dd
#define ETH_P_8021Q 0x8100
#define ETH_P_8021AD 0x88a8
#define IPPROTO_TCP 6

struct count {
	u64 packets;
	u64 bytes;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, u16);
	__type(value, u32);
	__uint(max_entries, MAX_PORTS);
} guarded SEC(".maps");

struct network {
	u32 bits;
	u8 addr[16];
};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__type(key, struct network);
	__type(value, u32);
	__uint(max_entries, MAX_NETWORKS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} members SEC(".maps");

struct sender {
	u8 addr[16];
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_PERCPU_HASH);
	__type(key, struct sender);
	__type(value, struct count);
	__uint(max_entries, MAX_SENDERS);
} dropped SEC(".maps");

/* 0: all that was dropped */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, u32);
	__type(value, struct count);
	__uint(max_entries, 1);
} total SEC(".maps");

SEC("xdp")
int guard_members(struct xdp_md *ctx)
{
	u8 *p = (u8 *)(long)ctx->data, *end = (u8 *)(long)ctx->data_end;
	u64 size = end - p;
	struct network n = { .bits = 128 };
	struct sender who = {};
	u32 zero = 0;
	u16 type, port;
	struct count *c;

	if (p + 14 > end)
		return XDP_PASS;
	type = (u16)p[12] << 8 | p[13];
	p += 14;
	if (type == ETH_P_8021Q || type == ETH_P_8021AD) {
		if (p + 4 > end)
			return XDP_PASS;
		type = (u16)p[2] << 8 | p[3];
		p += 4;
	}
	if (type == ETH_P_IP) {
		if (p + 20 > end || p[9] != IPPROTO_TCP || (p[6] & 0x1f) || p[7])
			return XDP_PASS;
		n.addr[10] = n.addr[11] = 0xff;
		memcpy(n.addr + 12, p + 12, 4);
		p += (p[0] & 0x0f) * 4;
	} else if (type == ETH_P_IPV6) {
		if (p + 40 > end || p[6] != IPPROTO_TCP)
			return XDP_PASS;
		memcpy(n.addr, p + 8, 16);
		p += 40;
	} else {
		return XDP_PASS;
	}
	if (p + 4 > end)
		return XDP_PASS;
	port = (u16)p[2] << 8 | p[3];
	if (!bpf_map_lookup_elem(&guarded, &port) || bpf_map_lookup_elem(&members, &n))
		return XDP_PASS;

	c = bpf_map_lookup_elem(&total, &zero);
	if (c) {
		c->packets++;
		c->bytes += size;
	}
	memcpy(who.addr, n.addr, 16);
	c = bpf_map_lookup_elem(&dropped, &who);
	if (c) {
		c->packets++;
		c->bytes += size;
	} else {
		struct count first = { 1, size };

		bpf_map_update_elem(&dropped, &who, &first, BPF_NOEXIST);
	}
	return XDP_DROP;
}

char program_license[] SEC("license") = "Apache-2.0";
