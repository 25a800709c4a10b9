// How much memory this process may still take.
#pragma once

#include <cstdint>
#include <string>

namespace s2o {

// Bytes that can be allocated without swapping: the kernel's estimate, bounded by the limit of the
// control group. The largest uint64 where the system does not tell.
std::uint64_t available_memory_bytes();

// UnsupportedError "<what>: needs N bytes of memory (1.5 GiB), M bytes (..) are free" when
// `num_bytes` exceed it. Call before allocating by a size that a file or a config claims.
void require_memory(std::uint64_t num_bytes, const std::string& what);

}  // namespace s2o
