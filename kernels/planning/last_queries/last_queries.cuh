// Mass that the last queries of a head give to each key (ops.h), in two passes over the
// same product: logits are cheap to compute again and never leave the registers. A block of threads
// holds up to 128 queries of a head and walks a chunk of keys.
#pragma once

#include <cstddef>

#include "kernels/device/cp_async.cuh"
#include "kernels/device/layout.cuh"
#include "kernels/device/mma_sm80.cuh"
#include "kernels/planning/last_queries/ops.h"
#include "kernels/planning/launch.cuh"
#include "kernels/planning/shared/platform_planning.cuh"

namespace s2o::device {

inline constexpr int kLastQueryThreads = 256;
inline constexpr int kLastQueryWarps = kLastQueryThreads / 32;
inline constexpr int kLastQueryColumns = 64;

template <int kHeadDim>
struct SharedLastQueries {
  alignas(128) unsigned char q[tile_bytes(kLastQueries, kHeadDim)];
  alignas(128) unsigned char k[2][tile_bytes(kLastQueryColumns, kHeadDim)];
  float warp_sums[kLastQueryWarps][kLastQueryColumns];
};
// Follows where sums by distance are asked for.
struct SharedDiagonals {
  float p[kLastQueries][kLastQueryColumns + 1];  // of a step
  float sums[kLastQueryDiagonals];
};

template <int kHeadDim>
std::size_t last_query_bytes(const LastQueryArgs& args) {
  return sizeof(SharedLastQueries<kHeadDim>) +
         (args.distance_mass != nullptr ? sizeof(SharedDiagonals) : 0);
}

template <class Element, int kHeadDim>
class LastQueryPass {
 public:
  S2O_DEVICE explicit LastQueryPass(const LastQueryArgs& args)
      : args_(args),
        s_(*reinterpret_cast<SharedLastQueries<kHeadDim>*>(shared_memory())),
        head_(block_index() / args.num_chunks),
        chunk_(block_index() % args.num_chunks),
        first_key_(static_cast<std::int64_t>(chunk_) * kLastQueryChunk),
        end_key_(first_key_ + kLastQueryChunk < args.num_keys ? first_key_ + kLastQueryChunk
                                                              : args.num_keys) {}

