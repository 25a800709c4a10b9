// Sums over GPUs of one process, by NCCL. Host-safe header; exists in CUDA builds (S2O_HAS_CUDA).
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "kernels/common/cuda_stream.h"

namespace s2o {

// Whether sums over GPUs can be taken here.
struct NcclStatus {
  bool usable = false;
  std::string detail;  // "NCCL 2.28.9", or why not
};
// `folder`: of the library, or of NVIDIA's pip packages; empty: where the system looks.
NcclStatus query_nccl(const std::string& folder = "");
// "with NCCL" or "without NCCL": whether its header was there at configure time.
std::string nccl_build_text();

class AllReduce {
 public:
  // One member for each device. UnsupportedError when this build or machine has no NCCL, or it
  // fails.
  AllReduce(const std::vector<int>& devices, const std::string& folder);
  ~AllReduce();
  AllReduce(const AllReduce&) = delete;
  AllReduce& operator=(const AllReduce&) = delete;

  std::string version() const;  // "2.28.9"

  // Enqueues data[i] = sum over members of their data[i], bf16; every member calls it, each in a
  // thread whose device is its own. CudaError after abort().
  void sum_bf16(int member, std::uint16_t* data, std::size_t count, CudaStream stream);
  // Sums in flight end with any result, for members that wait for one that will not come; this
  // object is of no use afterwards. Any thread may call it, once or more.
  void abort();
  bool aborted() const { return aborted_.load(); }

 private:
  struct State;
  std::unique_ptr<State> state_;
  std::atomic<bool> aborted_{false};
};

}  // namespace s2o
