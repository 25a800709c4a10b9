// A call in a process of its own, for libraries that crash on broken files.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <string>

namespace s2o {

// What `work` returns, computed in a child process. InputError and UnsupportedError thrown there
// are thrown here. A child that dies, or takes more than `max_cpu_seconds` of processor time or
// `max_bytes` of memory, is an InputError "<where>: ...". It cannot take more memory than is
// available.
//
// `work` changes nothing in this process but memory that is mapped as shared; it must not use
// OpenMP, whose threads are not there. What it writes on stderr is dropped.
std::string run_isolated(const std::string& where, std::uint64_t max_cpu_seconds,
                         const std::function<std::string()>& work,
                         std::uint64_t max_bytes = std::numeric_limits<std::uint64_t>::max());

// Zeroed memory that a child shares with this process, so that `work` can leave a result there.
// UnsupportedError when there is none.
std::shared_ptr<std::byte> allocate_shared(const std::string& where, std::size_t num_bytes);

}  // namespace s2o
