// Ranking of a tile's history by what all of its queries say in low precision: looking at every row
// cheaply finds keys that looking at few rows, or at their mean, exactly does not.
//
// Per KV head (profile): mean mu and deviation of its keys in each dimension; the kRankedDims
// dimensions of largest deviation times root mean square of the group's queries. Queries and
// centred keys are rounded to e4m3 there, keys in units of a power of two near a quarter of the
// deviation.
// Per query (estimate): log2 of its softmax normaliser, exact over the tile itself, the window
// before it and the sink, from one sampled key of every sample_stride over the rest.
// Per query i and key x:  s_ix = log2 of the share of i's mass that x takes
//                              = log2(e) scale q_i . (k_x - mu) - (normaliser_i - log2(e) scale q_i
//                              . mu)
// in fp16 from the rounded operands, the normaliser rounded to two e4m3 parts.
// Per key:                weight(x) = sum over g < 8 of the largest 2^s_ix, i = g mod 8
// between the largest share of a row and the sum of all, at the cost of maxima.
//
// Keys are visited by class of weight, kClassesPerOctave classes an octave, best class first, in
// ascending order within; the sink first. Keys below `floor` are not visited.
// Where the keys of both neighbouring probes, every probe_stride-th tile, have little weight in
// all, each as the least of its class, a tile is local: it visits the sink alone.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/planning/s2o/row_ops.h"
#include "lib/input/attention_input.h"

namespace s2o {

struct RowRankingSettings {
  std::int64_t local_window;  // tokens before a tile that are visited in place
  std::int64_t sink;          // leading tokens that are always visited, at most kRankedRows
  float floor;                // smallest weight that is visited; on a device 0 visits all keys
  int probe_stride;
  float local_limit;  // of a probe's weight; 0 looks for no local tiles
};

class RowRanking {
 public:
  RowRanking(const AttentionInput& input, const RowRankingSettings& settings);

  // Keys [0, history) that tile `tile` of a query head visits, in visiting order, at most `room`.
  std::vector<std::int32_t> order(int q_head, std::int64_t tile, std::int64_t room) const;

  // What the definition above names, for tests.
  bool is_local(int q_head, std::int64_t tile) const;
  std::vector<float> weights(int q_head, std::int64_t tile) const;
  int class_of(float weight, std::int64_t key) const;
  std::int64_t history_length(std::int64_t tile) const;

 private:
  struct Profile {
    std::vector<float> key_mean;  // [head_dim]
    std::vector<int> dims;
    std::vector<float> key_scale, query_scale;  // [dims]
    std::vector<float> packed;                  // [seqlen, dims], rounded keys
  };
  Profile make_profile(int kv_head) const;
  void estimate(int q_head, std::int64_t tile);
  float least_of_class(int c) const;
  float probe_weight(int q_head, std::int64_t tile) const;

  const AttentionInput& input_;
  const RowRankingSettings settings_;
  std::int64_t num_tiles_;
  std::vector<Profile> profiles_;       // [num_kv_heads]
  std::vector<float> log2_normalizer_;  // [num_q_heads, seqlen]
  std::vector<float> probe_weights_;    // [num_q_heads, probes]
};

}  // namespace s2o
