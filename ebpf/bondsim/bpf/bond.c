/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stands in for the bonding driver, in the modes that choose the slave by a hash: what leaves an interface is sent through one of several others, and
 * what these receive arrives there. Written after the definition of the hash in the kernel's drivers/net/bonding/bond_main.c (bond_eth_hash,
 * bond_vlan_srcmac_hash, bond_flow_dissect, bond_ip_hash and __bond_xmit_hash, as of Linux 6.12), and independent of ../../hash.go.
 */
#include "../../bpf/headers/kernel.h"

#define MAX_SLAVES 16
#define ETH_HLEN 14
#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86dd
#define IPPROTO_ICMP 1
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IP_OFFSET 0x1fff
#define IP_MF 0x2000
#define ICMP_ECHOREPLY 0
#define ICMP_ECHO 8
#define TC_ACT_OK 0
#define TC_ACT_SHOT 2
#define BPF_F_INGRESS 1
#define BPF_HDR_START_MAC 0

static long (*bpf_redirect)(u32 ifindex, u64 flags) = (void *)23;

/* BOND_XMIT_POLICY_* of linux/if_bonding.h */
enum { LAYER2, LAYER34, LAYER23, ENCAP23, ENCAP34, VLAN_SRCMAC };

struct bond {
	u32 ifindex; /* of the interface that is the bond */
	u32 policy;
	u32 count; /* usable slaves */
	u32 slaves[MAX_SLAVES]; /* their ifindexes, in the order in which they were enslaved */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, u32);
	__type(value, struct bond);
	__uint(max_entries, 1);
} bonds SEC(".maps");

struct link {
	u64 sent_packets, sent_bytes;
	u64 received_packets, received_bytes;
	u32 cut; /* nothing arrives */
	u32 unused;
};

/* by ifindex of the slave */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, u32);
	__type(value, struct link);
	__uint(max_entries, MAX_SLAVES);
} links SEC(".maps");

/* what bond_hash found last */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, u32);
	__type(value, u32);
	__uint(max_entries, 1);
} hashes SEC(".maps");

struct ethhdr {
	u8 h_dest[6];
	u8 h_source[6];
	u16 h_proto;
} __attribute__((packed));

/* struct flow_keys, of which the driver uses this */
struct flow {
	u32 src, dst; /* of IPv6 folded, as flow_get_u32_src does */
	u32 ports;
	u32 icmp;
};

static __always_inline int load(struct __sk_buff *skb, u32 at, void *to, u32 n)
{
	return bpf_skb_load_bytes_relative(skb, at, to, n, BPF_HDR_START_MAC) == 0;
}

static __always_inline u32 eth_hash(struct ethhdr *ep)
{
	return ep->h_dest[5] ^ ep->h_source[5] ^ ntohs(ep->h_proto);
}

static __always_inline u32 vlan_srcmac_hash(struct __sk_buff *skb, struct ethhdr *ep)
{
	u32 vendor = 0, dev = 0;

	for (int i = 0; i < 3; i++)
		vendor = vendor << 8 | ep->h_source[i];
	for (int i = 3; i < 6; i++)
		dev = dev << 8 | ep->h_source[i];
	if (!skb->vlan_present)
		return vendor ^ dev;
	return (skb->vlan_tci & 0x0fff) ^ vendor ^ dev;
}

