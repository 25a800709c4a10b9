#include "kernels/attention/attention_cuda.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <limits>

#include "kernels/attention/attention_launch.h"
#include "kernels/attention/tensor_map_cuda.h"
#include "kernels/attention/uploaded_plan.h"
#include "kernels/common/bf16.h"
#include "kernels/common/device_buffer.h"
#include "kernels/common/kernel_registry.h"
#include "kernels/common/stream.h"

namespace s2o {
namespace {

// One kernel launch of a plan: a pass, or the folded columns after it.
struct Launch {
  AttentionKernelArgs args;
  bool is_fold = false;
  int num_fold_sets = 0;
};

// Makes the device the current one of this thread.
DeviceInfo open_device(int device_index) {
  const CudaStatus status = query_cuda();
  const std::string name = "device cuda:" + std::to_string(device_index) + ": ";
  if (!status.problem.empty()) throw UnsupportedError(name + status.problem);
  const int count = static_cast<int>(status.devices.size());
  if (device_index < 0 || device_index >= count) {
    throw UnsupportedError(name + "this machine has " + std::to_string(count) +
                           " CUDA device(s), numbered from 0");
  }
  cuda_check(cudaSetDevice(device_index), "select device");
  return status.devices[static_cast<std::size_t>(device_index)];
}

}  // namespace

struct CudaAttention::State {
  DeviceInfo device;
  AttentionKernel kernel = AttentionKernel::kSm80;
  PlanningVariant planning = PlanningVariant::kSm80;
  Stream stream;
  Event begin, end;
  std::vector<Event> marks;  // between planning and attention of batches

  Problem problem;
  KernelDType dtype = KernelDType::kBf16;
  const std::uint16_t* q = nullptr;  // on the device, here or the caller's
  const std::uint16_t* k = nullptr;
  const std::uint16_t* v = nullptr;
  DeviceBuffer<std::uint16_t> copied_q, copied_k, copied_v;

  PlanView plan;  // pointers are not valid
  AttentionKernel plan_kernel = AttentionKernel::kSm80;
  RunOptions options;
  TileShape tile;
  device::TensorMaps maps{};
  UploadedPlan uploaded;  // empty while a plan of the caller's device memory is set
  std::vector<std::vector<Launch>> batches;  // one after the other; empty while no plan is set
  DeviceBuffer<float> out_fp32;              // the output, or the state between launches
  DeviceBuffer<std::uint16_t> out_16;        // the output with OutputType::kInput
  DeviceBuffer<float> lse;
  DeviceBuffer<TileStats> stats;
  DeviceBuffer<std::int32_t> next_tile;  // one counter a batch and pass
  DeviceBuffer<float> sums;              // block sums of folded columns
  DeviceBuffer<std::uint16_t> columns;   // and the columns of whole blocks
  DeviceBuffer<std::uint8_t> flush;
  DeviceBuffer<float> reference;  // [num_q_heads, seqlen, head_dim], empty: none was kept
  DeviceBuffer<ErrorSums> partial_errors, errors;
  BlockSumsView sums_view;

  State(int device_index, const std::string& variant)
      : device(open_device(device_index)),
        kernel(choose_kernel("attention", device, variant).variant == "sm90"
                   ? AttentionKernel::kSm90
                   : AttentionKernel::kSm80),
        planning(planning_variant(device, variant)) {}

  std::size_t num_rows() const {
    return static_cast<std::size_t>(problem.seqlen) * static_cast<std::size_t>(problem.num_q_heads);
  }
  std::size_t num_outputs() const {
    return num_rows() * static_cast<std::size_t>(problem.head_dim);
  }
  std::size_t num_tiles() const {
    return static_cast<std::size_t>(plan.num_plan_heads) *
           static_cast<std::size_t>(plan.num_q_tiles);
  }