  // First pass: largest logit and normaliser of each query over the chunk.
  S2O_DEVICE void reduce_chunk() {
    float largest[2] = {kNegativeInfinity, kNegativeInfinity};
    float normaliser[2] = {0.0f, 0.0f};
    float poison = 0.0f;  // stays zero while all logits are finite
    for_each_step([&](int columns, const float(&logit)[kColumnTiles][4], std::int64_t key) {
      const int seen[2] = {visible(0, key, columns), visible(1, key, columns)};
      float step_largest[2] = {largest[0], largest[1]};
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          if (column_of(n, e) >= seen[e / 2]) continue;
          poison = fused(logit[n][e], 0.0f, poison);
          step_largest[e / 2] = max_of(step_largest[e / 2], logit[n][e]);
        }
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (step_largest[i] == kNegativeInfinity) continue;
        normaliser[i] *= exp2_fast((largest[i] - step_largest[i]) * kLog2E);
        largest[i] = step_largest[i];
        const float reference = largest[i] * kLog2E;
#pragma unroll
        for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            if (column_of(n, c) < seen[i]) {
              normaliser[i] += exp2_fast(fused(logit[n][2 * i + c], kLog2E, -reference));
            }
          }
        }
      }
    });
    if (poison != 0.0f) {
      atomic_max(args_.bad_row, ~static_cast<std::uint32_t>(head_ * args_.rows_per_head));
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float whole = quad_max(largest[i]);
      const float own = largest[i] == kNegativeInfinity
                            ? 0.0f
                            : normaliser[i] * exp2_fast((largest[i] - whole) * kLog2E);
      const float sum = quad_sum(own);
      if (lane_index() % 4 != 0) continue;
      const std::int64_t place = entry(chunk_, row_of(i));
      args_.largest[place] = whole;
      args_.normalisers[place] = sum;
    }
  }

  // Second pass: mass of the keys of the chunk.
  S2O_DEVICE void sum_chunk() {
    float reference[2];
    float inverse[2];
    bool exists[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const std::int64_t place = entry(args_.num_chunks, row_of(i));
      exists[i] = row_of(i) < args_.num_queries;
      reference[i] = args_.largest[place] * kLog2E;
      inverse[i] = exists[i] ? divide(1.0f, args_.normalisers[place]) : 0.0f;
    }
    const bool by_distance = args_.distance_mass != nullptr;
    if (by_distance) {
      for (int e = thread_index(); e < kLastQueryDiagonals; e += kLastQueryThreads) {
        diagonals().sums[e] = 0.0f;
      }
    }
    for_each_step([&](int columns, const float(&logit)[kColumnTiles][4], std::int64_t key) {
      const int seen[2] = {exists[0] ? visible(0, key, columns) : 0,
                           exists[1] ? visible(1, key, columns) : 0};
      static_assert(kColumnTiles == 8);
      float sums[2];
      sum_over_rows(
          [&](int column_pair) {
            const int n = column_pair / 2;
            const int c = column_pair % 2;
            float terms[2];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              const float e = exp2_fast(fused(logit[n][2 * i + c], kLog2E, -reference[i]));
              terms[i] = column_of(n, c) < seen[i] ? e * inverse[i] : 0.0f;
              if (by_distance) diagonals().p[row_of(i)][column_of(n, c)] = terms[i];
            }
            return terms[0] + terms[1];
          },
          sums);
      s_.warp_sums[warp_index()][lane_index() * 2] = sums[0];
      s_.warp_sums[warp_index()][lane_index() * 2 + 1] = sums[1];
      sync_block(kLastQueryThreads);
      if (thread_index() < columns) {
        float sum = 0.0f;
#pragma unroll
        for (int warp = 0; warp < kLastQueryWarps; ++warp) {
          sum += s_.warp_sums[warp][thread_index()];
        }
        args_.mass[head_ * args_.num_keys + key + thread_index()] = sum * args_.mass_factor;
      }
      if (by_distance) add_diagonal(static_cast<int>(key - first_key_));
    });
    if (!by_distance) return;
    sync_block(kLastQueryThreads);
    float* const target =
        args_.chunk_diagonals +
        (static_cast<std::int64_t>(head_) * args_.num_chunks + chunk_) * kLastQueryDiagonals;
    for (int e = thread_index(); e < kLastQueryDiagonals; e += kLastQueryThreads) {
      target[e] = diagonals().sums[e];
    }
  }

 private:
  static constexpr int kChunks = kHeadDim / kChunkElements;
  static constexpr int kColumnTiles = kLastQueryColumns / 8;

  S2O_DEVICE static SharedDiagonals& diagonals() {
    return *reinterpret_cast<SharedDiagonals*>(shared_memory() +
                                               sizeof(SharedLastQueries<kHeadDim>));
  }
  // Each thread adds one diagonal of the step.
  S2O_DEVICE void add_diagonal(int first_column) {
    const int offset = thread_index() - (kLastQueryColumns - 1);  // query - column
    if (offset >= kLastQueries) return;
    const int begin = offset > 0 ? offset : 0;
    const int end = min_of(kLastQueries, kLastQueryColumns + offset);
    float sum = 0.0f;
#pragma unroll 4
    for (int row = begin; row < end; ++row) sum += diagonals().p[row][row - offset];
    diagonals().sums[offset + kLastQueryChunk - 1 - first_column] += sum;
  }

  // Columns of the step at `key` that the thread's row i sees, of the `columns` that exist.
  S2O_DEVICE int visible(int i, std::int64_t key, int columns) const {
    if (!args_.causal) return columns;
    const auto past = static_cast<int>(args_.seqlen - args_.num_queries + row_of(i) + 1 - key);
    return min_of(past, columns);
  }
  S2O_DEVICE static int column_of(int n, int e) { return n * 8 + lane_index() % 4 * 2 + e % 2; }
  S2O_DEVICE static int row_of(int i) { return warp_index() * 16 + lane_index() / 4 + 8 * i; }
  S2O_DEVICE std::int64_t entry(int chunk, int row) const {
    return (static_cast<std::int64_t>(head_) * (args_.num_chunks + 1) + chunk) * kLastQueries + row;
  }

  S2O_DEVICE void load(std::uint32_t target, int num_rows, const void* source, std::int64_t first,
                       std::int64_t end) const {
    const int chunk = thread_index() % kChunks;
#pragma unroll 4
    for (int row = thread_index() / kChunks; row < num_rows; row += kLastQueryThreads / kChunks) {
      const bool exists = first + row < end;
      copy_async_16(
          target + static_cast<std::uint32_t>(swizzled_chunk_offset(num_rows, row, chunk)),
          static_cast<const std::uint16_t*>(source) + (exists ? first + row : first) * kHeadDim +
              chunk * kChunkElements,
          exists);
    }
  }
  S2O_DEVICE void load_keys(int step) const {
    const std::int64_t first = first_key_ + static_cast<std::int64_t>(step) * kLastQueryColumns;
    if (first >= end_key_) return;
    const std::int64_t base = head_ / args_.group_size * args_.seqlen;
    load(shared_address(s_.k[step % 2]), kLastQueryColumns, args_.k, base + first, base + end_key_);
  }

  // Calls visit(columns that exist, logits, first key) for every step of the chunk.
  template <class Visit>
  S2O_DEVICE void for_each_step(const Visit& visit) {
    const std::int64_t rows = head_ * args_.seqlen;
    load(shared_address(s_.q), kLastQueries, args_.q, rows + args_.seqlen - args_.num_queries,
         rows + args_.seqlen);
    load_keys(0);
    copy_async_commit();
    const auto lane = static_cast<unsigned>(lane_index());
    const MatrixPosition a_source = ldmatrix_a_source(lane);
    const MatrixPosition b_source = ldmatrix_b_source(lane);
    const std::uint32_t q_lane = swizzled_lane_address(
        shared_address(s_.q), warp_index() * 16 + a_source.row, a_source.column);
    for (int step = 0; first_key_ + step * kLastQueryColumns < end_key_; ++step) {
      copy_async_wait<0>();
      sync_block(kLastQueryThreads);  // keys are there, and the other buffer is read no more
      load_keys(step + 1);
      copy_async_commit();
      if (step == 0 && args_.scales_queries) scale_queries();
      float logit[kColumnTiles][4];
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) logit[n][e] = 0.0f;
      }
      const std::uint32_t k_lane =
          swizzled_lane_address(shared_address(s_.k[step % 2]), b_source.row, b_source.column);
