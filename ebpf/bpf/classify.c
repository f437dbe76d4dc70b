/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Counts the frames of an interface by class and direction, and gives what is sent the priority of its class.
 *
 * The class of a frame is that of its TCP destination port, else of its source port, else 0. A later fragment has no
 * ports and is of class 0, as is TCP behind IPv6 extension headers. The programs never drop and never decide:
 * what else is attached to the interface runs as before.
 *
 * The limits and the layout of struct count are repeated in ../classify.go.
 */
#include "headers/kernel.h"

#define MAX_CLASSES 16
#define MAX_PORTS 1024
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

/* 2 * class + direction -> count */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, u32);
	__type(value, struct count);
	__uint(max_entries, 2 * MAX_CLASSES);
} counts SEC(".maps");

/* What of the frame is in every segment of a large one, and its ports in host byte order. */
struct tcp {
	u32 headers;
	u16 src, dst;
};

/* find fills t and returns 1 if the frame begins with the headers of TCP. */
static __always_inline int find(struct __sk_buff *skb, struct tcp *t)
{
	u8 ip[20], tcp[14];
	u32 at;

	if (bpf_skb_load_bytes_relative(skb, 0, ip, sizeof(ip), BPF_HDR_START_NET) < 0)
		return 0;
	switch (ntohs((u16)skb->protocol)) {
	case ETH_P_IP:
		if (ip[9] != IPPROTO_TCP || (ip[6] & 0x1f) || ip[7]) /* a later fragment */
			return 0;
		at = (ip[0] & 0x0f) * 4;
		break;
	case ETH_P_IPV6:
		if (ip[6] != IPPROTO_TCP)
			return 0;
		at = 40;
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

static __always_inline u32 class_of(struct tcp *t)
{
	u32 *class = bpf_map_lookup_elem(&ports, &t->dst);

	if (!class)
		class = bpf_map_lookup_elem(&ports, &t->src);
	return class && *class < MAX_CLASSES ? *class : 0;
}

static __always_inline int classify(struct __sk_buff *skb, u32 direction)
{
	struct tcp t = {};
	u32 class = 0;
	u64 segments = skb->gso_segs;
	u32 slot;
	struct count *c;

	if (find(skb, &t))
		class = class_of(&t);
	if (!segments)
		segments = 1;

	slot = 2 * class + direction;
	c = bpf_map_lookup_elem(&counts, &slot);
	if (c) { /* of this CPU, and the programs of one hook do not interrupt each other on it */
		c->packets += segments;
		c->bytes += skb->len + (segments - 1) * t.headers;
	}
	if (direction == EGRESS) {
		u32 *priority = bpf_map_lookup_elem(&priorities, &class);

		if (priority && *priority)
			skb->priority = *priority;
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
