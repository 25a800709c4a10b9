// CPU reference of the attention contract, with Eigen. It reads like the definition: per tile, per
// step, an online softmax over the keys of the plan. Tiles run in parallel; every tile is computed
// by one thread in a fixed order, so results do not depend on the number of threads.
#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <memory>
#include <numbers>
#include <numeric>
#include <vector>

#include "kernels/attention/attention.h"
#include "kernels/attention/fold_columns.h"
#include "kernels/attention/quantise.h"
#include "kernels/common/bf16.h"
#include "kernels/common/ceil_div.h"
#include "kernels/common/e4m3.h"
#include "kernels/common/parallel.h"

namespace s2o {
namespace {

// Keys per matrix product where no decision is needed after each step: larger products run
// closer to the peak of the matrix kernel than block_n = 128 would.
constexpr std::int64_t kChunkKeys = 512;

template <class Scalar>
using RowMatrix = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
template <class Scalar>
using ConstRows = Eigen::Map<const RowMatrix<Scalar>>;

template <class Scalar>
constexpr Scalar kMinusInfinity = -std::numeric_limits<Scalar>::infinity();

struct Inputs {
  const float* q;
  const float* k;
  const float* v;
};

// Everything one tile needs; reused by the thread for its next tile.
template <class Scalar>
struct TileState {
  std::vector<std::int64_t> position;  // [rows] original query positions
  std::vector<std::int64_t> out_row;   // [rows] row of q, out and lse: head * seqlen + position
  RowMatrix<Scalar> q;                 // [rows, head_dim], scaled by softmax_scale
  std::vector<Scalar> row_max;         // m
  std::vector<Scalar> row_sum;         // l
  std::vector<Scalar> step_sum;        // p_blk of the last step
  RowMatrix<Scalar> acc;               // [rows, head_dim]
  RowMatrix<Scalar> logits;            // [rows, keys], then probabilities
  RowMatrix<Scalar> k;                 // [keys, head_dim], gathered or converted
  RowMatrix<Scalar> v;
  std::vector<std::int64_t> tokens;  // [keys] original key positions of the chunk
  TileStats stats;
};

// Numbers whose bits probabilities are (quantise.h).
enum class Codes : std::uint8_t { kNone, kE4m3, kFp16 };

// What inputs of 8 bits were made of. Folded columns are of the stored Q, K and V, as on a device:
// the variance of single dimensions means something else once K is rotated.
struct QuantisedFrom {
  Codes codes = Codes::kNone;
  Inputs stored;
  const float* lse_shift = nullptr;  // [num_q_heads, seqlen], what logits of the inputs lack
};

template <class Scalar>
class AttentionRef {
 public:
  AttentionRef(const Problem& problem, const PlanView& plan, const Inputs& inputs, Scalar* out,
               Scalar* lse, TileStats* stats)
      : AttentionRef(problem, plan, inputs, out, lse, stats, {.stored = inputs}) {}

  AttentionRef(const Problem& problem, const PlanView& plan, const Inputs& inputs, Scalar* out,
               Scalar* lse, TileStats* stats, const QuantisedFrom& from)
      : problem_(problem),
        plan_(plan),
        inputs_(inputs),
        out_(out),
        lse_(lse),
        stats_(stats),
        from_(from) {}

  void run() {
    for (int p = 0; p < plan_.num_passes; ++p) run_pass(p);
  }

 private:
  int kv_head_of(int plan_head) const {
    return plan_.pack > 1 ? plan_head : plan_head / problem_.group_size();
  }

  SlotRows slot_rows(const Inputs& inputs, const PassView& pass, int plan_head) const {
    const int kv_head = kv_head_of(plan_head);
    return {.k = inputs.k + problem_.row_offset(kv_head, 0),
            .v = inputs.v + problem_.row_offset(kv_head, 0),
            .key_order =
                pass.key_order == nullptr ? nullptr : pass.key_order + plan_head * problem_.seqlen,
            .seqlen = problem_.seqlen,
            .head_dim = problem_.head_dim};
  }