#pragma unroll
      for (int part = 0; part < kHeadDim / 16; ++part) {
        std::uint32_t a[4];
        load_matrix_x4(a, swizzled_step_address(q_lane, kLastQueries, 0, 2 * part));
#pragma unroll
        for (int n = 0; n < kColumnTiles; n += 2) {
          std::uint32_t b[4];
          load_matrix_x4(b, swizzled_step_address(k_lane, kLastQueryColumns, n * 8, 2 * part));
          multiply_accumulate<Element>(logit[n], a, b[0], b[1]);
          multiply_accumulate<Element>(logit[n + 1], a, b[2], b[3]);
        }
      }
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const std::uint32_t raw = pack_pair<Element>(logit[n][2 * i], logit[n][2 * i + 1]);
          const float scale = args_.scales_queries ? 1.0f : args_.scale;
          const std::uint32_t scaled = pack_pair<Element>(unpack_low<Element>(raw) * scale,
                                                          unpack_high<Element>(raw) * scale);
          logit[n][2 * i] = unpack_low<Element>(scaled);
          logit[n][2 * i + 1] = unpack_high<Element>(scaled);
        }
      }
      const std::int64_t key = first_key_ + static_cast<std::int64_t>(step) * kLastQueryColumns;
      const int columns =
          end_key_ - key < kLastQueryColumns ? static_cast<int>(end_key_ - key) : kLastQueryColumns;
      visit(columns, logit, key);
    }
  }

  S2O_DEVICE void scale_queries() const {
    auto* const words = reinterpret_cast<std::uint32_t*>(s_.q);
    for (int i = thread_index(); i < kLastQueries * kHeadDim / 2; i += kLastQueryThreads) {
      words[i] = pack_pair<Element>(unpack_low<Element>(words[i]) * args_.scale,
                                    unpack_high<Element>(words[i]) * args_.scale);
    }
    sync_block(kLastQueryThreads);
  }

  const LastQueryArgs& args_;
  SharedLastQueries<kHeadDim>& s_;
  const int head_;
  const int chunk_;
  const std::int64_t first_key_;
  const std::int64_t end_key_;
};

