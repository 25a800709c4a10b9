// Times of other people's attention kernels, measured beside ours: what scripts/bench_peers.py
// --format json writes.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace s2o {

struct PeerTime {
  std::string peer;  // "torch_cudnn"
  std::int64_t seqlen = 0;
  int num_q_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  double ms = 0.0;  // dense causal attention, median
};

// Rows with an error are left out. ConfigError for a file that is no such file, or has no time.
std::vector<PeerTime> read_peer_times(const std::filesystem::path& file);

}  // namespace s2o
