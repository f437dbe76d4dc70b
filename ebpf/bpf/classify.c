/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Counts the frames of an interface by class and direction, and by peer, and gives what is sent the priority, and the DSCP, of its class.
 *
 * A frame from or to one of the ports is of the class of its DSCP, if that has one, else of that of its destination port, else of its source port;
 * all others are of class 0. A later fragment has no ports and is of class 0, as is TCP behind IPv6 extension headers. The programs never drop
 * and never decide: what else is attached to the interface runs as before.
 *
 * The limits and the layouts of the structs are repeated in ../classify.go.
 */
#include "headers/kernel.h"

#define MAX_CLASSES 16
#define MAX_PORTS 1024
#define MAX_PEERS 4096 /* times classes times directions; the least used are forgotten */
#define INGRESS 0
#define EGRESS 1
#define ETH_HLEN 14
#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86dd
#define IPPROTO_TCP 6

struct count {
	u64 packets;
	u64 bytes;
};

/* TCP port -> class */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, u16);
	__type(value, u32);
	__uint(max_entries, MAX_PORTS);
} ports SEC(".maps");

/* class -> skb->priority; 0 leaves it as it is */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, u32);
	__type(value, u32);
	__uint(max_entries, MAX_CLASSES);
} priorities SEC(".maps");

/* DSCP -> class + 1; 0: none */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, u32);
	__type(value, u32);
	__uint(max_entries, 64);
} marks SEC(".maps");

/* class -> DSCP + 1 that what is sent gets; 0 leaves it as it is */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, u32);
	__type(value, u32);
	__uint(max_entries, MAX_CLASSES);
} dscps SEC(".maps");

/* The other end's address, of IPv4 as ::ffff:a.b.c.d. */
struct peer {
	u8 addr[16];
	u32 class;
	u32 direction;
};

/* of frames from and to the ports */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_PERCPU_HASH);
	__type(key, struct peer);
	__type(value, struct count);
	__uint(max_entries, MAX_PEERS);
} peers SEC(".maps");

/* 2 * class + direction -> count */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, u32);
	__type(value, struct count);
	__uint(max_entries, 2 * MAX_CLASSES);
} counts SEC(".maps");

/* What of the frame is in every segment of a large one, its ports in host byte order, its DSCP and its addresses. */
struct tcp {
	u32 headers;
	u32 version;
	u16 src, dst;
	u8 tos;
	u8 from[16], to[16];
};

/* find fills t and returns 1 if the frame begins with the headers of TCP. */
static __always_inline int find(struct __sk_buff *skb, struct tcp *t)
{
	u8 ip[40], tcp[14];
	u32 at;

	switch (ntohs((u16)skb->protocol)) {
	case ETH_P_IP:
		if (bpf_skb_load_bytes_relative(skb, 0, ip, 20, BPF_HDR_START_NET) < 0)
			return 0;
		if (ip[9] != IPPROTO_TCP || (ip[6] & 0x1f) || ip[7]) /* a later fragment */
			return 0;
		at = (ip[0] & 0x0f) * 4;
		t->version = 4;
		t->tos = ip[1];
		t->from[10] = t->from[11] = t->to[10] = t->to[11] = 0xff;
		memcpy(t->from + 12, ip + 12, 4);
		memcpy(t->to + 12, ip + 16, 4);
		break;
	case ETH_P_IPV6:
		if (bpf_skb_load_bytes_relative(skb, 0, ip, 40, BPF_HDR_START_NET) < 0)
			return 0;
		if (ip[6] != IPPROTO_TCP)
			return 0;
		at = 40;
		t->version = 6;
		t->tos = ip[0] << 4 | ip[1] >> 4;
		memcpy(t->from, ip + 8, 16);
		memcpy(t->to, ip + 24, 16);
		break;
	default:
		return 0;
	}
	if (bpf_skb_load_bytes_relative(skb, at, tcp, sizeof(tcp), BPF_HDR_START_NET) < 0)
		return 0;
	t->src = (u16)tcp[0] << 8 | tcp[1];
	t->dst = (u16)tcp[2] << 8 | tcp[3];
	t->headers = ETH_HLEN + at + (tcp[12] >> 4) * 4;
	return 1;
}