  void run_pass(int p) {
    const PassView& pass = plan_.passes[p];
    const std::int64_t num_tiles =
        static_cast<std::int64_t>(plan_.num_plan_heads) * plan_.num_q_tiles;
    if (plan_.fold.kind != Compensation::kNone && pass.fold_end != nullptr) {
      // One set of sums per key order: per KV head, or per plan head where keys are permuted.
      const bool per_plan_head = pass.key_order != nullptr;
      block_sums_.resize(
          static_cast<std::size_t>(per_plan_head ? plan_.num_plan_heads : problem_.num_kv_heads));
      const int heads_per_set = per_plan_head ? 1 : plan_.num_plan_heads / problem_.num_kv_heads;
      parallel_for(static_cast<std::int64_t>(block_sums_.size()), [&](std::int64_t set) {
        block_sums_[static_cast<std::size_t>(set)] = sum_blocks(
            slot_rows(from_.stored, pass, static_cast<int>(set) * heads_per_set), plan_.fold);
      });
    }
    const std::vector<std::int64_t> order = heavy_first(pass, num_tiles);
    parallel_for(num_tiles, [&](std::int64_t i) {
      thread_local TileState<Scalar> state;
      const std::int64_t tile = order[static_cast<std::size_t>(i)];
      run_tile(pass, p, static_cast<int>(tile / plan_.num_q_tiles),
               static_cast<int>(tile % plan_.num_q_tiles), state);
      if (stats_ != nullptr) stats_[p * num_tiles + tile] = state.stats;
    });
  }

  // Tiles by descending number of keys, so that no thread is left with a long tile at the end.
  static std::vector<std::int64_t> heavy_first(const PassView& pass, std::int64_t num_tiles) {
    std::vector<std::int64_t> keys(static_cast<std::size_t>(num_tiles), 0);
    for (std::int64_t tile = 0; tile < num_tiles; ++tile) {
      for (std::int64_t i = pass.item_offsets[tile]; i < pass.item_offsets[tile + 1]; ++i) {
        keys[static_cast<std::size_t>(tile)] += pass.items[i].count;
      }
    }
    std::vector<std::int64_t> order(static_cast<std::size_t>(num_tiles));
    std::iota(order.begin(), order.end(), std::int64_t{0});
    std::stable_sort(order.begin(), order.end(), [&keys](std::int64_t a, std::int64_t b) {
      return keys[static_cast<std::size_t>(a)] > keys[static_cast<std::size_t>(b)];
    });
    return order;
  }

  void run_tile(const PassView& pass, int p, int plan_head, int tile, TileState<Scalar>& state) {
    load_rows(pass, p, plan_head, tile, state);
    const std::int64_t index = static_cast<std::int64_t>(plan_head) * plan_.num_q_tiles + tile;
    const SlotRows rows = slot_rows(inputs_, pass, plan_head);
    const SlotRows stored_rows = slot_rows(from_.stored, pass, plan_head);

    std::unique_ptr<FoldColumns> fold;
    if (plan_.fold.kind != Compensation::kNone && pass.fold_end != nullptr &&
        pass.fold_end[index] > 0) {
      const int set = pass.key_order != nullptr
                          ? plan_head
                          : plan_head / (plan_.num_plan_heads / problem_.num_kv_heads);
      fold = std::make_unique<FoldColumns>(stored_rows, plan_.fold,
                                           block_sums_[static_cast<std::size_t>(set)],
                                           pass.fold_end[index]);
    }
    visit_items(pass, index, rows, fold.get(), state);
    if (fold) add_folded_columns(fold->finish(), state);
    store_rows(state);
  }

