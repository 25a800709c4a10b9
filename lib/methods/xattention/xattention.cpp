// XAttention: antidiagonal sums of stride x stride tiles score the blocks of each row.
//
// Paper: arXiv 2503.16428; rules as in the official code (mit-han-lab/x-attention, 2025-07), Triton
//   path. (Its other path, taken on GPUs whose name lacks "100", drops all mass before the query's
//   chunk when seqlen is a multiple of the chunk; that is not reproduced.)
// Faithful: antidiagonal pairing with its look-ahead inside the diagonal stride tile, rounding of
//   the unscaled sums and of the block masses at level A, fp64 selection, the chunk and the rule of
//   first-chunk rows (sink not credited, one block more), block column 0 in every row.
// Deviates: equal masses go to the lower index; threshold 1 keeps every causal block (upstream can
//   lose blocks whose mass vanishes in the sum); keep_sink is not offered (upstream it marks query
//   row 0, not key column 0); one threshold for all heads.
// Defaults: stride 8, threshold .9, block 128: the uniform setting that other harnesses run on
//   Llama-3.1-8B; the authors also profile per-head tables. Block 64 is not in the official code.
//
// Definition, per query head (S = stride, B = block, r = rounding to the activation type):
//   1. G[a,b] = r(sum over u < S of q[aS + S-1-u] . k[bS + u]); tokens beyond seqlen are zeros.
//   2. P = softmax over b <= a of G[a,b] / (sqrt(d) S), fp32.
//   3. W[i,j] = r(sum of P over reduced rows of block i and reduced columns of block j), j <= i.
//   4. need = threshold * sum_j W[i,j], fp64. Rows of later chunks: forced blocks 0 and i count
//      first; others by descending W while the mass before them is < need (the crossing one stays).
//      Rows of the first chunk: only i is forced; the largest other block always (need > 0), the
//      m-th largest while W[i,i] + the m-2 largest others < need.
//   5. Block 0 is visited in every row.
#include "lib/methods/xattention/xattention.h"

#include <Eigen/Core>
#include <algorithm>
#include <bit>

#include "kernels/common/parallel.h"
#include "lib/methods/common/device_planning.h"
#include "lib/methods/method.h"

namespace s2o {

std::int64_t xattention_chunk(std::int64_t seqlen) {
  const auto padded = static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(seqlen)));
  const std::int64_t by_memory =
      std::min(std::max<std::int64_t>(2048, padded), (std::int64_t{1} << 28) / padded);
  return std::max<std::int64_t>(2048, by_memory);
}

void xattention_block_mass(const AttentionInput& input, int q_head, const float* key_rows,
                           std::int64_t q_begin, std::int64_t q_end, int block, int stride,
                           const Rounder& round, std::span<float> mass) {
  const Problem& problem = input.problem;
  const std::int64_t head_dim = problem.head_dim;
  const std::int64_t row_size = stride * head_dim;
  const std::int64_t per_block = block / stride;
  const std::int64_t row_begin = q_begin * per_block;
  const std::int64_t row_end = std::min(q_end * per_block, num_blocks(problem.seqlen, stride));
  const std::int64_t num_kv_blocks = num_blocks(problem.seqlen, block);

  // A reduced query row is its stride group in reverse, so that its dot product with a reduced key
  // row, which is the group as it lies in memory, is the antidiagonal sum.
  std::vector<float> query_rows(static_cast<std::size_t>((row_end - row_begin) * row_size), 0.0f);
  for (std::int64_t a = row_begin; a < row_end; ++a) {
    for (std::int64_t u = 0; u < stride; ++u) {
      const std::int64_t token = a * stride + stride - 1 - u;
      if (token >= problem.seqlen) continue;
      const float* source = input.q_head(q_head) + token * head_dim;
      std::copy_n(source, head_dim, query_rows.data() + (a - row_begin) * row_size + u * head_dim);
    }
  }
  std::vector<float> scores(static_cast<std::size_t>((row_end - row_begin) * row_end));
  rounded_scores(query_rows.data(), row_end - row_begin, key_rows, row_end, row_size, round,
                 scores.data());

  const float scale = problem.softmax_scale / static_cast<float>(stride);
  std::fill(mass.begin(), mass.end(), 0.0f);
  for (std::int64_t a = row_begin; a < row_end; ++a) {
    Eigen::Map<Eigen::ArrayXf> row(scores.data() + (a - row_begin) * row_end, a + 1);
    row *= scale;
    softmax_row(std::span(row.data(), static_cast<std::size_t>(a + 1)));
    float* block_mass = mass.data() + (a / per_block - q_begin) * num_kv_blocks;
    for (std::int64_t b = 0; b <= a; b += per_block) {
      block_mass[b / per_block] += row.segment(b, std::min(per_block, a + 1 - b)).sum();
    }
  }
  round.apply(mass);
}

void xattention_select_row(std::span<const float> mass, std::int64_t q_block, double threshold,
                           bool first_chunk, std::uint8_t* selected) {
  double total = 0.0;
  for (const float block_mass : mass) total += block_mass;
  const double need = threshold * total;
  const auto at = [&](std::int64_t j) {
    return static_cast<double>(mass[static_cast<std::size_t>(j)]);
  };
  selected[0] = 1;
  selected[q_block] = 1;
  if (threshold >= 1.0) {
    std::fill(selected, selected + q_block + 1, std::uint8_t{1});
    return;
  }
  const bool credit_sink = !first_chunk && q_block > 0;
  double visited = at(q_block) + (credit_sink ? at(0) : 0.0);
  // Others, heaviest first. In the first chunk block 0 is one of them.
  const std::int64_t first_other = first_chunk ? 0 : 1;
  if (first_other >= q_block) return;
  const std::vector<std::int32_t> order = order_descending(mass.subspan(
      static_cast<std::size_t>(first_other), static_cast<std::size_t>(q_block - first_other)));
  double before_last = visited;  // mass visited before the latest other block
  for (std::size_t m = 0; m < order.size(); ++m) {
    const std::int64_t j = order[m] + first_other;
    const double tested = !first_chunk ? visited : m == 0 ? 0.0 : before_last;
    if (!(tested < need)) return;
    selected[j] = 1;
    before_last = visited;
    visited += at(j);
  }
}

