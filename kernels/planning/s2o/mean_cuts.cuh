// What the classes of each row are (MeanCutArgs), from a sample of its scores: a block has some
// rows of a KV head, the logits of their means with the sampled keys on the tensor cores; then a
// warp a row finds the best score, the worst, and the one that as many samples exceed as the order
// is meant to list.
#pragma once

#include "kernels/device/layout.cuh"
#include "kernels/device/mma_sm80.cuh"
#include "kernels/planning/launch.cuh"
#include "kernels/planning/s2o/ops.h"
#include "kernels/planning/s2o/row_ops.h"
#include "kernels/planning/shared/platform_planning.cuh"

namespace s2o::device {

inline constexpr float kLargestShift = 32768.0f;
inline constexpr int kCutWarps = 8;
inline constexpr int kCutThreads = kCutWarps * 32;
static_assert(kCutRows % kCutWarps == 0 && kCutRows % 8 == 0);
static_assert(kCutSamples % (16 * kCutWarps) == 0);

struct SharedCuts {
  // Padded: lanes of a quad write to different banks.
  float scores[kCutRows][kCutSamples + 4];
};

template <class Element, int kHeadDim>
class MeanCuts {
 public:
  S2O_DEVICE explicit MeanCuts(const MeanCutArgs& args)
      : args_(args), s_(*reinterpret_cast<SharedCuts*>(shared_memory())) {
    num_rows_ = args.shape.num_segments * args.shape.lists_per_kv_head;
    const int tiles = ceil_div(num_rows_, kCutRows);
    kv_head_ = block_index() / tiles;
    first_row_ = block_index() % tiles * kCutRows;
  }

  S2O_DEVICE void run() {
    const int longest = length_of(min_of(first_row_ + kCutRows, num_rows_) - 1);
    if (longest == 0) return;
    score_samples(longest, cut_sample_stride(args_.shape, first_row_));
    sync_block(kCutThreads);
    for (int r = warp_index(); r < kCutRows; r += kCutWarps) {
      const int row = first_row_ + r;
      if (row < num_rows_ && length_of(row) > 0) cut(row);
    }
  }

 private:
  // A lane of a quad has 8 of 32 neighbouring columns, which are its columns of two products: in
  // keys and means alike, so that it does not matter that products call them by other numbers.
  static constexpr int kSteps = kHeadDim / 32;
  static constexpr int kRowSets = kCutRows / 8;

  S2O_DEVICE int length_of(int row) const {
    return static_cast<int>(args_.shape.history_length(row / args_.shape.lists_per_kv_head));
  }

  S2O_DEVICE void score_samples(int longest, std::int64_t stride) const {
    const int group = lane_index() / 4;
    const int column = lane_index() % 4 * 8;
    const auto* const all_means = static_cast<const std::uint16_t*>(args_.means);
    Words4 mean[kRowSets][kSteps];
    int lengths[kRowSets][2];
#pragma unroll
    for (int set = 0; set < kRowSets; ++set) {
      const int row = min_of(first_row_ + set * 8 + group, num_rows_ - 1);
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        mean[set][step] = load_global_16(
            all_means + (std::int64_t{kv_head_} * num_rows_ + row) * kHeadDim + step * 32 + column);
      }
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int scored = first_row_ + set * 8 + lane_index() % 4 * 2 + e;
        lengths[set][e] = scored < num_rows_ ? length_of(scored) : 0;
      }
    }
    const auto* const keys =
        static_cast<const std::uint16_t*>(args_.k) + kv_head_ * args_.shape.seqlen * kHeadDim;
#pragma unroll 1
    for (int first = warp_index() * 16; first < kCutSamples; first += kCutWarps * 16) {
      int key[2];
      Words4 words[2][kSteps];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        key[half] = static_cast<int>(sampled_key(first + half * 8 + group, stride));
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
          words[half][step] =
              key[half] < longest
                  ? load_global_16(keys + std::int64_t{key[half]} * kHeadDim + step * 32 + column)
                  : Words4{};
        }
      }