/* class_of returns 1 and the class of a frame that is from or to one of the ports. */
static __always_inline int class_of(struct tcp *t, u32 *class)
{
	u32 dscp = t->tos >> 2;
	u32 *of_port = bpf_map_lookup_elem(&ports, &t->dst);
	u32 *of_mark;

	if (!of_port)
		of_port = bpf_map_lookup_elem(&ports, &t->src);
	if (!of_port)
		return 0;
	*class = *of_port < MAX_CLASSES ? *of_port : 0;
	of_mark = bpf_map_lookup_elem(&marks, &dscp);
	if (of_mark && *of_mark && *of_mark <= MAX_CLASSES)
		*class = *of_mark - 1;
	return 1;
}

static __always_inline void add(struct count *c, u64 packets, u64 bytes)
{
	/* of this CPU, and the programs of one hook do not interrupt each other on it */
	c->packets += packets;
	c->bytes += bytes;
}

/* mark writes a DSCP into the frame, and leaves the two bits of congestion notification. What cannot be written stays as it is. */
static __always_inline void mark(struct __sk_buff *skb, struct tcp *t, u32 dscp)
{
	u8 tos = dscp << 2 | (t->tos & 3);
	u8 two[2];

	if (tos == t->tos)
		return;
	if (t->version == 4) {
		if (bpf_skb_store_bytes(skb, ETH_HLEN + 1, &tos, 1, 0) == 0)
			bpf_l3_csum_replace(skb, ETH_HLEN + 10, htons(t->tos), htons(tos), 2);
		return;
	}
	if (bpf_skb_load_bytes_relative(skb, 0, two, 2, BPF_HDR_START_NET) < 0)
		return;
	two[0] = (two[0] & 0xf0) | tos >> 4;
	two[1] = (two[1] & 0x0f) | tos << 4;
	bpf_skb_store_bytes(skb, ETH_HLEN, two, 2, 0);
}

static __always_inline int classify(struct __sk_buff *skb, u32 direction)
{
	struct tcp t = {};
	u32 class = 0;
	u64 segments = skb->gso_segs, bytes;
	u32 slot;
	int known = find(skb, &t) && class_of(&t, &class);
	struct count *c;

	if (!segments)
		segments = 1;
	bytes = skb->len + (segments - 1) * t.headers;

	slot = 2 * class + direction;
	c = bpf_map_lookup_elem(&counts, &slot);
	if (c)
		add(c, segments, bytes);
	if (known) {
		struct peer p = { .class = class, .direction = direction };

		memcpy(p.addr, direction == EGRESS ? t.to : t.from, 16);
		c = bpf_map_lookup_elem(&peers, &p);
		if (c) {
			add(c, segments, bytes);
		} else {
			struct count first = { segments, bytes };

			bpf_map_update_elem(&peers, &p, &first, BPF_NOEXIST);
		}
	}
	if (direction == EGRESS) {
		u32 *priority = bpf_map_lookup_elem(&priorities, &class);
		u32 *dscp = bpf_map_lookup_elem(&dscps, &class);

		if (priority && *priority)
			skb->priority = *priority;
		if (known && dscp && *dscp && *dscp <= 64)
			mark(skb, &t, *dscp - 1);
	}
	return TCX_NEXT;
}

SEC("tcx/ingress")
int classify_ingress(struct __sk_buff *skb)
{
	return classify(skb, INGRESS);
}

SEC("tcx/egress")
int classify_egress(struct __sk_buff *skb)
{
	return classify(skb, EGRESS);
}

char program_license[] SEC("license") = "Apache-2.0"; /* no helper used here asks for the GPL */