  void load_rows(const PassView& pass, int p, int plan_head, int tile, TileState<Scalar>& state) {
    const int d = problem_.head_dim;
    const std::int64_t first = static_cast<std::int64_t>(tile) * plan_.block_m;
    const std::int64_t end = std::min(first + plan_.block_m, problem_.seqlen * plan_.pack);
    const std::int64_t num_rows = end - first;
    state.position.resize(static_cast<std::size_t>(num_rows));
    state.out_row.resize(static_cast<std::size_t>(num_rows));
    state.q.resize(num_rows, d);
    state.acc.setZero(num_rows, d);
    state.row_max.assign(static_cast<std::size_t>(num_rows), kMinusInfinity<Scalar>);
    state.row_sum.assign(static_cast<std::size_t>(num_rows), Scalar(0));
    state.step_sum.assign(static_cast<std::size_t>(num_rows), Scalar(0));
    state.stats = {};
    for (std::int64_t r = 0; r < num_rows; ++r) {
      const auto i = static_cast<std::size_t>(r);
      const std::int64_t slot = first + r;
      const std::int64_t head =
          static_cast<std::int64_t>(plan_head) * plan_.pack + slot % plan_.pack;
      state.position[i] = pass.query_order == nullptr
                              ? slot / plan_.pack
                              : pass.query_order[plan_head * problem_.seqlen + slot];
      state.out_row[i] = head * problem_.seqlen + state.position[i];
      load_query(inputs_.q, r, state);
      // Resuming from (out, lse) of an earlier pass is the exact merge of two softmax states.
      if (p > 0 && lse_[state.out_row[i]] != kMinusInfinity<Scalar>) {
        state.row_max[i] = lse_[state.out_row[i]];
        state.row_sum[i] = Scalar(1);
        state.acc.row(r) = Eigen::Map<const Eigen::Matrix<Scalar, 1, Eigen::Dynamic>>(
            out_ + state.out_row[i] * d, d);
      }
    }
  }

  void load_query(const float* q, std::int64_t r, TileState<Scalar>& state) const {
    const int d = problem_.head_dim;
    const float* const source = q + state.out_row[static_cast<std::size_t>(r)] * d;
    state.q.row(r) = Eigen::Map<const Eigen::RowVectorXf>(source, d).template cast<Scalar>() *
                     static_cast<Scalar>(problem_.softmax_scale);
  }

  void visit_items(const PassView& pass, std::int64_t tile, const SlotRows& rows, FoldColumns* fold,
                   TileState<Scalar>& state) {
    const std::int64_t begin = pass.item_offsets[tile];
    const std::int64_t end = pass.item_offsets[tile + 1];
    std::int64_t steps_left = 0;  // for the exemption of the last steps from the PV skip
    for (std::int64_t i = begin; i < end; ++i) {
      steps_left += (pass.items[i].count + plan_.block_n - 1) / plan_.block_n;
    }
    const auto tau =
        static_cast<Scalar>(pass.tau_of(static_cast<int>(tile / plan_.num_q_tiles), plan_.stop));
    int small_steps = 0;
    bool stopped = false;
    for (std::int64_t i = begin; i < end; ++i) {
      const PlanItem& item = pass.items[i];
      if (item.stoppable && stopped) continue;
      const bool single_steps = item.stoppable || plan_.pv_skip_threshold > 0.0f;
      const std::int64_t chunk =
          single_steps ? plan_.block_n
                       : std::max<std::int64_t>(kChunkKeys / plan_.block_n, 1) * plan_.block_n;
      for (std::int64_t done = 0; done < item.count && !(item.stoppable && stopped);
           done += chunk) {
        const std::int64_t count = std::min<std::int64_t>(chunk, item.count - done);
        const std::int64_t steps = ceil_div(count, plan_.block_n);
        steps_left -= steps;
        const bool may_skip = plan_.pv_skip_threshold > 0.0f && steps_left >= plan_.pv_skip_exempt;
        visit_chunk(pass, item, done, count, rows, may_skip, state);
        note_visited(pass, item, done, count, fold);
        state.stats.total_steps += static_cast<std::int32_t>(steps);
        if (item.stoppable) {
          ++state.stats.stop_steps;
          small_steps = reduced_gain(state) < tau ? small_steps + 1 : 0;
          stopped =
              small_steps >= plan_.stop.patience && state.stats.stop_steps >= plan_.stop.min_steps;
        }
      }
    }
  }

  // gain = p_blk / l_new per row, reduced over the rows of the tile.
  Scalar reduced_gain(const TileState<Scalar>& state) const {
    Scalar total = 0;
    Scalar largest = 0;
    for (std::size_t i = 0; i < state.row_sum.size(); ++i) {
      const Scalar gain = state.row_sum[i] > 0 ? state.step_sum[i] / state.row_sum[i] : Scalar(0);
      total += gain;
      largest = std::max(largest, gain);
    }
    return plan_.stop.reduce == StopReduce::kMean
               ? total / static_cast<Scalar>(state.row_sum.size())
               : largest;
  }

