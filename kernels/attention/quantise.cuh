// Device code of quantise.h: a warp takes a row of 128 elements, four neighbours a lane.
#pragma once

#include "kernels/attention/quantise.h"
#include "kernels/attention/quantised_input.h"
#include "kernels/device/e4m3_sm90.cuh"
#include "kernels/device/platform.cuh"

namespace s2o::device {

struct QuantiseArgs {
  const void* q;
  const void* k;
  const void* v;
  QuantisedInput out;
  QuantiseRule rule;
  std::int64_t seqlen;
  int num_q_heads, num_kv_heads;
  float softmax_scale;
};
inline QuantiseArgs quantise_args(const DeviceInput& input, QuantiseRule rule,
                                  const QuantisedInput& out) {
  const Problem& problem = input.problem;
  return {.q = input.q,
          .k = input.k,
          .v = input.v,
          .out = out,
          .rule = rule,
          .seqlen = problem.seqlen,
          .num_q_heads = problem.num_q_heads,
          .num_kv_heads = problem.num_kv_heads,
          .softmax_scale = problem.softmax_scale};
}

inline constexpr int kQuantisedColumns = 128;
inline constexpr int kQuantisePart = 3 * kQuantisedColumns + 2;
inline constexpr int kQuantiseThreads = 256;

struct RowPart {
  float x[4];
};

template <class Element>
S2O_DEVICE RowPart load_row_part(const void* tensor, std::int64_t row, int lane) {
  const auto* const source =
      static_cast<const std::uint16_t*>(tensor) + row * kQuantisedColumns + lane * 4;
  const Words<2> words = load_global_words<2>(source);
  return {{unpack_low<Element>(words.word[0]), unpack_high<Element>(words.word[0]),
           unpack_low<Element>(words.word[1]), unpack_high<Element>(words.word[1])}};
}

// x H, normalised: columns of a lane first, then lanes.
S2O_DEVICE void rotate(RowPart& part) {
  const float a = part.x[0] + part.x[1], b = part.x[0] - part.x[1];
  const float c = part.x[2] + part.x[3], d = part.x[2] - part.x[3];
  part = {{a + c, b + d, a - c, b - d}};
#pragma unroll
  for (int mask = 1; mask < 32; mask *= 2) {
    const bool upper = (lane_index() & mask) != 0;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float other = shuffle_xor(part.x[e], mask);
      part.x[e] = upper ? other - part.x[e] : part.x[e] + other;
    }
  }
  constexpr float kNorm = 0.08838834764831845f;  // 128^-1/2
#pragma unroll
  for (int e = 0; e < 4; ++e) part.x[e] *= kNorm;
}

// |x| as bits: their order is that of sizes, and NaN is the largest.
S2O_DEVICE std::uint32_t size_bits(float x) { return float_bits(x) & 0x7fffffffu; }
S2O_DEVICE std::uint32_t larger(std::uint32_t a, std::uint32_t b) { return a > b ? a : b; }

// Not below what numbers can be divided by; NaN stays.
S2O_DEVICE float scale_of(float largest, float steps) {
  constexpr float kLeast = 1.17549435e-38f;
  const float scale = (largest == 0.0f ? 1.0f : largest) / steps;
  return scale < kLeast ? kLeast : scale;
}

// Statistics of one part of a head's keys and values, by a block.
template <class Element>
S2O_DEVICE void quantise_statistics(const QuantiseArgs& args, int head, int part, float* shared) {
  const int warps = kQuantiseThreads / 32;
  const std::int64_t rows = (args.seqlen + kQuantiseParts - 1) / kQuantiseParts;
  const std::int64_t begin = part * rows;
  const std::int64_t end = begin + rows < args.seqlen ? begin + rows : args.seqlen;
  const int lane = lane_index();
  RowPart sum{}, low, high;
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    low.x[e] = -kNegativeInfinity;
    high.x[e] = kNegativeInfinity;
  }
  std::uint32_t largest = 0;
  float squares = 0.0f;
  for (std::int64_t token = begin + warp_index(); token < end; token += warps) {
    const std::int64_t row = head * args.seqlen + token;
    RowPart k = load_row_part<Element>(args.k, row, lane);
    const RowPart v = load_row_part<Element>(args.v, row, lane);
    if (args.rule.rotate_qk) rotate(k);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      sum.x[e] += k.x[e];
      low.x[e] = min_of(low.x[e], k.x[e]);
      high.x[e] = max_of(high.x[e], k.x[e]);
      largest = larger(largest, size_bits(v.x[e]));
      squares += k.x[e] * k.x[e];
    }
  }
  float* const own = shared + warp_index() * (kQuantisePart + 2);
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    own[lane * 4 + e] = sum.x[e];
    own[kQuantisedColumns + lane * 4 + e] = low.x[e];
    own[2 * kQuantisedColumns + lane * 4 + e] = high.x[e];
  }
  largest = warp_maximum(largest);
