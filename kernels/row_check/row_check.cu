// Two launches: a block takes kRowCheckKeys keys of a KV head for one row of the query heads that
// share it, so that K and V are read once a group; then a warp a row joins the blocks and compares.
// Rows are few: the time is that of reading K and V once a row.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <string>

#include "kernels/common/cuda_check.h"
#include "kernels/common/error.h"
#include "kernels/row_check/row_check.h"

namespace s2o {
namespace {

constexpr int kThreads = 128;
constexpr int kHeads = 4;  // query heads of a block; larger groups take several

__device__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ float to_float(__half x) { return __half2float(x); }

// A block's share of a row: output before division, largest score and sum of weights.
__host__ __device__ constexpr int entry_size(int head_dim) { return head_dim + 2; }

struct Shape {
  std::int64_t seqlen;
  int num_q_heads;
  int group_size;
  int groups_per_kv_head;  // of kHeads query heads
  int num_rows;
  int num_splits;
  float scale;
};

// Block (split, row, group).
template <class Element, int kHeadDim>
__global__ void __launch_bounds__(kThreads, 4)
    row_parts_kernel(Shape shape, const Element* __restrict__ q, const Element* __restrict__ k,
                     const Element* __restrict__ v, const std::int64_t* __restrict__ rows,
                     float* __restrict__ partial) {
  __shared__ float s_q[kHeads][kHeadDim];
  __shared__ float s_weights[kHeads][kRowCheckKeys];
  __shared__ float s_reduced[kHeads][kThreads / 32];
  const int split = static_cast<int>(blockIdx.x);
  const int row_index = static_cast<int>(blockIdx.y);
  const int kv_head = static_cast<int>(blockIdx.z) / shape.groups_per_kv_head;
  const int first = static_cast<int>(blockIdx.z) % shape.groups_per_kv_head * kHeads;
  const int heads = min(kHeads, shape.group_size - first);
  const int first_head = kv_head * shape.group_size + first;
  const int thread = static_cast<int>(threadIdx.x);
  const std::int64_t row = rows[row_index];
  const std::int64_t begin = static_cast<std::int64_t>(split) * kRowCheckKeys;
  const int count =
      static_cast<int>(max(std::int64_t{0}, min(std::int64_t{kRowCheckKeys}, row + 1 - begin)));
  const auto entry = [&](int head) {
    return partial + ((static_cast<std::int64_t>(first_head + head) * shape.num_rows + row_index) *
                          shape.num_splits +
                      split) *
                         entry_size(kHeadDim);
  };
  if (count == 0) {
    for (int head = thread; head < heads; head += kThreads) {
      entry(head)[kHeadDim] = -INFINITY;
      entry(head)[kHeadDim + 1] = 0.0f;
    }
    return;
  }
  for (int i = thread; i < kHeads * kHeadDim; i += kThreads) {
    const int head = i / kHeadDim;
    s_q[head][i % kHeadDim] =
        head < heads
            ? to_float(
                  q[(static_cast<std::int64_t>(first_head + head) * shape.seqlen + row) * kHeadDim +
                    i % kHeadDim]) *
                  shape.scale
            : 0.0f;
  }
  __syncthreads();

  const std::int64_t kv_offset = (kv_head * shape.seqlen + begin) * kHeadDim;
  float largest[kHeads];
  for (int head = 0; head < kHeads; ++head) largest[head] = -INFINITY;
  for (int key = thread; key < count; key += kThreads) {
    const auto* const words =
        reinterpret_cast<const uint4*>(k + kv_offset + static_cast<std::int64_t>(key) * kHeadDim);
    float scores[kHeads] = {};
    for (int w = 0; w < kHeadDim / 8; ++w) {
      const uint4 word = __ldg(words + w);
      const auto* const elements = reinterpret_cast<const Element*>(&word);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float x = to_float(elements[i]);
#pragma unroll
        for (int head = 0; head < kHeads; ++head) scores[head] += x * s_q[head][w * 8 + i];
      }
    }
    for (int head = 0; head < kHeads; ++head) {
      s_weights[head][key] = scores[head];
      largest[head] = fmaxf(largest[head], scores[head]);
    }
  }
  for (int head = 0; head < kHeads; ++head) {
    float x = largest[head];
    for (int mask = 16; mask > 0; mask /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, mask));
    if (thread % 32 == 0) s_reduced[head][thread / 32] = x;
  }
  __syncthreads();
  for (int head = 0; head < kHeads; ++head) {
    largest[head] = s_reduced[head][0];
    for (int warp = 1; warp < kThreads / 32; ++warp) {
      largest[head] = fmaxf(largest[head], s_reduced[head][warp]);
    }
    for (int key = thread; key < count; key += kThreads) {
      s_weights[head][key] = __expf(s_weights[head][key] - largest[head]);
    }
  }
  __syncthreads();

