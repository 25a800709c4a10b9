#include <fmt/format.h>

#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/eval/backend.h"
#include "lib/eval/backend_cuda.h"
#include "lib/prefill/prefill_backend.h"
#include "lib/prefill/replay.h"

namespace s2o {
namespace {

void require_one_part(const PrefillModel& model, const std::string& refusal) {
  if (model.parallel == 1) return;
  throw UnsupportedError(
      fmt::format("parallel {}: a model is split over GPUs only: {}", model.parallel, refusal));
}

}  // namespace

std::vector<HeadSetting> heads_of(const LayerMethod& layer, int index, const Problem& problem) {
  if (!layer.heads.empty()) return layer.heads;
  std::vector<HeadSetting> heads = layer.method->head_settings(*layer.params, index, problem);
  if (!heads.empty()) return heads;
  // Parameters outlive the layer that names them.
  const std::shared_ptr<const ParamSet> params(std::shared_ptr<void>(), layer.params);
  return {{.q_heads = {.first = 0, .count = problem.num_q_heads},
           .method = layer.method,
           .params = params}};
}

std::unique_ptr<PrefillBackend> make_prefill_backend(PrefillModel model, const DeviceChoice& device,
                                                     const std::string& kernel) {
  check_replay(model.config, model.replay);
  const DeviceChoice resolved = resolve_device(device, kernel);
  const std::string variant = kernel == "auto" ? "" : kernel;
  if (resolved.kind == DeviceKind::kCuda) {
    return make_cuda_prefill(std::move(model), resolved.index, variant);
  }
  if (resolved.kind == DeviceKind::kCpu) {
    require_one_part(model, "the device is cpu");
    return make_cpu_prefill(std::move(model));
  }
  const std::string refusal = cuda_refusal();
  if (refusal.empty()) {
    auto backend = make_cuda_prefill(std::move(model), 0, variant);
    log_info("device auto: cuda:0, {}", backend->kernel());
    return backend;
  }
  require_one_part(model, refusal);
  log_info("device auto: cpu, because {}", refusal);
  return make_cpu_prefill(std::move(model));
}

}  // namespace s2o