namespace {

// Query blocks per strip: bounds the score buffer at 16 * block / stride rows of seqlen / stride.
constexpr std::int64_t kStripBlocks = 16;

XAttentionSettings settings_of(const ParamSet& params, const Problem& problem) {
  const auto block = static_cast<int>(params.get_int("block_size"));
  return {.block = block,
          .stride = static_cast<int>(params.get_int("stride")),
          .threshold = params.get_real("threshold"),
          .chunk = xattention_chunk(problem.seqlen),
          .fold = planned_fold(params, block)};
}

// Keys of every KV head padded with zeros to whole stride groups; empty when they are whole.
std::vector<std::vector<float>> padded_keys(const AttentionInput& input, int stride) {
  const Problem& problem = input.problem;
  std::vector<std::vector<float>> padded;
  if (problem.seqlen % stride == 0) return padded;
  const std::int64_t rows = num_blocks(problem.seqlen, stride) * stride;
  for (int h = 0; h < problem.num_kv_heads; ++h) {
    padded.emplace_back(input.k_head(h), input.k_head(h) + problem.seqlen * problem.head_dim);
    padded.back().resize(static_cast<std::size_t>(rows * problem.head_dim), 0.0f);
  }
  return padded;
}

}  // namespace

SparsePlan plan_xattention(const AttentionInput& input, const XAttentionSettings& settings,
                           const Rounder& round) {
  const Problem& problem = input.problem;
  const std::int64_t blocks = num_blocks(problem.seqlen, settings.block);
  const std::int64_t first_chunk_blocks = settings.chunk / settings.block;
  const std::int64_t strips = num_blocks(blocks, kStripBlocks);
  const auto padded = padded_keys(input, settings.stride);

  std::vector<BlockMask> masks(static_cast<std::size_t>(problem.num_q_heads),
                               BlockMask(blocks, blocks));
  parallel_for(problem.num_q_heads * strips, [&](std::int64_t work) {
    const int head = static_cast<int>(work / strips);
    const int kv_head = head / problem.group_size();
    const std::int64_t q_begin = work % strips * kStripBlocks;
    const std::int64_t q_end = std::min(q_begin + kStripBlocks, blocks);
    std::vector<float> mass(static_cast<std::size_t>((q_end - q_begin) * blocks));
    xattention_block_mass(
        input, head,
        padded.empty() ? input.k_head(kv_head) : padded[static_cast<std::size_t>(kv_head)].data(),
        q_begin, q_end, settings.block, settings.stride, round, mass);
    for (std::int64_t i = q_begin; i < q_end; ++i) {
      xattention_select_row(
          std::span(mass.data() + (i - q_begin) * blocks, static_cast<std::size_t>(blocks)), i,
          settings.threshold, i < first_chunk_blocks, masks[static_cast<std::size_t>(head)].row(i));
    }
  });
  SparsePlan plan = plan_from_block_masks(problem, settings.block, settings.block, masks);
  apply_fold(settings.fold, problem, plan);
  return plan;
}

namespace {

class XAttention final : public Method {
 public:
  const MethodInfo& info() const override {
    static const MethodInfo kInfo = {
        .name = "xattention",
        .title = "XAttention",
        .source = "arXiv 2503.16428",
        .summary = "blocks by antidiagonal sums, a share of each row's mass",
        .params = {ParamSpec::integer_of("stride", 8, {4, 8, 16}, "antidiagonal stride, tokens"),
                   ParamSpec::real("threshold", 0.9, "share of a row's estimated mass to keep", 0.0,
                                   1.0),
                   ParamSpec::integer_of("block_size", 128, {64, 128}, "tokens"), rounding_spec(),
                   compensation_spec()},
        .knob = "threshold",
        .knob_sweep = {0.995, 0.98, 0.95, 0.9, 0.8, 0.65, 0.3, 0.1},
        .full_budget = {.exists = true, .params = {{"threshold", 1.0}}},
        .device = {.settings = {{{"threshold", 0.9}},
                                {{"threshold", 0.7}, {"stride", 16}, {"compensation", "blocks"}},
                                {{"threshold", 0.9}, {"block_size", 64}, {"stride", 4}},
                                {{"threshold", 1.0}}},
                   .tie_share = 0.01},
    };
    return kInfo;
  }

  SparsePlan plan_cpu(const PlanContext& context, const ParamSet& params) const override {
    const AttentionInput& input = context.input;
    return plan_xattention(input, settings_of(params, input.problem), make_rounder(params, input));
  }

  std::unique_ptr<Planner> device_planner(const DevicePlanningRequest& request) const override {
    const XAttentionSettings settings = settings_of(request.params, request.problem);
    const bool has_device_code = settings.block / settings.stride >= 8;
    if (!rounds_officially(request) || !has_device_code) return nullptr;
    return xattention_planner(request.problem, settings, request.limits);
  }
};

}  // namespace

const Method& method_xattention() {
  static const XAttention kMethod;
  return kMethod;
}

}  // namespace s2o
