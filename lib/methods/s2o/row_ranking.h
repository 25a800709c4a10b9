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
//
// Heads differ in how far they read, which a few tiles tell that are probed with a quarter of their
// queries: a key's mass is a mean of 2^s_ix, and only keys of at least least_mass count, which a
// walk to tau would visit. The reach of a head is the least number of keys before the window, in
// whole groups, without which no probe loses more than reach_limit; tiles rank these and the
// leading groups. A head that loses no more without any visits the sink alone. The last kWholeTiles
// tiles rank everything.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/planning/s2o/row_ops.h"
#include "lib/input/attention_input.h"

namespace s2o {

// What of the settings heads may differ in.
struct RowLimits {
  float floor;
  float least_mass;
  float reach_limit;
};

struct RowRankingSettings {
  std::int64_t local_window;  // tokens before a tile that are visited in place
  std::int64_t sink;          // leading tokens that are always visited, at most kRankedRows
  float floor;                // smallest weight that is visited; on a device 0 visits all keys
  int num_probes;
  float least_mass;
  float reach_limit;                  // 0: whole histories
  std::vector<RowLimits> heads = {};  // [num_q_heads]; empty: as above

  RowLimits of(int q_head) const {
    return heads.empty() ? RowLimits{floor, least_mass, reach_limit}
                         : heads[static_cast<std::size_t>(q_head)];
  }
};

class RowRanking {
 public:
  RowRanking(const AttentionInput& input, const RowRankingSettings& settings);

  // Keys [0, history) that tile `tile` of a query head visits, in visiting order, at most `room`.
  std::vector<std::int32_t> order(int q_head, std::int64_t tile, std::int64_t room) const;

  // What the definition above names, for tests.
  std::int32_t reach(int q_head) const;
  std::int32_t reach(int q_head, std::int64_t tile) const;
  bool is_ranked(int q_head, std::int64_t tile, std::int64_t key) const;
  std::vector<float> weights(int q_head, std::int64_t tile) const;
  int class_of(int q_head, float weight, std::int64_t key) const;
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
  // visit(key, rounded s_ix + kScoreBias of the tile's queries) of every key of the history.
  template <class Visit>
  void for_each_key(int q_head, std::int64_t tile, const Visit& visit) const;
  std::int32_t reach_of_probe(int q_head, std::int64_t tile) const;

  const AttentionInput& input_;
  const RowRankingSettings settings_;
  std::int64_t num_tiles_;
  std::vector<Profile> profiles_;       // [num_kv_heads]
  std::vector<float> log2_normalizer_;  // [num_q_heads, seqlen]
  std::vector<std::int32_t> reaches_;   // [num_q_heads]
};

}  // namespace s2o
