/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The little of the kernel's BPF interface that the programs need, so that compiling takes a clang and nothing else.
 * Layouts and numbers are those of include/uapi/linux/bpf.h, which never change; the names of the fields are kept.
 */
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

/* struct __sk_buff up to the last field used here. */
struct __sk_buff {
	u32 len;
	u32 pkt_type;
	u32 mark;
	u32 queue_mapping;
	u32 protocol; /* network byte order */
	u32 vlan_present;
	u32 vlan_tci;
	u32 vlan_proto;
	u32 priority;
	u32 ingress_ifindex;
	u32 ifindex;
	u32 tc_index;
	u32 cb[5];
	u32 hash;
	u32 tc_classid;
	u32 data;
	u32 data_end;
	u32 napi_id;
	u32 family;
	u32 remote_ip4;
	u32 local_ip4;
	u32 remote_ip6[4];
	u32 local_ip6[4];
	u32 remote_port;
	u32 local_port;
	u32 data_meta;
	u64 flow_keys; /* a pointer, 8 bytes */
	u64 tstamp;
	u32 wire_len;
	u32 gso_segs;
};

struct xdp_md {
	u32 data;
	u32 data_end;
};

/* struct bpf_sock_ops up to the last field used here. */
struct bpf_sock_ops {
	u32 op;
	u32 args[4];
	u32 family;
	u32 remote_ip4; /* network byte order, as are all of remote_ and local_ip6 */
	u32 local_ip4;
	u32 remote_ip6[4];
	u32 local_ip6[4];
	u32 remote_port; /* network byte order, in the upper half of a little-endian word */
	u32 local_port;  /* host byte order */
	u32 is_fullsock;
	u32 snd_cwnd;
	u32 srtt_us; /* eighths of a microsecond */
	u32 bpf_sock_ops_cb_flags;
	u32 state;
	u32 rtt_min; /* microseconds */
};

enum {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_LRU_PERCPU_HASH = 10,
	BPF_MAP_TYPE_LPM_TRIE = 11,
};

enum {
	BPF_NOEXIST = 1,
	BPF_F_NO_PREALLOC = 1,
};

enum {
	XDP_DROP = 1,
	XDP_PASS = 2,
};

enum {
	BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB = 4,
	BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB = 5,
	BPF_SOCK_OPS_RETRANS_CB = 9,
	BPF_SOCK_OPS_RTT_CB = 12,
	BPF_SOCK_OPS_RETRANS_CB_FLAG = 1 << 1,
	BPF_SOCK_OPS_RTT_CB_FLAG = 1 << 3,
};

enum {
	BPF_HDR_START_NET = 1, /* offsets count from the network header */
	TCX_NEXT = -1,         /* also TC_ACT_UNSPEC: let the next program decide */
};

static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*bpf_map_update_elem)(void *map, const void *key, const void *value, u64 flags) = (void *)2;
static long (*bpf_skb_store_bytes)(void *skb, u32 offset, const void *from, u32 len, u64 flags) = (void *)9;
static long (*bpf_l3_csum_replace)(void *skb, u32 offset, u64 from, u64 to, u64 size) = (void *)10;
static long (*bpf_sock_ops_cb_flags_set)(void *ops, int flags) = (void *)59;
static long (*bpf_skb_load_bytes_relative)(const void *skb, u32 offset, void *to, u32 len, u32 start) = (void *)68;

#define SEC(name) __attribute__((section(name), used))
#define __uint(name, val) int(*name)[val]
#define __type(name, val) typeof(val) *name
#define __always_inline inline __attribute__((always_inline))

#define memcpy(to, from, n) __builtin_memcpy(to, from, n)

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define ntohs(x) __builtin_bswap16(x)
#else
#define ntohs(x) (x)
#endif
#define htons(x) ntohs(x)