static __always_inline int dissect(struct __sk_buff *skb, struct ethhdr *ep, int l34, struct flow *f)
{
	u32 at = ETH_HLEN;
	u8 protocol;

	switch (ntohs(ep->h_proto)) {
	case ETH_P_IP: {
		u8 first;
		u16 frag;
		u32 addrs[2];

		if (!load(skb, at, &first, 1) || !load(skb, at + 6, &frag, 2) || !load(skb, at + 9, &protocol, 1) ||
		    !load(skb, at + 12, addrs, 8))
			return 0;
		f->src = addrs[0];
		f->dst = addrs[1];
		if (ntohs(frag) & (IP_MF | IP_OFFSET)) /* ip_is_fragment: ports are not looked for */
			return 1;
		at += (first & 0x0f) * 4;
		break;
	}
	case ETH_P_IPV6: {
		u32 addrs[8];

		if (!load(skb, at + 6, &protocol, 1) || !load(skb, at + 8, addrs, 32))
			return 0;
		f->src = addrs[0] ^ addrs[1] ^ addrs[2] ^ addrs[3];
		f->dst = addrs[4] ^ addrs[5] ^ addrs[6] ^ addrs[7];
		at += 40;
		break;
	}
	default:
		return 0;
	}
	if (!l34)
		return 1;
	if (protocol == IPPROTO_TCP || protocol == IPPROTO_UDP) {
		load(skb, at, &f->ports, 4);
	} else if (protocol == IPPROTO_ICMP) {
		u8 icmp[8];

		if (load(skb, at, icmp, 8) && (icmp[0] == ICMP_ECHO || icmp[0] == ICMP_ECHOREPLY)) {
			u8 key[4] = { icmp[0], icmp[1], icmp[4], icmp[5] };

			memcpy(&f->icmp, key, 4);
		}
	}
	return 1;
}

static __always_inline u32 ip_hash(u32 hash, struct flow *f, u32 policy)
{
	hash ^= f->dst ^ f->src;
	hash ^= hash >> 16;
	hash ^= hash >> 8;
	if (policy == LAYER34 || policy == ENCAP34)
		return hash >> 1;
	return hash;
}

static __always_inline u32 xmit_hash(struct __sk_buff *skb, u32 policy)
{
	struct ethhdr eth;
	struct flow f = {};
	u32 hash;

	if (policy == ENCAP34 && skb->hash)
		return skb->hash;
	if (!load(skb, 0, &eth, sizeof(eth)))
		return 0;
	if (policy == VLAN_SRCMAC)
		return vlan_srcmac_hash(skb, &eth);
	if (policy == LAYER2 || !dissect(skb, &eth, policy == LAYER34 || policy == ENCAP34, &f))
		return eth_hash(&eth);
	if (policy == LAYER23 || policy == ENCAP23)
		hash = eth_hash(&eth);
	else
		hash = f.icmp ? f.icmp : f.ports;
	return ip_hash(hash, &f, policy);
}

SEC("tcx/egress")
int bond_hash(struct __sk_buff *skb)
{
	u32 zero = 0;
	struct bond *b = bpf_map_lookup_elem(&bonds, &zero);
	u32 *at = bpf_map_lookup_elem(&hashes, &zero);

	if (b && at)
		*at = xmit_hash(skb, b->policy);
	return TC_ACT_OK;
}

SEC("tcx/egress")
int bond_xmit(struct __sk_buff *skb)
{
	u32 zero = 0, i, ifindex, segments = skb->gso_segs;
	struct bond *b = bpf_map_lookup_elem(&bonds, &zero);
	struct link *l;

	if (!b || !b->count)
		return TC_ACT_SHOT;
	i = xmit_hash(skb, b->policy) % b->count;
	if (i >= MAX_SLAVES)
		return TC_ACT_SHOT;
	ifindex = b->slaves[i];
	l = bpf_map_lookup_elem(&links, &ifindex);
	if (l) {
		__sync_fetch_and_add(&l->sent_packets, segments ? segments : 1);
		__sync_fetch_and_add(&l->sent_bytes, skb->len);
	}
	return bpf_redirect(ifindex, 0);
}

SEC("tcx/ingress")
int bond_receive(struct __sk_buff *skb)
{
	u32 zero = 0, ifindex = skb->ifindex, segments = skb->gso_segs;
	struct bond *b = bpf_map_lookup_elem(&bonds, &zero);
	struct link *l = bpf_map_lookup_elem(&links, &ifindex);

	if (!b || !l || l->cut)
		return TC_ACT_SHOT;
	__sync_fetch_and_add(&l->received_packets, segments ? segments : 1);
	__sync_fetch_and_add(&l->received_bytes, skb->len);
	return bpf_redirect(b->ifindex, BPF_F_INGRESS);
}

char program_license[] SEC("license") = "Apache-2.0"; /* no helper used here asks for the GPL */
