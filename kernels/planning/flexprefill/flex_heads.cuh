// Pattern of each head of FlexPrefill, and the block columns and diagonals it keeps (ops.h):
// one block of kCutThreads threads a head.
#pragma once

#include "kernels/planning/flexprefill/ops.h"
#include "kernels/planning/launch.cuh"
#include "kernels/planning/shared/block_cut.cuh"

namespace s2o::device {

template <int kHeadDim>
struct SharedFlex {
  SharedCut cut;
  float q_mean[kHeadDim];
  double warp_sums[kCutWarps];
  float warp_largest[kCutWarps];
  // Followed by num_blocks column masses, diagonal masses and estimated column masses.
};
template <int kHeadDim>
std::size_t flex_bytes(int num_blocks) {
  return sizeof(SharedFlex<kHeadDim>) + 3 * sizeof(float) * static_cast<std::size_t>(num_blocks);
}

template <class Element, int kHeadDim>
class FlexHead {
 public:
  S2O_DEVICE explicit FlexHead(const FlexHeadArgs& args)
      : args_(args),
        s_(*reinterpret_cast<SharedFlex<kHeadDim>*>(shared_memory())),
        head_(block_index()),
        columns_(reinterpret_cast<float*>(shared_memory() + sizeof(SharedFlex<kHeadDim>))),
        diagonals_(columns_ + args.num_blocks),
        estimated_(diagonals_ + args.num_blocks) {}

  S2O_DEVICE void run() {
    sum_blocks();
    average_queries();
    sync_block(kCutThreads);
    estimate();
    const bool query_aware = divergence_is_small();
    if (thread_index() == 0) args_.query_aware[head_] = query_aware ? 1 : 0;
    int num_columns = args_.min_blocks;
    int num_diagonals = args_.min_blocks;
    if (!query_aware) {
      num_columns = block_count(args_.mass);
      num_diagonals = block_count(args_.distance_mass);
    }
    // Column 0 and the main diagonal rank first.
    const int last = args_.num_blocks - 1;
    const int words = ceil_div(args_.num_blocks, 32);
    std::uint32_t* const column_bits = args_.column_bits + static_cast<std::int64_t>(head_) * words;
    std::uint32_t* const diagonal_bits =
        args_.diagonal_bits + static_cast<std::int64_t>(head_) * words;
    select(columns_, 0, num_columns,
           [column_bits](int, int j) { atomic_or(&column_bits[j / 32], 1u << (j % 32)); });
    select(diagonals_, last, num_diagonals, [diagonal_bits, last](int, int t) {
      atomic_or(&diagonal_bits[(last - t) / 32], 1u << ((last - t) % 32));
    });
  }

 private:
  // Masses of block columns, and of the bins that stand for block diagonals: bin t holds the
  // distances seqlen - 1 - c of c in block t.
  S2O_DEVICE void sum_blocks() {
    const float* const mass = args_.mass + head_ * args_.seqlen;
    const float* const by_distance = args_.distance_mass + head_ * args_.seqlen;
    for (int j = thread_index(); j < args_.num_blocks; j += kCutThreads) {
      const std::int64_t begin = static_cast<std::int64_t>(j) * args_.block;
      const std::int64_t end =
          begin + args_.block < args_.seqlen ? begin + args_.block : args_.seqlen;
      float column = 0.0f;
      float diagonal = 0.0f;
      for (std::int64_t x = begin; x < end; ++x) {
        column += load_global(mass + x);
        diagonal += load_global(by_distance + args_.seqlen - 1 - x);
      }
      columns_[j] = column;
      diagonals_[j] = diagonal;
    }
  }

  // Mean of the last `block` queries, each rounded after scaling.
  S2O_DEVICE void average_queries() {
    const int i = thread_index();
    if (i >= kHeadDim) return;
    const auto* q = static_cast<const std::uint16_t*>(args_.q) +
                    (head_ * args_.seqlen + args_.seqlen - args_.block) * kHeadDim + i;
    float sum = 0.0f;
#pragma unroll 8
    for (int row = 0; row < args_.block; ++row) {
      const float x = unpack_low<Element>(load_half_bits(q + row * kHeadDim));
      sum += rounded(x * args_.scale);
    }
    s_.q_mean[i] = rounded(sum / static_cast<float>(args_.block));
  }
  S2O_DEVICE static float rounded(float x) {
    return unpack_low<Element>(pack_pair<Element>(x, 0.0f));
  }