#pragma unroll
      for (int set = 0; set < kRowSets; ++set) {
        float score[4] = {};
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
#pragma unroll
          for (int w = 0; w < 4; w += 2) {
            const std::uint32_t a[4] = {words[0][step].word[w], words[1][step].word[w],
                                        words[0][step].word[w + 1], words[1][step].word[w + 1]};
            multiply_accumulate<Element>(score, a, mean[set][step].word[w],
                                         mean[set][step].word[w + 1]);
          }
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int row = set * 8 + lane_index() % 4 * 2 + i % 2;
          s_.scores[row][first + i / 2 * 8 + group] =
              key[i / 2] < lengths[set][i % 2] ? score[i] : kNegativeInfinity;
        }
      }
    }
  }

  S2O_DEVICE void cut(int row) const {
    constexpr int kOwn = kCutSamples / 32;
    float score[kOwn];
    float largest = kNegativeInfinity;
    float smallest = -kNegativeInfinity;
    int count = 0;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      score[i] = s_.scores[row - first_row_][i * 32 + lane_index()];
      largest = max_of(largest, score[i]);
      if (score[i] == kNegativeInfinity) continue;
      smallest = min_of(smallest, score[i]);
      ++count;
    }
#pragma unroll
    for (int mask = 1; mask < 32; mask *= 2) {
      largest = max_of(largest, shuffle_xor(largest, mask));
      smallest = min_of(smallest, shuffle_xor(smallest, mask));
    }
    const auto samples = static_cast<float>(warp_sum(static_cast<std::uint32_t>(count)));
    const std::int64_t segment = row / args_.shape.lists_per_kv_head;
    const auto length = static_cast<float>(args_.shape.history_length(segment));
    const auto room = static_cast<float>(args_.shape.order_length(segment));
    float threshold = smallest;
    if (room < length) {
      const auto wanted = static_cast<std::uint32_t>(samples * (kCutAim * room / length));
      threshold = largest;
      // To a part in 16,384 of the range.
      for (int step = 0; step < 14; ++step) {
        const float middle = 0.5f * (smallest + threshold);
        std::uint32_t above = 0;
#pragma unroll
        for (int i = 0; i < kOwn; ++i) above += score[i] >= middle ? 1u : 0u;
        if (warp_sum(above) > wanted) {
          smallest = middle;
        } else {
          threshold = middle;
        }
      }
    }
    if (lane_index() != 0) return;
    // Classes are found in fp16. NOTE: not of NaN, so compared this way round.
    const float steps = static_cast<float>(kMeanClasses - 3) / (largest - threshold);
    const float most = kLargestShift / max_of(absolute(threshold), absolute(largest));
    const bool has_range = steps > 0.0f && most > 0.0f && min_of(steps, most) < kLargestShift;
    const float scale =
        has_range ? unpack_low<Fp16>(pack_pair<Fp16>(min_of(steps, most), 0.0f)) : 0.0f;
    const int list = kv_head_ * args_.shape.lists_per_kv_head + row % args_.shape.lists_per_kv_head;
    args_.cuts[list * args_.shape.num_segments + segment] = {
        .scale = scale,
        .shift = has_range ? fused(-threshold, scale, 1.0f) : 1.0f,
        .lowest = room < length ? 0u : 1u};
  }

  const MeanCutArgs& args_;
  SharedCuts& s_;
  int num_rows_;  // of a KV head
  int kv_head_;
  int first_row_;
};

template <class Element, int kHeadDim>
struct MeanCutsKernel {
  static constexpr const char* kName = "planning: cuts of scores";
  static constexpr int kThreads = kCutThreads;
  static constexpr int kMinBlocks = 2;
  static Grid grid(const MeanCutArgs& args) {
    const int rows = args.shape.num_segments * args.shape.lists_per_kv_head;
    return {.blocks = std::int64_t{args.shape.num_kv_heads} * ceil_div(rows, kCutRows),
            .shared_bytes = sizeof(SharedCuts)};
  }
  S2O_DEVICE static void run(const MeanCutArgs& args) { MeanCuts<Element, kHeadDim>(args).run(); }
};

}  // namespace s2o::device