  void begin_input(const Problem& new_problem, KernelDType new_dtype);
  void prepare_sums();
  void begin_plan(const PlanView& header, const RunOptions& run_options);
  void prepare_batch(const DevicePlan& device_plan, int batch);
  void finish_plan(const DevicePlan& device_plan);
  void launch(const Launch& entry);
};

void CudaAttention::State::prepare_sums() {
  sums_view = {};
  if (plan.fold.kind == Compensation::kNone) return;
  sums_view.num_blocks = problem.seqlen / plan.fold.fold_block;
  const bool squares = plan.fold.kind == Compensation::kBlocksVariance;
  // The larger of the two kinds of sets; a pass uses the front of the buffer.
  const std::size_t array =
      static_cast<std::size_t>(sums_view.num_blocks) * static_cast<std::size_t>(problem.head_dim) *
      static_cast<std::size_t>(std::max(plan.num_plan_heads, problem.num_kv_heads));
  sums.resize(array * (squares ? 3 : 2), "folded columns: block sums");
  sums_view.k = sums.data();
  sums_view.v = sums.data() + array;
  sums_view.k_squared = squares ? sums.data() + 2 * array : nullptr;
  if (plan.fold.kind == Compensation::kCentroid) return;
  columns.resize(array * (squares ? 3 : 2), "folded columns: whole blocks");
  sums_view.mean_k = columns.data();
  sums_view.mean_v = columns.data() + array;
  sums_view.variance = squares ? columns.data() + 2 * array : nullptr;
}

// The header of a plan, and everything that depends on it alone.
void CudaAttention::State::begin_plan(const PlanView& header, const RunOptions& run_options) {
  batches.clear();
  // The three-term product exists in the portable kernel only, which runs on every device.
  plan_kernel = run_options.fp32_accuracy ? AttentionKernel::kSm80 : kernel;
  tile = choose_tile(plan_kernel, problem, header, run_options.fp32_accuracy);
  plan = header;
  plan.passes = nullptr;
  options = run_options;
}

void CudaAttention::State::prepare_batch(const DevicePlan& device_plan, int batch) {
  std::vector<Launch>& launches = batches.emplace_back();
  for (int p = 0; p < plan.num_passes; ++p) {
    const PassView& pass = device_plan.passes[static_cast<std::size_t>(p)];
    AttentionKernelArgs args = kernel_args(problem, plan);
    args.q = q;
    args.k = k;
    args.v = v;
    args.out_fp32 = out_fp32.data();
    args.lse = lse.data();
    args.resume_out = p > 0 ? out_fp32.data() : nullptr;
    args.stats = stats.data() + static_cast<std::size_t>(p) * num_tiles();
    args.tile_order =
        device_plan.tile_orders[static_cast<std::size_t>(p)] + device_plan.batch_begin(batch);
    args.num_tiles = device_plan.batch_end(batch) - device_plan.batch_begin(batch);
    args.next_tile = next_tile.data() + batch * plan.num_passes + p;
    args.pass = pass;
    launches.push_back({.args = args});
    if (plan.fold.kind == Compensation::kNone || pass.fold_end == nullptr) continue;
    args.resume_out = out_fp32.data();
    // Sums of blocks in the order of tokens are the same for every batch: computed once.
    const int num_sets = pass.key_order != nullptr ? plan.num_plan_heads
                         : batch == 0              ? problem.num_kv_heads
                                                   : 0;
    launches.push_back({.args = args, .is_fold = true, .num_fold_sets = num_sets});
  }
  if (options.output == OutputType::kInput) {
    launches.back().args.out_fp32 = nullptr;
    launches.back().args.out_16 = out_16.data();
  }
}

void CudaAttention::State::launch(const Launch& entry) {
  const bool bf16 = dtype == KernelDType::kBf16;
  const int d = problem.head_dim;
  if (entry.is_fold) {
    (bf16 ? launch_fold_bf16 : launch_fold_fp16)(entry.args, sums_view, entry.num_fold_sets, d,
                                                 tile.tile_m, stream.get());
  } else if (plan_kernel == AttentionKernel::kSm90) {
    (bf16 ? launch_attention_sm90_bf16 : launch_attention_sm90_fp16)(
        entry.args, maps, d, tile, device.num_multiprocessors, stream.get());
  } else {
    (bf16 ? launch_attention_sm80_bf16 : launch_attention_sm80_fp16)(entry.args, d, tile,
                                                                     stream.get());
  }
}

CudaAttention::CudaAttention(int device_index, const std::string& kernel_variant)
    : state_(std::make_unique<State>(device_index, kernel_variant)) {}
CudaAttention::~CudaAttention() = default;

const DeviceInfo& CudaAttention::device() const { return state_->device; }
AttentionKernel CudaAttention::kernel() const { return state_->kernel; }
PlanningVariant CudaAttention::planning() const { return state_->planning; }

void CudaAttention::State::begin_input(const Problem& new_problem, KernelDType new_dtype) {
  problem = new_problem;
  dtype = new_dtype;
  batches.clear();
  reference.resize(0, "reference output");
}

void CudaAttention::set_input(const Problem& problem, KernelDType dtype, const std::uint16_t* q,
                              const std::uint16_t* k, const std::uint16_t* v) {
  State& s = *state_;
  s.begin_input(problem, dtype);
  const std::size_t kv = static_cast<std::size_t>(problem.num_kv_heads) *
                         static_cast<std::size_t>(problem.seqlen) *
                         static_cast<std::size_t>(problem.head_dim);
  s.copied_q.upload(q, s.num_outputs(), "upload q");
  s.copied_k.upload(k, kv, "upload k");
  s.copied_v.upload(v, kv, "upload v");
  s.q = s.copied_q.data();
  s.k = s.copied_k.data();
  s.v = s.copied_v.data();
  cuda_check(cudaDeviceSynchronize(), "upload of the input");
}

void CudaAttention::set_device_input(const Problem& problem, KernelDType dtype,
                                     const std::uint16_t* q, const std::uint16_t* k,
                                     const std::uint16_t* v) {
  State& s = *state_;
  s.begin_input(problem, dtype);
  s.q = q;
  s.k = k;
  s.v = v;
}

void CudaAttention::set_plan(const PlanView& plan, const RunOptions& options) {
  State& s = *state_;
  s.begin_plan(plan, options);
  s.uploaded.upload(s.problem, plan, s.device.l2_bytes);
  s.finish_plan(s.uploaded.device_plan());
}

void CudaAttention::set_device_plan(const DevicePlan& plan, const RunOptions& options) {
  State& s = *state_;
  s.begin_plan(plan.header, options);
  s.uploaded.clear();
  s.finish_plan(plan);
}

// Outputs, state and launches of the plan that begin_plan announced.
void CudaAttention::State::finish_plan(const DevicePlan& device_plan) {
  const auto num_passes = static_cast<std::size_t>(plan.num_passes);
  stats.resize(num_tiles() * num_passes, "tile statistics");
  next_tile.resize(num_passes * static_cast<std::size_t>(device_plan.num_batches()),
                   "tile counters");
  lse.resize(num_rows(), "lse");
  prepare_sums();
  const bool folds = plan.fold.kind != Compensation::kNone;
  const bool has_state = plan.num_passes > 1 || folds;
  const bool fp32_out = options.output == OutputType::kFp32;
  out_fp32.resize(fp32_out || has_state ? num_outputs() : 0, "output in fp32");
  out_16.resize(fp32_out ? 0 : num_outputs(), "output");
  for (int batch = 0; batch < device_plan.num_batches(); ++batch) prepare_batch(device_plan, batch);
  if (plan_kernel == AttentionKernel::kSm90) {
    const bool bf16 = dtype == KernelDType::kBf16;
    const auto map_of = [&](const void* base) {
      return make_tensor_map(
          device::mapped_heads(base, problem.num_kv_heads, problem.seqlen, problem.head_dim), bf16,
          tile.tile_n);
    };
    maps.k = map_of(k);
    maps.v = map_of(v);
  }
}

DeviceInput CudaAttention::device_input() const {
  const State& s = *state_;
  return {.problem = s.problem, .dtype = s.dtype, .q = s.q, .k = s.k, .v = s.v};
}
CudaStream CudaAttention::stream() const { return state_->stream.get(); }

float CudaAttention::run_planner(DevicePlanner& planner) {
  State& s = *state_;
  s.begin.record(s.stream);
  planner.plan(device_input(), s.stream.get(), s.planning);
  s.end.record(s.stream);
  s.stream.synchronize();
  return s.end.milliseconds_since(s.begin);
}

void CudaAttention::poison_outputs() {
  State& s = *state_;
  const auto poison = [&s](void* data, std::int64_t bytes) {
    if (bytes == 0) return;
    cuda_check(cudaMemsetAsync(data, 0xff, static_cast<std::size_t>(bytes), s.stream.get()),
               "poison the output");
  };
  poison(s.out_fp32.data(), s.out_fp32.size_bytes());
  poison(s.out_16.data(), s.out_16.size_bytes());
  poison(s.lse.data(), s.lse.size_bytes());
  s.stream.synchronize();
}

void CudaAttention::flush_l2() {
  State& s = *state_;
  s.flush.resize(static_cast<std::size_t>(2 * s.device.l2_bytes),
                 "buffer that flushes the L2 cache");
  cuda_check(cudaMemsetAsync(s.flush.data(), 0, s.flush.size(), s.stream.get()), "flush L2");
}

PlannedTimes CudaAttention::run_planned(DevicePlanner& planner) {
  State& s = *state_;
  const int num_batches = planner.num_batches();
  const auto batch_count = static_cast<std::size_t>(num_batches);
  // Planning of batch b begins at mark 2 b, its attention at mark 2 b + 1.
  if (s.marks.size() < 2 * batch_count + 1) s.marks.resize(2 * batch_count + 1);
  s.marks[0].record(s.stream);
  for (int batch = 0; batch < num_batches; ++batch) {
    Event* const mark = &s.marks[2 * static_cast<std::size_t>(batch)];
    planner.plan_batch(batch, device_input(), s.stream.get(), s.planning);
    mark[1].record(s.stream);
    enqueue_batch(batch);
    mark[2].record(s.stream);
  }
  s.stream.synchronize();
  PlannedTimes times;
  for (std::size_t batch = 0; batch < batch_count; ++batch) {
    const Event* const mark = &s.marks[2 * batch];
    times.plan_ms += mark[1].milliseconds_since(mark[0]);
    times.attention_ms += mark[2].milliseconds_since(mark[1]);
  }
  return times;
}

void CudaAttention::enqueue_batch(int batch) {
  State& s = *state_;
  const std::vector<Launch>& launches = s.batches.at(static_cast<std::size_t>(batch));
  const auto num_passes = static_cast<std::size_t>(s.plan.num_passes);
  cuda_check(cudaMemsetAsync(s.next_tile.data() + static_cast<std::size_t>(batch) * num_passes, 0,
                             num_passes * sizeof(std::int32_t), s.stream.get()),
             "reset tile counters");
  for (const Launch& entry : launches) s.launch(entry);
}

void CudaAttention::enqueue() {
  const State& s = *state_;
  if (s.batches.empty()) throw Error("CudaAttention: no plan was set");
  if (s.batches.size() > 1) {
    throw Error("CudaAttention: the plan is in " + std::to_string(s.batches.size()) +
                " batches, expected 1: its lists are never in memory together");
  }
  enqueue_batch(0);
}

float CudaAttention::run() {
  State& s = *state_;
  s.begin.record(s.stream);
  enqueue();
  s.end.record(s.stream);
  s.stream.synchronize();
  return s.end.milliseconds_since(s.begin);
}

const std::uint16_t* CudaAttention::device_out() const {
  if (state_->options.output != OutputType::kInput) {
    throw Error("CudaAttention::device_out: the plan was set with an fp32 output");
  }
  return state_->out_16.data();
}

void CudaAttention::read(std::vector<float>& out, std::vector<float>& lse,
                         std::vector<TileStats>& stats) const {
  read_out(out);
  read_rows(lse, stats);
}

void CudaAttention::read_rows(std::vector<float>& lse, std::vector<TileStats>& stats) const {
  const State& s = *state_;
  lse.resize(s.num_rows());
  s.lse.download(lse.data(), "download lse");
  read_stats(stats);
}

void CudaAttention::read_stats(std::vector<TileStats>& stats) const {
  const State& s = *state_;
  stats.resize(s.stats.size());
  s.stats.download(stats.data(), "download tile statistics");
}

void CudaAttention::read_out(std::vector<float>& out) const {
  const State& s = *state_;
  out.resize(s.num_outputs());
  if (s.options.output == OutputType::kFp32) {
    s.out_fp32.download(out.data(), "download the output");
    return;
  }
  std::vector<std::uint16_t> bits(s.num_outputs());
  s.out_16.download(bits.data(), "download the output");
  std::transform(bits.begin(), bits.end(), out.begin(), [&s](std::uint16_t value) {
    return s.dtype == KernelDType::kBf16 ? bf16_to_float(value) : fp16_to_float(value);
  });
}

void CudaAttention::keep_as_reference() {
  State& s = *state_;
  if (s.batches.empty() || s.options.output != OutputType::kFp32) {
    throw Error("CudaAttention::keep_as_reference: no run with an fp32 output");
  }
  s.reference.resize(s.num_outputs(), "reference output");
  cuda_check(cudaMemcpyAsync(s.reference.data(), s.out_fp32.data(),
                             static_cast<std::size_t>(s.reference.size_bytes()),
                             cudaMemcpyDeviceToDevice, s.stream.get()),
             "keep the reference output");
  s.stream.synchronize();
}

std::vector<ErrorSums> CudaAttention::error_sums() {
  State& s = *state_;
  if (s.batches.empty() || s.options.output != OutputType::kFp32 || s.reference.size() == 0) {
    throw Error("CudaAttention::error_sums: needs a reference and a run with an fp32 output");
  }
  const auto heads = static_cast<std::size_t>(s.problem.num_q_heads);
  s.partial_errors.resize(heads * kErrorSumBlocks, "error sums");
  s.errors.resize(heads, "error sums");
  launch_error_sums(s.problem.num_q_heads, s.problem.seqlen * s.problem.head_dim, s.out_fp32.data(),
                    s.reference.data(), s.partial_errors.data(), s.errors.data(), s.stream.get());
  s.stream.synchronize();
  std::vector<ErrorSums> sums(heads);
  s.errors.download(sums.data(), "download error sums");
  return sums;
}

std::int64_t CudaAttention::workspace_bytes() const {
  const State& s = *state_;
  std::int64_t bytes = s.stats.size_bytes() + s.next_tile.size_bytes() + s.sums.size_bytes() +
                       s.columns.size_bytes() + s.uploaded.bytes();
  if (s.options.output != OutputType::kFp32) bytes += s.out_fp32.size_bytes();
  return bytes;
}

}  // namespace s2o