  // A thread takes every kThreads-th dimension, and sums the weights that it reads anyway.
  constexpr int kDims = (kHeadDim + kThreads - 1) / kThreads;
  float sums[kHeads] = {};
  float out[kDims][kHeads] = {};
  for (int key = 0; key < count; ++key) {
    const Element* const values = v + kv_offset + static_cast<std::int64_t>(key) * kHeadDim;
#pragma unroll
    for (int head = 0; head < kHeads; ++head) sums[head] += s_weights[head][key];
#pragma unroll
    for (int d = 0; d < kDims; ++d) {
      const int dim = thread + d * kThreads;
      const float x = dim < kHeadDim ? to_float(values[dim]) : 0.0f;
#pragma unroll
      for (int head = 0; head < kHeads; ++head) out[d][head] += s_weights[head][key] * x;
    }
  }
  for (int head = 0; head < heads; ++head) {
#pragma unroll
    for (int d = 0; d < kDims; ++d) {
      const int dim = thread + d * kThreads;
      if (dim < kHeadDim) entry(head)[dim] = out[d][head];
    }
    if (thread == 0) {
      entry(head)[kHeadDim] = largest[head];
      entry(head)[kHeadDim + 1] = sums[head];
    }
  }
}

// Block (row, query head) of one warp.
template <class Element, int kHeadDim>
__global__ void __launch_bounds__(32)
    row_errors_kernel(Shape shape, const Element* __restrict__ out,
                      const std::int64_t* __restrict__ rows, const float* __restrict__ partial,
                      RowError* __restrict__ errors) {
  const int row_index = static_cast<int>(blockIdx.x);
  const int head = static_cast<int>(blockIdx.y);
  const int lane = static_cast<int>(threadIdx.x);
  const std::int64_t place = static_cast<std::int64_t>(head) * shape.num_rows + row_index;
  const float* const entries = partial + place * shape.num_splits * entry_size(kHeadDim);
  float largest = -INFINITY;
  for (int split = 0; split < shape.num_splits; ++split) {
    largest = fmaxf(largest, entries[split * entry_size(kHeadDim) + kHeadDim]);
  }
  float sum = 0.0f;
  float exact[kHeadDim / 32] = {};
  for (int split = 0; split < shape.num_splits; ++split) {
    const float* const entry = entries + split * entry_size(kHeadDim);
    if (entry[kHeadDim] == -INFINITY) continue;  // no key at or before the row
    const float factor = __expf(entry[kHeadDim] - largest);
    sum += factor * entry[kHeadDim + 1];
    for (int i = 0; i < kHeadDim / 32; ++i) exact[i] += factor * entry[i * 32 + lane];
  }
  const Element* const found =
      out + (static_cast<std::int64_t>(head) * shape.seqlen + rows[row_index]) * kHeadDim;
  double error = 0.0;
  double reference = 0.0;
  for (int i = 0; i < kHeadDim / 32; ++i) {
    const double wanted = exact[i] / sum;
    const double difference = static_cast<double>(to_float(found[i * 32 + lane])) - wanted;
    error += difference * difference;
    reference += wanted * wanted;
  }
  for (int mask = 16; mask > 0; mask /= 2) {
    error += __shfl_xor_sync(~0u, error, mask);
    reference += __shfl_xor_sync(~0u, reference, mask);
  }
  if (lane != 0) return;
  errors[place].error = error;
  errors[place].reference = reference;
}

int num_splits(std::int64_t seqlen) {
  return static_cast<int>((seqlen + kRowCheckKeys - 1) / kRowCheckKeys);
}

template <class Element, int kHeadDim>
void launch_of(const RowCheckArgs& args, CUstream_st* stream) {
  const Problem& problem = args.input.problem;
  const int groups = (problem.group_size() + kHeads - 1) / kHeads;
  const Shape shape = {problem.seqlen, problem.num_q_heads,        problem.group_size(), groups,
                       args.num_rows,  num_splits(problem.seqlen), problem.softmax_scale};
  const auto rows = static_cast<unsigned>(args.num_rows);
  const dim3 grid(static_cast<unsigned>(shape.num_splits), rows,
                  static_cast<unsigned>(problem.num_kv_heads * groups));
  row_parts_kernel<Element, kHeadDim><<<grid, kThreads, 0, stream>>>(
      shape, static_cast<const Element*>(args.input.q), static_cast<const Element*>(args.input.k),
      static_cast<const Element*>(args.input.v), args.rows, args.partial);
  cuda_check(cudaGetLastError(), "check of rows: launch");
  row_errors_kernel<Element, kHeadDim>
      <<<dim3(rows, static_cast<unsigned>(problem.num_q_heads)), 32, 0, stream>>>(
          shape, static_cast<const Element*>(args.out), args.rows, args.partial, args.errors);
  cuda_check(cudaGetLastError(), "check of rows: launch of the last step");
}

template <class Element>
void launch(const RowCheckArgs& args, CUstream_st* stream) {
  switch (args.input.problem.head_dim) {
    case 64:
      return launch_of<Element, 64>(args, stream);
    case 96:
      return launch_of<Element, 96>(args, stream);
    case 128:
      return launch_of<Element, 128>(args, stream);
    case 256:
      return launch_of<Element, 256>(args, stream);
    default:
      throw UnsupportedError("check of rows: head_dim is " +
                             std::to_string(args.input.problem.head_dim) +
                             ", supported are 64, 96, 128 and 256");
  }
}

}  // namespace

std::int64_t row_check_partials(const Problem& problem, int num_rows) {
  return static_cast<std::int64_t>(problem.num_q_heads) * num_rows * num_splits(problem.seqlen) *
         entry_size(problem.head_dim);
}

void launch_row_check(const RowCheckArgs& args, CUstream_st* stream) {
  if (args.num_rows == 0) return;
  args.input.dtype == KernelDType::kBf16 ? launch<__nv_bfloat16>(args, stream)
                                         : launch<__half>(args, stream);
}

}  // namespace s2o