  // Softmax over all blocks of the mean query times the mean keys.
  S2O_DEVICE void estimate() {
    const auto* const keys =
        static_cast<const std::uint16_t*>(args_.key_means) +
        static_cast<std::int64_t>(head_ / args_.group_size) * args_.num_blocks * kHeadDim;
    float largest = kNegativeInfinity;
    for (int j = warp_index(); j < args_.num_blocks; j += kCutWarps) {
      float sum = 0.0f;
#pragma unroll
      for (int i = 0; i < kHeadDim / 32; ++i) {
        const int e = i * 32 + lane_index();
        const std::uint16_t bits =
            load_half_bits(keys + static_cast<std::int64_t>(j) * kHeadDim + e);
        sum = fused(s_.q_mean[e], unpack_low<Element>(bits), sum);
      }
      for (int mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
      const float score = rounded(sum);
      if (lane_index() == 0) estimated_[j] = score;
      largest = max_of(largest, score);
    }
    if (lane_index() == 0) s_.warp_largest[warp_index()] = largest;
    sync_block(kCutThreads);
    for (int warp = 0; warp < kCutWarps; ++warp) largest = max_of(largest, s_.warp_largest[warp]);
    double sum = 0.0;
    for (int j = thread_index(); j < args_.num_blocks; j += kCutThreads) {
      estimated_[j] = exp_natural(estimated_[j] - largest);
      sum += static_cast<double>(estimated_[j]);
    }
    const auto total = static_cast<float>(block_sum(sum));
    for (int j = thread_index(); j < args_.num_blocks; j += kCutThreads) {
      estimated_[j] = divide(estimated_[j], total);
    }
  }

  // sqrt(Jensen-Shannon divergence) < tau; an entry of exactly zero makes it NaN, hence false.
  S2O_DEVICE bool divergence_is_small() {
    double sum = 0.0;
    for (int j = thread_index(); j < args_.num_blocks; j += kCutThreads) {
      const float e = estimated_[j];
      const float v = columns_[j];
      const float m = 0.5f * (e + v);
      sum += static_cast<double>(e) * static_cast<double>(log_natural(divide(e, m))) +
             static_cast<double>(v) * static_cast<double>(log_natural(divide(v, m)));
    }
    const double divergence = 0.5 * block_sum(sum);
    return divergence >= 0.0 && divergence < args_.tau * args_.tau;
  }

  // In all threads, in a fixed order.
  S2O_DEVICE double block_sum(double value) {
    for (int mask = 16; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
    sync_block(kCutThreads);  // nobody reads the last sums any more
    if (lane_index() == 0) s_.warp_sums[warp_index()] = value;
    sync_block(kCutThreads);
    double sum = 0.0;
    for (int warp = 0; warp < kCutWarps; ++warp) sum += s_.warp_sums[warp];
    return sum;
  }

  // Blocks for the tokens that hold a mass of gamma; the 128 is upstream's, whatever the block.
  S2O_DEVICE int block_count(const float* masses) {
    const float* const mass = masses + head_ * args_.seqlen;
    const float gamma = args_.gamma;
    const BlockCut found = find_block_cut(
        s_.cut, [mass](int i) { return load_global(mass + i); }, static_cast<int>(args_.seqlen),
        [gamma](const CountAndSum& m) { return !(static_cast<float>(m.sum) <= gamma); },
        /*keep_crossing=*/false);
    const int count = (1 + found.kept) / 128 + 1;
    const int raised = count > args_.min_blocks ? count : args_.min_blocks;
    return min_of(raised, args_.num_blocks);
  }

  template <class Visit>
  S2O_DEVICE void select(const float* mass, int forced, int wanted, const Visit& visit) {
    const auto value_of = [mass, forced](int i) {
      return i == forced ? -kNegativeInfinity : mass[i];
    };
    const BlockCut found = find_block_cut(
        s_.cut, value_of, args_.num_blocks,
        [wanted](const CountAndSum& m) { return m.count >= wanted; }, /*keep_crossing=*/true);
    visit_kept(s_.cut, value_of, args_.num_blocks, found.cut, visit);
  }

  const FlexHeadArgs& args_;
  SharedFlex<kHeadDim>& s_;
  const int head_;
  float* const columns_;
  float* const diagonals_;
  float* const estimated_;
};

template <class Element, int kHeadDim>
struct FlexHeadsKernel {
  static constexpr const char* kName = "planning: patterns of heads";
  static constexpr int kThreads = kCutThreads;
  static constexpr int kMinBlocks = 0;
  static Grid grid(const FlexHeadArgs& args) {
    return {.blocks = args.num_heads, .shared_bytes = flex_bytes<kHeadDim>(args.num_blocks)};
  }
  S2O_DEVICE static void run(const FlexHeadArgs& args) { FlexHead<Element, kHeadDim>(args).run(); }
};

}  // namespace s2o::device
