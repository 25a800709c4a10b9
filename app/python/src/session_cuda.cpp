#include <cuda_runtime.h>
#include <fmt/format.h>

#include <algorithm>
#include <list>
#include <map>
#include <mutex>

#include "app/python/src/own_array.h"
#include "app/python/src/session.h"
#include "kernels/common/current_device.h"
#include "lib/core/error.h"
#include "lib/device/planned_method.h"

namespace s2o::python {
namespace {

// Of a device's memory, what workspaces may keep between calls; the newest always stays.
constexpr int kKeptShare = 8;
// Lists of a plan that is kept are in memory together, however long.
constexpr std::int64_t kNoListLimit = std::int64_t{1} << 32;

const CudaDevice& device_at(int index) {
  static std::mutex mutex;
  static auto* const devices = new std::map<int, CudaDevice>;  // outlives every thread
  const std::lock_guard<std::mutex> lock(mutex);
  const auto known = devices->find(index);
  if (known != devices->end()) return known->second;
  return devices->emplace(index, open_cuda_device(index)).first->second;
}

DeviceInput device_input(const Call& call) {
  if (call.dtype == StorageDType::kF32) {
    throw UnsupportedError(
        fmt::format("{}: dtype is fp32, supported are bf16 and fp16; fp32 runs on the CPU",
                    attention_kernel_name(device_at(call.device).attention)));
  }
  return {.problem = call.problem,
          .dtype = call.dtype == StorageDType::kBF16 ? KernelDType::kBf16 : KernelDType::kFp16,
          .q = call.q,
          .k = call.k,
          .v = call.v};
}

// What calls in one stream share.
class StreamSession {
 public:
  explicit StreamSession(const CudaDevice& device) : device_(device) {}

  // Whoever calls one of these has the session for itself until its work is enqueued.
  std::optional<std::vector<RunWork>> attend(const Setting& setting, const Call& call,
                                             CudaStream stream, bool check, bool wants_work) {
    (void)device_input(call);  // refuses types before anything is allocated
    const std::lock_guard<std::mutex> lock(mutex_);
    PlannedMethod& method = planned(setting, call);
    return for_each_sequence(
        call, wants_work,
        [&](const Call& one, const DeviceInput& input, std::vector<RunWork>& works) {
          method.enqueue(input, output(one), scratch_, stream);
          report(method, input, stream, check, wants_work, works);
        });
  }

  void plan(PlannedMethod& method, const DeviceInput& input, CudaStream stream) {
    const std::lock_guard<std::mutex> lock(mutex_);
    method.plan(input, scratch_, stream);
  }
  void run(PlannedMethod& method, const Call& one, CudaStream stream, bool check, bool wants_work,
           std::vector<RunWork>& works) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const DeviceInput input = device_input(one);
    method.attend(input, output(one), scratch_, stream);
    report(method, input, stream, check, wants_work, works);
  }

  void clear() {
    const std::lock_guard<std::mutex> lock(mutex_);
    const CurrentDevice current(device_.info.index);
    kept_.clear();
    scratch_ = {};
    lse_ = {};
  }
  std::int64_t bytes() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return kept_bytes() + lse_.size_bytes() + scratch_.next_tile.size_bytes() +
           scratch_.state.size_bytes() + scratch_.sums.size_bytes() + scratch_.columns.size_bytes();
  }

  template <class Body>
  static std::optional<std::vector<RunWork>> for_each_sequence(const Call& call, bool wants_work,
                                                               const Body& body) {
    std::vector<RunWork> works;
    for (std::int64_t i = 0; i < call.batch; ++i) {
      const Call one = call.sequence(i);
      body(one, device_input(one), works);
    }
    if (!wants_work) return std::nullopt;
    return works;
  }

 private:
  struct Kept {
    std::int64_t setting = 0;
    std::vector<ParamSet> head_params;
    Problem problem;
    StorageDType dtype = StorageDType::kBF16;
    std::unique_ptr<PlannedMethod> method;

    bool matches(const Setting& other, const Call& call) const {
      const Problem& p = call.problem;
      return setting == other.id && same_params(head_params, other.head_params) &&
             dtype == call.dtype && problem.seqlen == p.seqlen &&
             problem.num_q_heads == p.num_q_heads && problem.num_kv_heads == p.num_kv_heads &&
             problem.head_dim == p.head_dim && problem.softmax_scale == p.softmax_scale;
    }
  };

  // The workspace of these settings and this shape; the one used last is in front.
  PlannedMethod& planned(const Setting& setting, const Call& call) {
    const auto known = std::find_if(kept_.begin(), kept_.end(),
                                    [&](const Kept& kept) { return kept.matches(setting, call); });
    if (known != kept_.end()) {
      kept_.splice(kept_.begin(), kept_, known);
      return *kept_.front().method;
    }
    Kept made = {.setting = setting.id,
                 .head_params = setting.head_params,
                 .problem = call.problem,
                 .dtype = call.dtype};
    const auto make = [&] {
      made.method = std::make_unique<PlannedMethod>(
          device_, call.problem, call.dtype, *setting.method, setting.params,
          PlannerLimits{.l2_bytes = device_.info.l2_bytes}, setting.head_params);
    };
    try {
      make();
    } catch (const UnsupportedError&) {
      if (kept_.empty()) throw;
      kept_.clear();  // it may have been too little memory
      make();
    }
    kept_.push_front(std::move(made));
    while (kept_.size() > 1 && kept_bytes() > device_.info.total_bytes / kKeptShare) {
      kept_.pop_back();  // waits for the device
    }
    return *kept_.front().method;
  }

