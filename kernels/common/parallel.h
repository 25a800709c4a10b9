// OpenMP loop that carries exceptions out of the parallel region and can be cancelled.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>

#include "kernels/common/error.h"

namespace s2o {

// Set by the signal handler of the application; loops poll it between iterations.
inline std::atomic<bool> g_cancel_requested{false};

inline void throw_if_cancelled() {
  if (g_cancel_requested.load(std::memory_order_relaxed)) throw InterruptedError();
}

// Calls body(i) for i in [0, n), in any order, on all threads (dynamic schedule, chunk 1). The
// first exception thrown by a body is rethrown here; the remaining iterations are skipped.
template <class Body>
void parallel_for(std::int64_t n, Body&& body) {
  std::exception_ptr failure;
  std::atomic<bool> failed{false};
#pragma omp parallel for schedule(dynamic, 1)
  for (std::int64_t i = 0; i < n; ++i) {
    if (failed.load(std::memory_order_relaxed)) continue;
    try {
      throw_if_cancelled();
      body(i);
    } catch (...) {
#pragma omp critical(s2o_parallel_for_failure)
      {
        if (!failure) failure = std::current_exception();
      }
      failed.store(true, std::memory_order_relaxed);
    }
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace s2o
