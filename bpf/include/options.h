/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef PENSTOCK_OPTIONS_H
#define PENSTOCK_OPTIONS_H

#include "types.h"

/* Constants of a loaded program: Go sets them before load and the verifier removes the branches that cannot be taken. */

const volatile __u32 port_id = 0;
const volatile enum default_action default_action = DEFAULT_BRIDGE;
const volatile enum midstream midstream = MIDSTREAM_BYPASS;
const volatile enum on_exit on_exit = ON_EXIT_OPEN;
const volatile __u64 silence_ns = 0; /* 0: a worker is never too silent */
const volatile __u32 cookie_helpers = 0; /* 1: the kernel makes and checks SYN cookies */
const volatile enum malformed malformed = MALFORMED_BYPASS;

/* DEFAULT_ROUTE: the ports' interfaces, and the source address, secret and random, of frames that user space gives to the kernel. */
const volatile __u32 port_count = 0;
const volatile __u32 port_ifindex[MAX_PORTS] = {};
const volatile __u8 injected_mac[8] = {};

#endif
