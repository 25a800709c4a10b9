// Every invariant of a plan, checked from its definition.
#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "kernels/common/parallel.h"
#include "lib/plan/sparse_plan.h"

namespace s2o {
namespace {

class PlanChecker {
 public:
  PlanChecker(const Problem& problem, const SparsePlan& plan) : problem_(problem), plan_(plan) {}

  void check() const {
    const PlanView& header = plan_.header;
    if (header.block_m < 1 || header.block_n < 1 || header.pack < 1 ||
        header.num_plan_heads * header.pack != problem_.num_q_heads) {
      throw Error(fmt::format("plan: {} plan heads x pack {} do not give {} query heads",
                              header.num_plan_heads, header.pack, problem_.num_q_heads));
    }
    for (std::size_t p = 0; p < plan_.passes.size(); ++p) check_arrays(p);
    parallel_for(header.num_plan_heads, [&](std::int64_t head) {
      std::vector<std::uint8_t> visited(static_cast<std::size_t>(problem_.seqlen));
      for (int tile = 0; tile < header.num_q_tiles; ++tile) {
        for (std::size_t p = 0; p < plan_.passes.size(); ++p) {
          // Keys may repeat between passes (they see different rows), never inside one.
          std::fill(visited.begin(), visited.end(), std::uint8_t{0});
          check_tile(p, static_cast<int>(head), tile, visited);
        }
      }
    });
  }

 private:
  std::string where(std::size_t pass, int head, int tile) const {
    return fmt::format("plan pass {} head {} tile {}", pass, head, tile);
  }

  void check_arrays(std::size_t p) const {
    const PlanPass& pass = plan_.passes[p];
    const auto num_tiles = static_cast<std::size_t>(plan_.num_tiles());
    if (pass.item_offsets.size() != num_tiles + 1) {
      throw Error(fmt::format("plan pass {}: {} item offsets, expected {}", p,
                              pass.item_offsets.size(), num_tiles + 1));
    }
    if (!pass.fold_end.empty() && pass.fold_end.size() != num_tiles) {
      throw Error(fmt::format("plan pass {}: {} fold ends, expected {}", p, pass.fold_end.size(),
                              num_tiles));
    }
    check_order(p, pass.query_order, "query order");
    check_order(p, pass.key_order, "key order");
    if (plan_.header.pack > 1 && !pass.query_order.empty()) {
      throw Error(fmt::format("plan pass {}: a query order with packed rows", p));
    }
  }

  void check_order(std::size_t p, const std::vector<std::int32_t>& order, const char* name) const {
    if (order.empty()) return;
    const auto n = static_cast<std::size_t>(problem_.seqlen);
    if (order.size() != n * static_cast<std::size_t>(plan_.header.num_plan_heads)) {
      throw Error(fmt::format("plan pass {}: {} has {} entries, expected {} heads x {}", p, name,
                              order.size(), plan_.header.num_plan_heads, n));
    }
    std::vector<std::uint8_t> seen(n);
    for (std::size_t start = 0; start < order.size(); start += n) {
      std::fill(seen.begin(), seen.end(), std::uint8_t{0});
      for (std::size_t i = 0; i < n; ++i) {
        const std::int32_t token = order[start + i];
        if (token < 0 || token >= problem_.seqlen || seen[static_cast<std::size_t>(token)] != 0) {
          throw Error(fmt::format("plan pass {} head {}: {} is no permutation: slot {} holds {}", p,
                                  start / n, name, i, token));
        }
        seen[static_cast<std::size_t>(token)] = 1;
      }
    }
  }

  // Smallest original position among the rows of the tile.
  std::int64_t first_position(const PlanPass& pass, int head, int tile) const {
    const TileRows rows = tile_rows(problem_, plan_.header, tile);
    if (pass.query_order.empty()) return rows.first_position;
    const auto base = pass.query_order.begin() + head * problem_.seqlen;
    return *std::min_element(base + rows.first_slot, base + rows.end_slot);
  }

  void check_tile(std::size_t p, int head, int tile, std::vector<std::uint8_t>& visited) const {
    const PlanPass& pass = plan_.passes[p];
    const auto index = static_cast<std::size_t>(plan_.tile_index(head, tile));
    const std::int64_t first = first_position(pass, head, tile);
    if (pass.item_offsets[index] > pass.item_offsets[index + 1] ||
        pass.item_offsets[index + 1] > static_cast<std::int64_t>(pass.items.size())) {
      throw Error(fmt::format("{}: item offsets are not ascending", where(p, head, tile)));
    }
    for (std::int64_t i = pass.item_offsets[index]; i < pass.item_offsets[index + 1]; ++i) {
      check_item(p, head, tile, pass.items[static_cast<std::size_t>(i)], first, visited);
    }
    if (!pass.fold_end.empty() && pass.fold_end[index] > first) {
      throw Error(fmt::format("{}: fold end {} is beyond the first position {}",
                              where(p, head, tile), pass.fold_end[index], first));
    }
  }

  void check_item(std::size_t p, int head, int tile, const PlanItem& item, std::int64_t first,
                  std::vector<std::uint8_t>& visited) const {
    const PlanPass& pass = plan_.passes[p];
    const bool is_run = item.kind == ItemKind::kRun;
    const std::int64_t limit =
        is_run ? problem_.seqlen : static_cast<std::int64_t>(pass.gather_indices.size());
    if (item.count <= 0 || item.begin < 0 || item.begin + item.count > limit) {
      throw Error(fmt::format("{}: item [{}, +{}) lies outside [0, {})", where(p, head, tile),
                              item.begin, item.count, limit));
    }
    for (std::int64_t slot = item.begin; slot < item.begin + item.count; ++slot) {
      std::int64_t key = slot;
      if (!is_run) {
        key = pass.gather_indices[static_cast<std::size_t>(slot)];
      } else if (!pass.key_order.empty()) {
        key = pass.key_order[static_cast<std::size_t>(head * problem_.seqlen + slot)];
      }
      if (key < 0 || key >= problem_.seqlen) {
        throw Error(fmt::format("{}: key {} lies outside [0, {})", where(p, head, tile), key,
                                problem_.seqlen));
      }
      if (item.mask == MaskClass::kNone && key > first) {
        throw Error(
            fmt::format("{}: unmasked key {} is after query {}", where(p, head, tile), key, first));
      }
      if (visited[static_cast<std::size_t>(key)]++ != 0) {
        throw Error(fmt::format("{}: key {} is visited twice", where(p, head, tile), key));
      }
    }
  }

  const Problem& problem_;
  const SparsePlan& plan_;
};

}  // namespace

void check_plan(const Problem& problem, const SparsePlan& plan) {
  PlanChecker(problem, plan).check();
}

}  // namespace s2o