  static void note_visited(const PassView& pass, const PlanItem& item, std::int64_t done,
                           std::int64_t count, FoldColumns* fold) {
    if (fold == nullptr) return;
    if (item.kind == ItemKind::kRun) {
      fold->remove_range(item.begin + done, item.begin + done + count);
      return;
    }
    for (std::int64_t j = 0; j < count; ++j) {
      fold->remove(pass.gather_indices[item.begin + done + j]);
    }
  }

  // Loads `count` keys of the item, computes logits and updates the softmax state.
  void visit_chunk(const PassView& pass, const PlanItem& item, std::int64_t done,
                   std::int64_t count, const SlotRows& rows, bool may_skip,
                   TileState<Scalar>& state) {
    const int d = problem_.head_dim;
    const bool plain = item.kind == ItemKind::kRun && rows.key_order == nullptr;
    const std::int64_t begin = item.begin + done;
    if (!plain) {
      state.tokens.resize(static_cast<std::size_t>(count));
      for (std::int64_t j = 0; j < count; ++j) {
        state.tokens[static_cast<std::size_t>(j)] =
            item.kind == ItemKind::kGather ? pass.gather_indices[begin + j] : rows.token(begin + j);
      }
    }
    // Most of a causal run lies before every row of the tile.
    const std::int64_t first_position =
        *std::min_element(state.position.begin(), state.position.end());
    const bool masked =
        item.mask != MaskClass::kNone &&
        !(plain && item.mask == MaskClass::kCausal && begin + count - 1 <= first_position);
    const auto visible = [&](std::int64_t r, std::int64_t j) {
      const std::int64_t t = state.position[static_cast<std::size_t>(r)];
      const std::int64_t key = plain ? begin + j : state.tokens[static_cast<std::size_t>(j)];
      if (key > t) return false;
      return item.mask == MaskClass::kCausal || key < plan_.window_sink ||
             t - key < plan_.window_size;
    };
    if constexpr (std::is_same_v<Scalar, float>) {
      if (plain) {
        const ConstRows<float> k(rows.k + begin * d, count, d);
        const ConstRows<float> v(rows.v + begin * d, count, d);
        update(k, v, masked, visible, may_skip, state);
        return;
      }
    }
    state.k.resize(count, d);
    state.v.resize(count, d);
    for (std::int64_t j = 0; j < count; ++j) {
      const std::int64_t token = plain ? begin + j : state.tokens[static_cast<std::size_t>(j)];
      state.k.row(j) =
          Eigen::Map<const Eigen::RowVectorXf>(rows.k + token * d, d).template cast<Scalar>();
      state.v.row(j) =
          Eigen::Map<const Eigen::RowVectorXf>(rows.v + token * d, d).template cast<Scalar>();
    }
    const ConstRows<Scalar> k(state.k.data(), count, d);
    const ConstRows<Scalar> v(state.v.data(), count, d);
    update(k, v, masked, visible, may_skip, state);
  }

  template <class Visible>
  void update(const ConstRows<Scalar>& k, const ConstRows<Scalar>& v, bool masked,
              const Visible& visible, bool may_skip, TileState<Scalar>& state) {
    state.logits.resize(state.q.rows(), k.rows());
    state.logits.noalias() = state.q * k.transpose();
    if (masked) {
      for (std::int64_t r = 0; r < state.logits.rows(); ++r) {
        for (std::int64_t j = 0; j < state.logits.cols(); ++j) {
          if (!visible(r, j)) state.logits(r, j) = kMinusInfinity<Scalar>;
        }
      }
    }
    if (may_skip && step_adds_nothing(state)) {
      ++state.stats.pv_skipped;
      return;
    }
    if (from_.codes != Codes::kNone) {
      softmax_of_codes(state);
    } else {
      softmax_step(state);
    }
    state.acc.noalias() += state.logits * v;
  }

