#include "kernels/common/plan_bounds.h"

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/common/error.h"
#include "kernels/common/parallel.h"

namespace s2o {
namespace {

[[noreturn]] void fail(const std::string& what) { throw Error("plan" + what); }

class BoundsChecker {
 public:
  BoundsChecker(const Problem& problem, const PlanView& plan) : problem_(problem), plan_(plan) {}

  void check() const {
    check_plan_header(problem_, plan_);
    for (int p = 0; p < plan_.num_passes; ++p) {
      const PassView& pass = plan_.passes[p];
      check_order(p, pass.query_order, "query order");
      check_order(p, pass.key_order, "key order");
      check_fold_ends(p);
      check_gathers(p, check_items(p));
      check_taus(p);
    }
  }

 private:
  std::string where(int pass, std::int64_t tile) const {
    return " pass " + std::to_string(pass) + " head " + std::to_string(tile / plan_.num_q_tiles) +
           " tile " + std::to_string(tile % plan_.num_q_tiles) + ": ";
  }
  std::int64_t num_tiles() const {
    return static_cast<std::int64_t>(plan_.num_plan_heads) * plan_.num_q_tiles;
  }

  // Place of the first entry outside [0, seqlen), or `count`.
  std::int64_t first_outside(const std::int32_t* indices, std::int64_t count) const {
    constexpr std::int64_t kChunk = 1 << 20;
    const std::int64_t num_chunks = (count + kChunk - 1) / kChunk;
    std::vector<std::int64_t> found(static_cast<std::size_t>(num_chunks), count);
    const auto limit = static_cast<std::uint64_t>(problem_.seqlen);
    parallel_for(num_chunks, [&](std::int64_t chunk) {
      const std::int32_t* begin = indices + chunk * kChunk;
      const std::int32_t* end = indices + std::min((chunk + 1) * kChunk, count);
      // A plain loop over the chunk first: it is nearly always clean.
      bool inside = true;
      for (const std::int32_t* i = begin; i < end; ++i) {
        inside &= static_cast<std::uint64_t>(static_cast<std::int64_t>(*i)) < limit;
      }
      if (inside) return;
      const auto* bad = std::find_if(begin, end, [limit](std::int32_t index) {
        return static_cast<std::uint64_t>(static_cast<std::int64_t>(index)) >= limit;
      });
      found[static_cast<std::size_t>(chunk)] = bad - indices;
    });
    return found.empty() ? count : *std::min_element(found.begin(), found.end());
  }

  void check_order(int p, const std::int32_t* order, const char* name) const {
    if (order == nullptr) return;
    const std::int64_t count = plan_.num_plan_heads * problem_.seqlen;
    const std::int64_t bad = first_outside(order, count);
    if (bad == count) return;
    fail(" pass " + std::to_string(p) + " head " + std::to_string(bad / problem_.seqlen) + ": " +
         name + " slot " + std::to_string(bad % problem_.seqlen) + " is " +
         std::to_string(order[bad]) + ", outside [0, " + std::to_string(problem_.seqlen) + ")");
  }

  void check_fold_ends(int p) const {
    const std::int32_t* fold_end = plan_.passes[p].fold_end;
    if (fold_end == nullptr) return;
    for (std::int64_t tile = 0; tile < num_tiles(); ++tile) {
      if (fold_end[tile] >= 0 && fold_end[tile] <= problem_.seqlen) continue;
      fail(where(p, tile) + "fold end " + std::to_string(fold_end[tile]) + " is outside [0, " +
           std::to_string(problem_.seqlen) + "]");
    }
  }