  std::int64_t kept_bytes() const {
    std::int64_t bytes = 0;
    for (const Kept& kept : kept_) bytes += kept.method->plan_bytes();
    return bytes;
  }

  AttentionOutput output(const Call& one) {
    if (one.lse == nullptr) {
      const auto rows = static_cast<std::size_t>(one.problem.num_q_heads * one.problem.seqlen);
      if (lse_.size() < rows) lse_.resize(rows, "lse");
    }
    return {.out_fp32 = one.out_fp32 ? static_cast<float*>(one.out) : nullptr,
            .out_16 = one.out_fp32 ? nullptr : static_cast<std::uint16_t*>(one.out),
            .lse = one.lse == nullptr ? lse_.data() : one.lse};
  }

  static void report(PlannedMethod& method, const DeviceInput& input, CudaStream stream, bool check,
                     bool wants_work, std::vector<RunWork>& works) {
    if (wants_work) {
      const CountedRun run = method.count(input, stream);
      works.push_back(
          make_work(method.planner(), run.work, run.stats, run.num_plan_heads, run.num_q_tiles));
    } else if (check) {
      method.check(stream);
    }
  }

  const CudaDevice device_;
  std::mutex mutex_;
  std::list<Kept> kept_;
  AttentionScratch scratch_;
  DeviceBuffer<float> lse_;  // of calls that do not want it
};

struct Sessions {
  std::mutex mutex;
  std::map<std::pair<int, std::uintptr_t>, std::unique_ptr<StreamSession>> by_stream;
};
Sessions& all_sessions() {
  static auto* const sessions = new Sessions;  // outlives every thread
  return *sessions;
}

StreamSession& session_of(int device, std::uintptr_t stream) {
  Sessions& sessions = all_sessions();
  const std::lock_guard<std::mutex> lock(sessions.mutex);
  std::unique_ptr<StreamSession>& session = sessions.by_stream[{device, stream}];
  if (session == nullptr) session = std::make_unique<StreamSession>(device_at(device));
  return *session;
}

CudaStream to_stream(std::uintptr_t stream) { return reinterpret_cast<CudaStream>(stream); }

class CudaPlan final : public Plan {
 public:
  CudaPlan(const Setting& of, const Call& call, std::uintptr_t stream, bool check)
      : device_(call.device) {
    const CurrentDevice current(device_);
    StreamSession& session = session_of(device_, stream);
    const CudaDevice& device = device_at(device_);
    for (std::int64_t i = 0; i < call.batch; ++i) {
      const DeviceInput input = device_input(call.sequence(i));
      methods_.push_back(std::make_unique<PlannedMethod>(
          device, call.problem, call.dtype, *of.method, of.params,
          PlannerLimits{.l2_bytes = device.info.l2_bytes, .list_bytes_per_token = kNoListLimit}));
      session.plan(*methods_.back(), input, to_stream(stream));
      if (check) methods_.back()->check(to_stream(stream));
    }
    planner = methods_.front()->planner();
  }
  ~CudaPlan() override {
    try {
      const CurrentDevice current(device_);
      methods_.clear();
    } catch (const CudaError&) {  // the driver is gone, and the memory with it
    }
  }
  std::optional<std::vector<RunWork>> run(const Call& call, std::uintptr_t stream, bool check,
                                          bool wants_work) override {
    const CurrentDevice current(device_);
    StreamSession& session = session_of(device_, stream);
    std::size_t index = 0;
    return StreamSession::for_each_sequence(
        call, wants_work, [&](const Call& one, const DeviceInput&, std::vector<RunWork>& works) {
          session.run(*methods_[index++], one, to_stream(stream), check, wants_work, works);
        });
  }
  std::int64_t bytes() const override {
    std::int64_t bytes = 0;
    for (const auto& method : methods_) bytes += method->plan_bytes();
    return bytes;
  }

 private:
  const int device_;
  std::vector<std::unique_ptr<PlannedMethod>> methods_;  // one a sequence
};

}  // namespace

std::optional<std::vector<RunWork>> attend_cuda(const Setting& setting, const Call& call,
                                                std::uintptr_t stream, bool check,
                                                bool wants_work) {
  const CurrentDevice current(call.device);
  return session_of(call.device, stream)
      .attend(setting, call, to_stream(stream), check, wants_work);
}

std::unique_ptr<Plan> make_plan_cuda(const Setting& setting, const Call& call,
                                     std::uintptr_t stream, bool check) {
  return std::make_unique<CudaPlan>(setting, call, stream, check);
}

std::shared_ptr<void> device_memory(int device, std::size_t bytes) {
  const CurrentDevice current(device);
  DeviceBytes memory;
  memory.reserve(bytes, "output");
  void* const data = memory.data();
  return {data, [device, kept = std::make_shared<DeviceBytes>(std::move(memory))](void*) mutable {
            try {
              const CurrentDevice guard(device);
              kept.reset();
            } catch (const CudaError&) {  // the driver is gone, and the memory with it
            }
          }};
}

void wait_for_default_stream(int device) {
  const CurrentDevice current(device);
  cuda_check(cudaStreamSynchronize(nullptr), "wait for the output");
}

void clear_cache() {
  Sessions& sessions = all_sessions();
  const std::lock_guard<std::mutex> lock(sessions.mutex);
  for (auto& [key, session] : sessions.by_stream) session->clear();
}

std::int64_t cache_bytes() {
  Sessions& sessions = all_sessions();
  const std::lock_guard<std::mutex> lock(sessions.mutex);
  std::int64_t bytes = 0;
  for (auto& [key, session] : sessions.by_stream) bytes += session->bytes();
  return bytes;
}

}  // namespace s2o::python