  // SpargeAttn: every row's step maximum lies at least the threshold (log2 units) below its
  // running maximum.
  bool step_adds_nothing(const TileState<Scalar>& state) const {
    const Scalar log2e = std::numbers::log2e_v<Scalar>;
    Scalar largest = kMinusInfinity<Scalar>;
    for (std::int64_t r = 0; r < state.logits.rows(); ++r) {
      const Scalar step_max = state.logits.row(r).maxCoeff();
      const Scalar running = std::max(state.row_max[static_cast<std::size_t>(r)], step_max);
      if (running == kMinusInfinity<Scalar>) continue;
      largest = std::max(largest, (step_max - running) * log2e);
    }
    return largest + static_cast<Scalar>(plan_.pv_skip_threshold) <= Scalar(0);
  }

  // Logits become probabilities relative to the new row maximum; m, l and acc follow.
  static void softmax_step(TileState<Scalar>& state) {
    for (std::int64_t r = 0; r < state.logits.rows(); ++r) {
      const auto i = static_cast<std::size_t>(r);
      auto row = state.logits.row(r).array();
      const Scalar new_max = std::max(state.row_max[i], row.maxCoeff());
      if (new_max == kMinusInfinity<Scalar>) {  // nothing visible so far
        row.setZero();
        state.step_sum[i] = Scalar(0);
        continue;
      }
      row = (row - new_max).exp();
      // The vectorised exponential of a masked logit is denormal; products with those are slow by
      // orders of magnitude on some processors.
      Scalar* const p = state.logits.row(r).data();
      for (std::int64_t j = 0; j < state.logits.cols(); ++j) {
        p[j] = p[j] < std::numeric_limits<Scalar>::min() ? Scalar(0) : p[j];
      }
      const Scalar rescale = std::exp(state.row_max[i] - new_max);
      state.step_sum[i] = row.sum();
      state.row_sum[i] = state.row_sum[i] * rescale + state.step_sum[i];
      state.row_max[i] = new_max;
      if (rescale != Scalar(1)) state.acc.row(r) *= rescale;
    }
  }

  // As softmax_step with probabilities that are codes (quantise.h); row maxima are octaves.
  void softmax_of_codes(TileState<Scalar>& state) const {
    constexpr Scalar kLn2 = std::numbers::ln2_v<Scalar>;
    const bool wide = from_.codes == Codes::kFp16;
    const Scalar codes_an_octave = wide ? 1024 : 8;
    const Scalar largest_code = wide ? kLargestWideCode : kLargestCode;
    const Scalar one = std::exp2(Scalar(wide ? -kLogOfLargestWideCode : -kLogOfLargestCode));
    const auto probability = [&](Scalar code) {
      const float number = wide ? fp16_to_float(static_cast<std::uint16_t>(code))
                                : e4m3_to_float(static_cast<std::uint8_t>(code));
      return static_cast<Scalar>(number) * one;
    };
    for (std::int64_t r = 0; r < state.logits.rows(); ++r) {
      const auto i = static_cast<std::size_t>(r);
      auto row = state.logits.row(r).array();
      row = (row * (codes_an_octave / kLn2)).floor();
      // A maximum that is an octave, or an lse that steps go on from.
      const Scalar before = std::ceil(state.row_max[i] / kLn2 - Scalar(1e-4));
      const Scalar octave = std::max(before, std::ceil(row.maxCoeff() / codes_an_octave));
      if (octave == kMinusInfinity<Scalar>) {  // nothing visible so far
        row.setZero();
        state.step_sum[i] = Scalar(0);
        continue;
      }
      row = (row + (largest_code - codes_an_octave * octave)).max(Scalar(0)).unaryExpr(probability);
      const Scalar rescale = std::exp(state.row_max[i] - octave * kLn2);
      state.step_sum[i] = row.sum();
      state.row_sum[i] = state.row_sum[i] * rescale + state.step_sum[i];
      state.row_max[i] = octave * kLn2;
      if (rescale != Scalar(1)) state.acc.row(r) *= rescale;
    }
  }

