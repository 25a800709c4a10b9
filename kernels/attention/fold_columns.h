// Folded columns of a tile: what stands in for the keys below fold_end that the tile did not visit.
// Host only; the definition that every kernel's compensation follows.
//
// For a set U of n unvisited keys (all of them for kCentroid, those of one block of fold_block
// consecutive slots otherwise) the column has key mean(U), value mean of the values of U and logit
//   q . mean(U) * scale + log n            [+ spread_logit(scale^2 * sum_d q_d^2 var_d(U))]
// Where Q, K and V are taken in 8 bits (quantise.h), columns and their logits are of the stored
// ones. The bracket (kBlocksVariance) is what the spread of the logits adds to the log of their
// mean exponential, with a diagonal covariance of the keys.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/common/plan_view.h"

namespace s2o {

// Sums over whole blocks of key slots of one head, in fp64.
struct BlockSums {
  std::int64_t num_blocks = 0;
  std::vector<double> k;          // [num_blocks, head_dim]
  std::vector<double> v;          // [num_blocks, head_dim]
  std::vector<double> k_squared;  // [num_blocks, head_dim], only for kBlocksVariance
};

// One head's keys in slot order: row of slot s is token key_order[s], or s when key_order is null.
struct SlotRows {
  const float* k = nullptr;  // [seqlen, head_dim]
  const float* v = nullptr;
  const std::int32_t* key_order = nullptr;
  std::int64_t seqlen = 0;
  int head_dim = 0;
  std::int64_t token(std::int64_t slot) const {
    return key_order == nullptr ? slot : key_order[slot];
  }
};

BlockSums sum_blocks(const SlotRows& rows, const FoldRule& rule);

// Residual sums of one tile: starts from all slots below fold_end, loses what is visited.
class FoldColumns {
 public:
  FoldColumns(const SlotRows& rows, const FoldRule& rule, const BlockSums& sums,
              std::int64_t fold_end);
  // Slots at or beyond fold_end are ignored.
  void remove_range(std::int64_t begin_slot, std::int64_t end_slot);
  void remove(std::int64_t slot);

  // Columns of the non-empty sets, in ascending slot order.
  struct Columns {
    std::int64_t count = 0;
    std::vector<double> k;         // [count, head_dim]
    std::vector<double> v;         // [count, head_dim]
    std::vector<double> variance;  // [count, head_dim], empty unless kBlocksVariance
    std::vector<double> log_n;     // [count]
  };
  Columns finish() const;

 private:
  const SlotRows& rows_;
  const FoldRule& rule_;
  std::int64_t fold_end_;
  std::vector<std::int64_t> remaining_;  // [num_blocks]
  std::vector<double> k_, v_, k_squared_;
};

}  // namespace s2o