#pragma unroll
  for (int mask = 1; mask < 32; mask *= 2) squares += shuffle_xor(squares, mask);
  if (lane == 0) {
    own[3 * kQuantisedColumns] = bits_float(largest);
    own[3 * kQuantisedColumns + 1] = squares;
  }
  sync_block(kQuantiseThreads);
  float* const out =
      args.out.parts + (static_cast<std::int64_t>(head) * kQuantiseParts + part) * kQuantisePart;
  for (int i = thread_index(); i < kQuantisePart; i += kQuantiseThreads) {
    float value = shared[i];
    for (int w = 1; w < warps; ++w) {
      const float other = shared[w * (kQuantisePart + 2) + i];
      if (i < kQuantisedColumns || i == kQuantisePart - 1) {
        value += other;
      } else if (i < 2 * kQuantisedColumns) {
        value = min_of(value, other);
      } else if (i < 3 * kQuantisedColumns) {
        value = max_of(value, other);
      } else {
        value = bits_float(larger(float_bits(value), float_bits(other)));
      }
    }
    out[i] = value;
  }
}

// What quantise_scales shares.
struct SharedScales {
  std::uint32_t largest[2];  // of k' and v, bits
  float mean_squares[kQuantisedColumns];
  float squares[kQuantiseParts];
};

// Means and scales of a head, by a block.
S2O_DEVICE void quantise_scales(const QuantiseArgs& args, int head, SharedScales& shared) {
  const float* const parts =
      args.out.parts + static_cast<std::int64_t>(head) * kQuantiseParts * kQuantisePart;
  const int column = thread_index();
  if (column < 2) shared.largest[column] = 0;
  sync_block(kQuantiseThreads);
  if (column < kQuantisedColumns) {
    float sum = 0.0f, low = -kNegativeInfinity, high = kNegativeInfinity;
    for (int part = 0; part < kQuantiseParts; ++part) {
      const float* const from = parts + part * kQuantisePart + column;
      sum += from[0];
      low = min_of(low, from[kQuantisedColumns]);
      high = max_of(high, from[2 * kQuantisedColumns]);
    }
    // Sums carry what is not finite, which minima and maxima pass over.
    const float mean = sum / static_cast<float>(args.seqlen);
    const float centre = args.rule.smooth_k ? mean : mean * 0.0f;
    args.out.mean[head * kQuantisedColumns + column] = centre;
    shared.mean_squares[column] = centre * centre;
    atomic_max(&shared.largest[0], larger(size_bits(high - centre), size_bits(centre - low)));
  } else if (column < kQuantisedColumns + kQuantiseParts) {
    const int part = column - kQuantisedColumns;
    const float* const from = parts + part * kQuantisePart + 3 * kQuantisedColumns;
    atomic_max(&shared.largest[1], float_bits(from[0]));
    shared.squares[part] = from[1];
  }
  sync_block(kQuantiseThreads);
  const int group = args.num_q_heads / args.num_kv_heads;
  for (int i = column; i < group; i += kQuantiseThreads) {
    args.out.query_check[head * group + i] = 1.0f;
  }
  if (column == 0) {
    float squares = 0.0f, of_means = 0.0f;
    for (const float part : shared.squares) squares += part;
    for (const float mean : shared.mean_squares) of_means += mean;
    const auto rows = static_cast<float>(args.seqlen);
    const float mean_square = max_of(squares / rows - of_means, 0.0f) / kQuantisedColumns;
    const float largest = bits_float(shared.largest[0]);
    // A mean that is large beside what varies leaves few bits of mean_square: it is not trusted far
    // below the squares that it came from.
    const float floor = 1e-5f * squares / rows / kQuantisedColumns;
    const float spread_squared = largest * largest / max_of(mean_square, floor);
    args.out.key_scale[head] = spread_squared > kLargestSpread * kLargestSpread
                                   ? bits_float(refused_scale(float_bits(spread_squared)))
                                   : scale_of(largest, 127.0f);
    args.out.value_scale[head] =
        scale_of(bits_float(shared.largest[1]), args.out.v_rows != nullptr ? 1.0f : kLargestE4m3);
  }
}

S2O_DEVICE std::uint32_t pack_integers(const RowPart& part, float inverse) {
  std::uint32_t packed = 0;
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    // Adding 1.5 * 2^23 rounds to an integer, to nearest even; its low byte is the number's.
    const float scaled = max_of(-127.0f, min_of(127.0f, part.x[e] * inverse));
    packed |= (float_bits(scaled + 12582912.0f) & 0xffu) << 8 * e;
  }
  return packed;
}

template <class Element>
S2O_DEVICE void quantise_query(const QuantiseArgs& args, std::int64_t row) {
  const int lane = lane_index();
  const int q_head = static_cast<int>(row / args.seqlen);
  const int kv_head = q_head / (args.num_q_heads / args.num_kv_heads);
  RowPart q = load_row_part<Element>(args.q, row, lane);
  if (args.rule.rotate_qk) rotate(q);
  std::uint32_t largest = 0;
  float dot = 0.0f;
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    largest = larger(largest, size_bits(q.x[e]));
    dot += q.x[e] * load_global(args.out.mean + kv_head * kQuantisedColumns + lane * 4 + e);
  }
  const float scale = scale_of(bits_float(warp_maximum(largest)), 127.0f);