  // A stop by shares of tau needs one above 0, and kernels are chosen by the plan's.
  void check_taus(int p) const {
    const PassView& pass = plan_.passes[p];
    if (pass.head_taus == nullptr) return;
    for (int head = 0; head < plan_.num_plan_heads; ++head) {
      const float tau = pass.head_taus[head];
      if (!(tau >= 0.0f && tau <= plan_.stop.tau)) {
        fail(" pass " + std::to_string(p) + " head " + std::to_string(head) + ": tau " +
             std::to_string(tau) + " is outside [0, " + std::to_string(plan_.stop.tau) +
             "], the tau of the plan");
      }
      if (tau > 0.0f) continue;
      const std::int64_t tile = static_cast<std::int64_t>(head) * plan_.num_q_tiles;
      for (std::int64_t i = pass.item_offsets[tile];
           i < pass.item_offsets[tile + plan_.num_q_tiles]; ++i) {
        if (!pass.items[i].stoppable) continue;
        fail(" pass " + std::to_string(p) + " head " + std::to_string(head) +
             ": stoppable items with tau 0");
      }
    }
  }

  // Entries of gather_indices that the items use.
  std::int64_t check_items(int p) const {
    const PassView& pass = plan_.passes[p];
    std::int64_t gather_length = 0;
    for (std::int64_t tile = 0; tile < num_tiles(); ++tile) {
      if (pass.item_offsets[tile] > pass.item_offsets[tile + 1] || pass.item_offsets[0] != 0) {
        fail(where(p, tile) + "item offsets do not ascend from 0");
      }
      for (std::int64_t i = pass.item_offsets[tile]; i < pass.item_offsets[tile + 1]; ++i) {
        const PlanItem& item = pass.items[i];
        const bool gather = item.kind == ItemKind::kGather;
        const bool inside = item.begin >= 0 && item.count > 0 &&
                            (gather || item.begin + item.count <= problem_.seqlen);
        if (!inside || (gather && pass.gather_indices == nullptr)) {
          fail(where(p, tile) + "item " + std::to_string(i - pass.item_offsets[tile]) + " is [" +
               std::to_string(item.begin) + ", +" + std::to_string(item.count) +
               (gather ? ") of gather indices"
                       : "), outside [0, " + std::to_string(problem_.seqlen) + ")"));
        }
        if (gather) gather_length = std::max(gather_length, item.begin + item.count);
      }
    }
    return gather_length;
  }

  void check_gathers(int p, std::int64_t gather_length) const {
    const PassView& pass = plan_.passes[p];
    if (gather_length == 0) return;
    if (first_outside(pass.gather_indices, gather_length) == gather_length) return;
    // Which tile reads it; what lies between items is read by none.
    for (std::int64_t tile = 0; tile < num_tiles(); ++tile) {
      for (std::int64_t i = pass.item_offsets[tile]; i < pass.item_offsets[tile + 1]; ++i) {
        const PlanItem& item = pass.items[i];
        if (item.kind != ItemKind::kGather) continue;
        const std::int32_t* keys = pass.gather_indices + item.begin;
        const std::int64_t place = first_outside(keys, item.count);
        if (place == item.count) continue;
        fail(where(p, tile) + "key " + std::to_string(keys[place]) + " at place " +
             std::to_string(place) + " of item " + std::to_string(i - pass.item_offsets[tile]) +
             " is outside [0, " + std::to_string(problem_.seqlen) + ")");
      }
    }
  }

  const Problem& problem_;
  const PlanView& plan_;
};

}  // namespace

void check_plan_header(const Problem& problem, const PlanView& plan) {
  if (plan.block_m < 1 || plan.block_n < 1 || plan.pack < 1 ||
      plan.num_plan_heads * plan.pack != problem.num_q_heads) {
    fail(": " + std::to_string(plan.num_plan_heads) + " plan heads x pack " +
         std::to_string(plan.pack) + " do not give " + std::to_string(problem.num_q_heads) +
         " query heads");
  }
  const std::int64_t tiles = (problem.seqlen * plan.pack + plan.block_m - 1) / plan.block_m;
  if (plan.num_q_tiles != tiles) {
    fail(": " + std::to_string(plan.num_q_tiles) + " tiles a head, expected " +
         std::to_string(tiles));
  }
}

void check_plan_bounds(const Problem& problem, const PlanView& plan) {
  BoundsChecker(problem, plan).check();
}

}  // namespace s2o
