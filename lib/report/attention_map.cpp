#include "lib/report/attention_map.h"

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/common/parallel.h"

namespace s2o {
namespace {

using RowMatrixXf = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Rows = Eigen::Map<const RowMatrixXf>;

constexpr std::int64_t kKeyChunk = 1024;  // keys whose scores are held at once

struct PixelMap {
  std::int64_t seqlen;
  int count;

  PixelMap(std::int64_t length, int pixels)
      : seqlen(length), count(static_cast<int>(std::min<std::int64_t>(pixels, length))) {}
  std::int64_t begin(int pixel) const { return pixel * seqlen / count; }
  int of(std::int64_t position) const {
    // The inverse of begin() up to rounding, then settled by comparison.
    int pixel = static_cast<int>(position * count / seqlen);
    while (pixel + 1 < count && begin(pixel + 1) <= position) ++pixel;
    return pixel;
  }
};

Rows key_rows(const AttentionInput& input, int q_head) {
  const Problem& problem = input.problem;
  return {input.k_head(q_head / problem.group_size()), problem.seqlen, problem.head_dim};
}

Rows query_rows(const AttentionInput& input, int q_head) {
  return {input.q_head(q_head), input.problem.seqlen, input.problem.head_dim};
}

// One step of a tile: up to block_n keys that are visited together.
struct TileStep {
  std::vector<std::int32_t> keys;  // original tokens
  MaskClass mask = MaskClass::kNone;
  std::size_t pass = 0;
  bool stoppable = false;
  bool executed = true;
};

bool is_visible(const PlanView& plan, MaskClass mask, std::int64_t query, std::int64_t key) {
  if (mask == MaskClass::kNone) return true;
  if (key > query) return false;
  return mask == MaskClass::kCausal || key < plan.window_sink || query - key < plan.window_size;
}

void append_steps(const ExecutedHead& head, std::size_t pass_index, int tile,
                  std::vector<TileStep>& steps) {
  const PlanPass& pass = head.plan.passes[pass_index];
  const auto t = static_cast<std::size_t>(tile);
  const auto num_tiles = static_cast<std::size_t>(head.plan.header.num_q_tiles);
  const std::int32_t block_n = head.plan.header.block_n;
  std::int32_t left = head.stats[pass_index * num_tiles + t].stop_steps;
  for (std::int64_t i = pass.item_offsets[t]; i < pass.item_offsets[t + 1]; ++i) {
    const PlanItem& item = pass.items[static_cast<std::size_t>(i)];
    for (std::int32_t first = 0; first < item.count; first += block_n) {
      TileStep step{{}, item.mask, pass_index, item.stoppable, !item.stoppable || left > 0};
      if (item.stoppable) --left;
      const std::int32_t end = std::min(item.count, first + block_n);
      for (std::int32_t offset = first; offset < end; ++offset) {
        const auto slot = static_cast<std::size_t>(item.begin + offset);
        if (item.kind == ItemKind::kGather) {
          step.keys.push_back(pass.gather_indices[slot]);
        } else {
          step.keys.push_back(pass.key_order.empty() ? static_cast<std::int32_t>(slot)
                                                     : pass.key_order[slot]);
        }
      }
      steps.push_back(std::move(step));
    }
  }
}

std::vector<TileStep> tile_steps(const ExecutedHead& head, int tile) {
  std::vector<TileStep> steps;
  for (std::size_t pass = 0; pass < head.plan.passes.size(); ++pass) {
    append_steps(head, pass, tile, steps);
  }
  return steps;
}

// Original positions of the tile's rows that belong to the head.
std::vector<std::int32_t> tile_positions(const ExecutedHead& head, std::size_t pass, int tile) {
  const int pack = head.plan.header.pack;
  const std::vector<std::int32_t>& order = head.plan.passes[pass].query_order;
  const TileRows rows = tile_rows(head.problem, head.plan.header, tile);
  std::vector<std::int32_t> positions;
  for (std::int64_t slot = rows.first_slot; slot < rows.end_slot; ++slot) {
    if (slot % pack != head.q_head % pack) continue;
    positions.push_back(order.empty() ? static_cast<std::int32_t>(slot / pack)
                                      : order[static_cast<std::size_t>(slot)]);
  }
  return positions;
}

// The part of a pass that belongs to one plan head.
PlanPass pass_of_head(const Problem& problem, const SparsePlan& plan, const PlanPass& pass,
                      int plan_head) {
  const auto order_of_head = [&](const std::vector<std::int32_t>& order) {
    if (order.empty()) return std::vector<std::int32_t>();
    const auto begin = order.begin() + plan_head * problem.seqlen;
    return std::vector<std::int32_t>(begin, begin + problem.seqlen);
  };
  const std::int64_t first_tile = plan.tile_index(plan_head, 0);
  const std::int64_t num_tiles = plan.header.num_q_tiles;
  const auto offsets = pass.item_offsets.begin() + first_tile;
  PlanPass part;
  part.query_order = order_of_head(pass.query_order);
  part.key_order = order_of_head(pass.key_order);
  for (std::int64_t t = 0; t <= num_tiles; ++t)
    part.item_offsets.push_back(offsets[t] - offsets[0]);
  part.items.assign(pass.items.begin() + offsets[0], pass.items.begin() + offsets[num_tiles]);
  if (!pass.fold_end.empty()) {
    const auto begin = pass.fold_end.begin() + first_tile;
    part.fold_end.assign(begin, begin + num_tiles);
  }
  // Only the gathered indices that the head uses.
  std::int64_t gather_begin = std::numeric_limits<std::int64_t>::max();
  std::int64_t gather_end = 0;
  for (const PlanItem& item : part.items) {
    if (item.kind != ItemKind::kGather) continue;
    gather_begin = std::min(gather_begin, item.begin);
    gather_end = std::max(gather_end, item.begin + item.count);
  }
  if (gather_begin >= gather_end) return part;
  part.gather_indices.assign(pass.gather_indices.begin() + gather_begin,
                             pass.gather_indices.begin() + gather_end);
  for (PlanItem& item : part.items) {
    if (item.kind == ItemKind::kGather) item.begin -= gather_begin;
  }
  return part;
}

// Adds the visible pairs of a step to the grid's counts.
void count_pairs(const PlanView& plan, const std::vector<std::int32_t>& positions,
                 const TileStep& step, const PixelMap& map, PixelGrid& counts) {
  if (step.mask == MaskClass::kNone) {
    // All pairs are visible: rows and keys can be pooled apart.
    std::vector<int> rows_in(static_cast<std::size_t>(map.count), 0);
    for (std::int32_t position : positions) ++rows_in[static_cast<std::size_t>(map.of(position))];
    std::vector<int> touched;
    for (int row = 0; row < map.count; ++row) {
      if (rows_in[static_cast<std::size_t>(row)] > 0) touched.push_back(row);
    }
    for (std::int32_t key : step.keys) {
      const int column = map.of(key);
      for (int row : touched) counts.at(row, column) += rows_in[static_cast<std::size_t>(row)];
    }
    return;
  }
  for (std::int32_t position : positions) {
    const int row = map.of(position);
    for (std::int32_t key : step.keys) {
      if (is_visible(plan, step.mask, position, key)) counts.at(row, map.of(key)) += 1.0;
    }
  }
}

// Softmax mass of the step's visible pairs, mean over the rows.
double step_mass(const ExecutedHead& head, const std::vector<std::int32_t>& positions,
                 const TileStep& step, const std::vector<float>& lse) {
  if (positions.empty()) return 0.0;
  const Rows queries = query_rows(*head.input, head.q_head);
  const Rows keys = key_rows(*head.input, head.q_head);
  const auto num_keys = static_cast<Eigen::Index>(step.keys.size());
  RowMatrixXf step_keys(num_keys, head.problem.head_dim);
  for (Eigen::Index i = 0; i < num_keys; ++i) {
    step_keys.row(i) = keys.row(step.keys[static_cast<std::size_t>(i)]);
  }
  double sum = 0.0;
  for (std::int32_t position : positions) {
    const Eigen::VectorXf scores =
        head.problem.softmax_scale * (step_keys * queries.row(position).transpose());
    for (Eigen::Index i = 0; i < num_keys; ++i) {
      const std::int32_t key = step.keys[static_cast<std::size_t>(i)];
      if (!is_visible(head.plan.header, step.mask, position, key)) continue;
      sum += std::exp(scores[i] - lse[static_cast<std::size_t>(position)]);
    }
  }
  return sum / static_cast<double>(positions.size());
}

double causal_pairs(const PixelMap& map, int row, int column) {
  double pairs = 0.0;
  for (std::int64_t query = map.begin(row); query < map.begin(row + 1); ++query) {
    const std::int64_t end = std::min(map.begin(column + 1), query + 1);
    pairs += static_cast<double>(std::max<std::int64_t>(end - map.begin(column), 0));
  }
  return pairs;
}

}  // namespace

PixelGrid::PixelGrid(int num_rows, int num_columns, double value)
    : rows(num_rows),
      columns(num_columns),
      values(static_cast<std::size_t>(num_rows) * static_cast<std::size_t>(num_columns), value) {}

ExecutedHead execute_head(const AttentionInput& input, const SparsePlan& plan, int q_head) {
  // A plan head alone is a problem with `pack` query heads and one KV head.
  const int pack = plan.header.pack;
  const int plan_head = q_head / pack;
  Problem problem = input.problem;
  problem.num_q_heads = pack;
  problem.num_kv_heads = 1;
  ExecutedHead head{&input,  q_head,
                    problem, SparsePlan(problem, plan.header.block_m, plan.header.block_n, pack),
                    {},      {}};
  head.plan.header = plan.header;
  head.plan.header.num_plan_heads = 1;
  head.plan.passes.clear();
  for (const PlanPass& pass : plan.passes) {
    head.plan.passes.push_back(pass_of_head(input.problem, plan, pass, plan_head));
  }
  head.stats.resize(plan.passes.size() * static_cast<std::size_t>(plan.header.num_q_tiles));
  const auto rows = static_cast<std::size_t>(pack) * static_cast<std::size_t>(problem.seqlen);
  std::vector<float> out(rows * static_cast<std::size_t>(problem.head_dim));
  std::vector<float> lse(rows);
  const int kv_head = q_head / input.problem.group_size();
  attention_ref(problem, PlanPointers(head.plan).view(), input.q_head(plan_head * pack),
                input.k_head(kv_head), input.v_head(kv_head), out.data(), lse.data(),
                head.stats.data());
  const Work work = count_work(problem, head.plan, head.stats);
  head.work = work.per_head[static_cast<std::size_t>(q_head % pack)];
  return head;
}

std::vector<float> dense_lse(const AttentionInput& input, int q_head) {
  const Problem& problem = input.problem;
  const Rows queries = query_rows(input, q_head);
  const Rows keys = key_rows(input, q_head);
  std::vector<float> lse(static_cast<std::size_t>(problem.seqlen));
  constexpr std::int64_t kTile = 128;
  parallel_for((problem.seqlen + kTile - 1) / kTile, [&](std::int64_t tile) {
    const std::int64_t first = tile * kTile;
    const std::int64_t rows = std::min(kTile, problem.seqlen - first);
    std::vector<double> maximum(static_cast<std::size_t>(rows), -HUGE_VAL);
    std::vector<double> sum(static_cast<std::size_t>(rows), 0.0);
    for (std::int64_t begin = 0; begin < first + rows; begin += kKeyChunk) {
      const std::int64_t count = std::min(kKeyChunk, first + rows - begin);
      const RowMatrixXf scores = problem.softmax_scale * queries.middleRows(first, rows) *
                                 keys.middleRows(begin, count).transpose();
      for (std::int64_t r = 0; r < rows; ++r) {
        const std::int64_t visible = std::min(count, first + r + 1 - begin);
        if (visible <= 0) continue;
        const auto i = static_cast<std::size_t>(r);
        const double chunk_max = scores.row(r).head(visible).maxCoeff();
        const double new_max = std::max(maximum[i], chunk_max);
        double chunk_sum = 0.0;
        for (std::int64_t c = 0; c < visible; ++c) chunk_sum += std::exp(scores(r, c) - new_max);
        sum[i] = sum[i] * std::exp(maximum[i] - new_max) + chunk_sum;
        maximum[i] = new_max;
      }
    }
    for (std::int64_t r = 0; r < rows; ++r) {
      const auto i = static_cast<std::size_t>(r);
      lse[static_cast<std::size_t>(first + r)] = static_cast<float>(maximum[i] + std::log(sum[i]));
    }
  });
  return lse;
}

PixelGrid pooled_attention(const AttentionInput& input, int q_head, const std::vector<float>& lse,
                           int pixels) {
  const Problem& problem = input.problem;
  const PixelMap map(problem.seqlen, pixels);
  const Rows queries = query_rows(input, q_head);
  const Rows keys = key_rows(input, q_head);
  PixelGrid grid(map.count, map.count, kNoValue);
  parallel_for(map.count, [&](std::int64_t index) {
    const int row = static_cast<int>(index);
    const std::int64_t first = map.begin(row);
    const std::int64_t rows = map.begin(row + 1) - first;
    for (int column = 0; column <= row; ++column) grid.at(row, column) = 0.0;
    for (std::int64_t begin = 0; begin < first + rows; begin += kKeyChunk) {
      const std::int64_t count = std::min(kKeyChunk, first + rows - begin);
      const RowMatrixXf scores = problem.softmax_scale * queries.middleRows(first, rows) *
                                 keys.middleRows(begin, count).transpose();
      for (std::int64_t r = 0; r < rows; ++r) {
        const std::int64_t visible = std::min(count, first + r + 1 - begin);
        for (std::int64_t c = 0; c < visible; ++c) {
          const float mass = std::exp(scores(r, c) - lse[static_cast<std::size_t>(first + r)]);
          grid.at(row, map.of(begin + c)) += mass / static_cast<double>(rows);
        }
      }
    }
  });
  return grid;
}

PixelGrid visited_share(const ExecutedHead& head, int pixels) {
  const PixelMap map(head.input->problem.seqlen, pixels);
  PixelGrid grid(map.count, map.count, 0.0);
  for (int tile = 0; tile < head.plan.header.num_q_tiles; ++tile) {
    throw_if_cancelled();
    std::vector<std::vector<std::int32_t>> positions;
    for (std::size_t pass = 0; pass < head.plan.passes.size(); ++pass) {
      positions.push_back(tile_positions(head, pass, tile));
    }
    for (const TileStep& step : tile_steps(head, tile)) {
      if (step.executed) count_pairs(head.plan.header, positions[step.pass], step, map, grid);
    }
  }
  for (int row = 0; row < map.count; ++row) {
    for (int column = 0; column < map.count; ++column) {
      const double pairs = causal_pairs(map, row, column);
      grid.at(row, column) = pairs > 0.0 ? grid.at(row, column) / pairs : kNoValue;
    }
  }
  return grid;
}

VisitingView visiting_view(const ExecutedHead& head, const std::vector<float>& lse) {
  const PlanView& plan = head.plan.header;
  const auto num_tiles = static_cast<std::size_t>(plan.num_q_tiles);
  std::vector<std::vector<double>> mass(num_tiles);
  VisitingView view{PixelGrid(0, 0, kNoValue), std::vector<int>(num_tiles, 0),
                    std::vector<int>(num_tiles, 0)};
  parallel_for(plan.num_q_tiles, [&](std::int64_t index) {
    const auto t = static_cast<std::size_t>(index);
    std::vector<TileStep> steps = tile_steps(head, static_cast<int>(index));
    std::stable_partition(steps.begin(), steps.end(),
                          [](const TileStep& step) { return !step.stoppable; });
    for (const TileStep& step : steps) {
      const auto positions = tile_positions(head, step.pass, static_cast<int>(index));
      mass[t].push_back(step_mass(head, positions, step, lse));
      view.fixed[t] += step.stoppable ? 0 : 1;
      view.executed[t] += step.executed ? 1 : 0;
    }
  });
  std::size_t columns = 1;
  for (const auto& steps : mass) columns = std::max(columns, steps.size());
  view.mass = PixelGrid(plan.num_q_tiles, static_cast<int>(columns), kNoValue);
  for (std::size_t t = 0; t < num_tiles; ++t) {
    for (std::size_t s = 0; s < mass[t].size(); ++s) {
      view.mass.at(static_cast<int>(t), static_cast<int>(s)) = mass[t][s];
    }
  }
  return view;
}

}  // namespace s2o
