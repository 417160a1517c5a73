package bpf

// The generated files are committed, so that a build needs no clang. After a change to the C sources: go generate ./bpf
// (Debian: clang-14 llvm-14 libbpf-dev linux-libc-dev). The second line records what the object was made from;
// TestObjectIsCurrent compares.

//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -type flow_key -type flow -type fragment_key -type fragment -type rule -type rule_list -type counter -type reason -type verdict -type route_state -type hop_key -type hop -type port_mac -type route_answer -type rewrite -type offload_job -type offload_result -type end_job -type end_work -type event -type event_state -type gate_key4 -type gate_key6 -type gate_entry -type gate_lengths -type gate_settings -type cookie_chain steer steer.bpf.c -- -O2 -g -Wall -Wextra -Werror -mcpu=v3 -I/usr/include/x86_64-linux-gnu
//go:generate sh -c "LC_ALL=C sha256sum gen.go include/*.h steer.bpf.c > steer_inputs.sha256"