#pragma unroll
  for (int mask = 1; mask < 32; mask *= 2) dot += shuffle_xor(dot, mask);
  reinterpret_cast<std::uint32_t*>(args.out.q + row * kQuantisedColumns)[lane] =
      pack_integers(q, 1.0f / scale);
  if (lane != 0) return;
  const float logit_scale =
      args.softmax_scale * kLog2E * (scale * load_global(args.out.key_scale + kv_head));
  // NOTE: not so for NaN either.
  if (!(logit_scale < kLargestLogitScale)) {
    atomic_max(reinterpret_cast<std::uint32_t*>(args.out.query_check + q_head),
               refused_scale(float_bits(logit_scale)));
  }
  args.out.logit_scale[row] = logit_scale;
  args.out.lse_shift[row] = args.softmax_scale * dot;
}

template <class Element>
S2O_DEVICE void quantise_key(const QuantiseArgs& args, std::int64_t row) {
  const int lane = lane_index();
  const int head = static_cast<int>(row / args.seqlen);
  RowPart k = load_row_part<Element>(args.k, row, lane);
  if (args.rule.rotate_qk) rotate(k);
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    k.x[e] -= load_global(args.out.mean + head * kQuantisedColumns + lane * 4 + e);
  }
  reinterpret_cast<std::uint32_t*>(args.out.k + row * kQuantisedColumns)[lane] =
      pack_integers(k, 1.0f / load_global(args.out.key_scale + head));
}

// Values of a group of 16 keys of a head: its rows in fp16, or its 16 bytes of every column in
// e4m3. Shared: a warp's [16][132] bytes.
template <class Element>
S2O_DEVICE void quantise_values(const QuantiseArgs& args, int head, std::int64_t group,
                                unsigned char* shared) {
  constexpr int kPitch = kQuantisedColumns + 4;
  const int lane = lane_index();
  const float inverse = 1.0f / load_global(args.out.value_scale + head);
#pragma unroll 4
  for (int key = 0; key < kQuantisedGroup; ++key) {
    const std::int64_t token = group * kQuantisedGroup + key;
    std::uint32_t packed = 0;
    if (token < args.seqlen) {
      const std::int64_t row = head * args.seqlen + token;
      RowPart v = load_row_part<Element>(args.v, row, lane);
#pragma unroll
      for (int e = 0; e < 4; ++e) v.x[e] *= inverse;
      if (args.out.v_rows != nullptr) {
        store_words<2>(
            args.out.v_rows + row * kQuantisedColumns + lane * 4,
            Words<2>{{pack_pair<Fp16>(v.x[0], v.x[1]), pack_pair<Fp16>(v.x[2], v.x[3])}});
        continue;
      }
      packed = pack_e4m3(v.x[0], v.x[1]) | pack_e4m3(v.x[2], v.x[3]) << 16;
    }
    *reinterpret_cast<std::uint32_t*>(shared + quantised_place(key) * kPitch + lane * 4) = packed;
  }
  if (args.out.v_rows != nullptr) return;
  sync_warp();
  const std::int64_t padded = quantised_padding(args.seqlen);
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const int column = e * 32 + lane;
    Words<4> words;
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      std::uint32_t word = 0;
#pragma unroll
      for (int b = 0; b < 4; ++b) {
        word |= static_cast<std::uint32_t>(shared[(w * 4 + b) * kPitch + column]) << 8 * b;
      }
      words.word[w] = word;
    }
    store_words<4>(args.out.v_columns +
                       (static_cast<std::int64_t>(head) * kQuantisedColumns + column) * padded +
                       group * kQuantisedGroup,
                   words);
  }
}

// Work of a warp of the last launch: groups of values, rows of keys, rows of queries.
template <class Element>
S2O_DEVICE void quantise_warp(const QuantiseArgs& args, std::int64_t item, unsigned char* shared) {
  constexpr int kRows = 16;
  const std::int64_t groups = quantised_padding(args.seqlen) / kQuantisedGroup;
  if (item < groups * args.num_kv_heads) {
    quantise_values<Element>(args, static_cast<int>(item / groups), item % groups, shared);
    return;
  }
  item -= groups * args.num_kv_heads;
  const std::int64_t key_rows = args.seqlen * args.num_kv_heads;
  const std::int64_t key_items = (key_rows + kRows - 1) / kRows;
  const bool keys = item < key_items;
  const std::int64_t rows = keys ? key_rows : args.seqlen * args.num_q_heads;
  const std::int64_t begin = (keys ? item : item - key_items) * kRows;
#pragma unroll 4
  for (int i = 0; i < kRows; ++i) {
    if (begin + i >= rows) return;
    if (keys) {
      quantise_key<Element>(args, begin + i);
    } else {
      quantise_query<Element>(args, begin + i);
    }
  }
}
S2O_HOST_DEVICE std::int64_t quantise_items(std::int64_t seqlen, int num_q_heads,
                                            int num_kv_heads) {
  return quantised_padding(seqlen) / kQuantisedGroup * num_kv_heads +
         (seqlen * num_kv_heads + 15) / 16 + (seqlen * num_q_heads + 15) / 16;
}

}  // namespace s2o::device