  void add_folded_columns(const FoldColumns::Columns& columns, TileState<Scalar>& state) const {
    state.stats.fold_columns = static_cast<std::int32_t>(columns.count);
    if (columns.count == 0) return;
    const int d = problem_.head_dim;
    const auto to_matrix = [&](const std::vector<double>& values) {
      return RowMatrix<Scalar>(
          ConstRows<double>(values.data(), columns.count, d).template cast<Scalar>());
    };
    state.k = to_matrix(columns.k);
    state.v = to_matrix(columns.v);
    if (from_.codes != Codes::kNone) {
      for (std::int64_t r = 0; r < state.q.rows(); ++r) load_query(from_.stored.q, r, state);
    }
    state.logits.resize(state.q.rows(), columns.count);
    state.logits.noalias() = state.q * state.k.transpose();
    if (!columns.variance.empty()) {
      const RowMatrix<Scalar> variance =
          state.q.cwiseAbs2() * to_matrix(columns.variance).transpose();
      state.logits += variance.unaryExpr([](Scalar x) { return spread_logit(x); });
    }
    state.logits.rowwise() +=
        Eigen::Map<const Eigen::RowVectorXd>(columns.log_n.data(), columns.count)
            .template cast<Scalar>();
    if (from_.lse_shift != nullptr) {
      for (std::int64_t r = 0; r < state.logits.rows(); ++r) {
        state.logits.row(r).array() -=
            static_cast<Scalar>(from_.lse_shift[state.out_row[static_cast<std::size_t>(r)]]);
      }
    }
    softmax_step(state);
    state.acc.noalias() += state.logits * state.v;
  }

  void store_rows(const TileState<Scalar>& state) {
    const int d = problem_.head_dim;
    for (std::size_t i = 0; i < state.out_row.size(); ++i) {
      Eigen::Map<Eigen::Matrix<Scalar, 1, Eigen::Dynamic>> target(out_ + state.out_row[i] * d, d);
      const auto r = static_cast<std::int64_t>(i);
      if (state.row_max[i] == kMinusInfinity<Scalar>) {
        target.setZero();
        lse_[state.out_row[i]] = kMinusInfinity<Scalar>;
      } else {
        target = state.acc.row(r) / state.row_sum[i];
        lse_[state.out_row[i]] = state.row_max[i] + std::log(state.row_sum[i]);
      }
    }
  }

  const Problem& problem_;
  const PlanView& plan_;
  const Inputs inputs_;
  Scalar* out_;
  Scalar* lse_;
  TileStats* stats_;
  const QuantisedFrom from_;
  std::vector<BlockSums> block_sums_;
};

}  // namespace

void attention_ref(const Problem& problem, const PlanView& plan, const float* q, const float* k,
                   const float* v, float* out, float* lse, TileStats* stats) {
  AttentionRef<float>(problem, plan, {.q = q, .k = k, .v = v}, out, lse, stats).run();
}

void attention_ref(const Problem& problem, const PlanView& plan, const float* q, const float* k,
                   const float* v, double* out, double* lse, TileStats* stats) {
  AttentionRef<double>(problem, plan, {.q = q, .k = k, .v = v}, out, lse, stats).run();
}

void attention_quantised_ref(const Problem& problem, const PlanView& plan, const float* q,
                             const float* k, const float* v, QuantiseRule rule, float* out,
                             float* lse, TileStats* stats) {
  const bool wide = has_wide_values(plan);
  const QuantisedValues values = quantise_ref(problem, q, k, v, rule, wide);
  AttentionRef<float>(problem, plan,
                      {.q = values.q.data(), .k = values.k.data(), .v = values.v.data()}, out, lse,
                      stats,
                      {.codes = wide ? Codes::kFp16 : Codes::kE4m3,
                       .stored = {.q = q, .k = k, .v = v},
                       .lse_shift = values.lse_shift.data()})
      .run();
  for (std::size_t row = 0; row < values.lse_shift.size(); ++row) lse[row] += values.lse_shift[row];
}

void attention_ref(const Problem& problem, const PlanView& plan, const float* q, const float* k,
                   const float* v, const std::optional<QuantiseRule>& rule, float* out, float* lse,
                   TileStats* stats) {
  if (rule) {
    attention_quantised_ref(problem, plan, q, k, v, *rule, out, lse, stats);
  } else {
    attention_ref(problem, plan, q, k, v, out, lse, stats);
  }
}

}  // namespace s2o