// Between the passes: one block of kLastQueries threads a head.
S2O_DEVICE void combine_last_queries(const LastQueryArgs& args) {
  const std::int64_t base =
      static_cast<std::int64_t>(block_index()) * (args.num_chunks + 1) * kLastQueries +
      thread_index();
  float largest = kNegativeInfinity;
  for (int chunk = 0; chunk < args.num_chunks; ++chunk) {
    largest = max_of(largest, args.largest[base + static_cast<std::int64_t>(chunk) * kLastQueries]);
  }
  double sum = 0.0;
  for (int chunk = 0; chunk < args.num_chunks; ++chunk) {
    const std::int64_t place = base + static_cast<std::int64_t>(chunk) * kLastQueries;
    sum += static_cast<double>(args.normalisers[place]) *
           static_cast<double>(exp_natural(args.largest[place] - largest));
  }
  const std::int64_t place = base + static_cast<std::int64_t>(args.num_chunks) * kLastQueries;
  args.largest[place] = largest;
  args.normalisers[place] = static_cast<float>(sum);
}

inline constexpr int kDistanceThreads = 256;

// From sums of chunks to sums of distances: one thread a distance.
S2O_DEVICE void combine_distances(const LastQueryArgs& args) {
  const auto blocks = static_cast<int>((args.seqlen + kDistanceThreads - 1) / kDistanceThreads);
  const std::int64_t head = block_index() / blocks;
  const std::int64_t distance =
      static_cast<std::int64_t>(block_index() % blocks) * kDistanceThreads + thread_index();
  if (distance >= args.seqlen) return;
  // Entry of chunk 0; each further chunk's is kLastQueryChunk higher.
  const std::int64_t first = distance - (args.seqlen - args.num_queries) + kLastQueryChunk - 1;
  const std::int64_t lowest = first >= 0 ? 0 : (-first + kLastQueryChunk - 1) / kLastQueryChunk;
  float sum = 0.0f;
  for (std::int64_t chunk = lowest; chunk < args.num_chunks; ++chunk) {
    const std::int64_t entry = first + chunk * kLastQueryChunk;
    if (entry >= kLastQueryDiagonals) break;
    sum += args.chunk_diagonals[(head * args.num_chunks + chunk) * kLastQueryDiagonals + entry];
  }
  args.distance_mass[head * args.seqlen + distance] = sum * args.mass_factor;
}

// A pass over the keys: a block for each chunk of a head.
template <int kHeadDim>
struct LastQueryChunks {
  static constexpr int kThreads = kLastQueryThreads;
  static constexpr int kMinBlocks = 2;
  static Grid grid(const LastQueryArgs& args) {
    return {.blocks = std::int64_t{args.num_q_heads} * args.num_chunks,
            .shared_bytes = last_query_bytes<kHeadDim>(args)};
  }
};

template <class Element, int kHeadDim>
struct ReduceLastQueriesKernel : LastQueryChunks<kHeadDim> {
  static constexpr const char* kName = "planning: normalisers of the last queries";
  S2O_DEVICE static void run(const LastQueryArgs& args) {
    LastQueryPass<Element, kHeadDim>(args).reduce_chunk();
  }
};

struct CombineLastQueriesKernel {
  static constexpr const char* kName = "planning: normalisers of the last queries";
  static constexpr int kThreads = kLastQueries;
  static constexpr int kMinBlocks = 0;
  static Grid grid(const LastQueryArgs& args) { return {.blocks = args.num_q_heads}; }
  S2O_DEVICE static void run(const LastQueryArgs& args) { combine_last_queries(args); }
};

template <class Element, int kHeadDim>
struct SumLastQueriesKernel : LastQueryChunks<kHeadDim> {
  static constexpr const char* kName = "planning: mass of the last queries";
  S2O_DEVICE static void run(const LastQueryArgs& args) {
    LastQueryPass<Element, kHeadDim>(args).sum_chunk();
  }
};

struct CombineDistancesKernel {
  static constexpr const char* kName = "planning: mass by distance";
  static constexpr int kThreads = kDistanceThreads;
  static constexpr int kMinBlocks = 0;
  static Grid grid(const LastQueryArgs& args) {
    return {.blocks = args.num_q_heads * ((args.seqlen + kDistanceThreads - 1) / kDistanceThreads)};
  }
  S2O_DEVICE static void run(const LastQueryArgs& args) { combine_distances(args); }
};

}  // namespace s2o::device
