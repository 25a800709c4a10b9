// Backends that meet faults on the way (faults.h), in the place of app/open_device.cpp.
#include <utility>

#include "app/open_device.h"
#include "app/tests/faults/faults.h"

namespace s2o {
namespace {

class FaultyBackend final : public Backend {
 public:
  explicit FaultyBackend(std::unique_ptr<Backend> inner) : inner_(std::move(inner)) {}

  std::string name() const override { return inner_->name(); }
  std::string kernel() const override { return inner_->kernel(); }
  DeviceChoice device() const override { return inner_->device(); }
  nlohmann::ordered_json context() override { return inner_->context(); }
  std::string lost() override { return faults_.lost().empty() ? inner_->lost() : faults_.lost(); }
  int outputs_on_host() const override { return inner_->outputs_on_host(); }
  void set_input(const AttentionInput& input) override {
    faults_.at_call(name(), [&] { inner_->set_input(input); });
  }
  void set_heads(const std::optional<HeadRange>& q_heads) override { inner_->set_heads(q_heads); }
  void run_reference(const SparsePlan& plan, const TimingConfig& timing,
                     AttentionRun& result) override {
    inner_->run_reference(plan, timing, result);
  }
  const DenseReference& reference() const override { return inner_->reference(); }
  void set_compute(const std::optional<QuantiseRule>& rule) override { inner_->set_compute(rule); }
  void run(const SparsePlan& plan, const TimingConfig& timing, AttentionRun& result) override {
    inner_->run(plan, timing, result);
  }
  std::optional<DevicePlanning> plan_and_run(const Method& method, const ParamSet& params,
                                             std::span<const ParamSet> head_params,
                                             const TimingConfig& timing, bool fetch_tokens,
                                             AttentionRun& result) override {
    std::optional<DevicePlanning> planning;
    faults_.at_call(name(), [&] {
      planning = inner_->plan_and_run(method, params, head_params, timing, fetch_tokens, result);
    });
    return planning;
  }
  std::vector<ErrorSums> error_sums() override { return inner_->error_sums(); }
  const std::vector<float>& out() override { return inner_->out(); }

 private:
  std::unique_ptr<Backend> inner_;
  testing::Faults faults_;
};

class FaultyPrefill final : public PrefillBackend {
 public:
  FaultyPrefill(std::unique_ptr<PrefillBackend> inner, int gpus)
      : inner_(std::move(inner)), faults_(gpus - 1) {}

  std::string name() const override { return inner_->name(); }
  std::string kernel() const override { return inner_->kernel(); }
  nlohmann::ordered_json context() override { return inner_->context(); }
  std::string lost() override { return faults_.lost().empty() ? inner_->lost() : faults_.lost(); }
  PrefillMemory memory(std::int64_t seqlen) const override { return inner_->memory(seqlen); }
  void prepare(std::int64_t max_seqlen) override {
    faults_.at_call(name(), [&] { inner_->prepare(max_seqlen); });
  }
  PrefillRun run(std::span<const std::int32_t> tokens, std::span<const LayerMethod> layers,
                 const PrefillWanted& wanted, const TimingConfig& timing,
                 const PrefillProgress& progress) override {
    PrefillRun result;
    const auto watched = [&](int done, int total) {
      faults_.at_progress(name());
      if (progress) progress(done, total);
    };
    faults_.at_call(name(), [&] { result = inner_->run(tokens, layers, wanted, timing, watched); });
    return result;
  }
  void logits_of(std::span<const float> hidden, std::span<float> logits) override {
    inner_->logits_of(hidden, logits);
  }

 private:
  std::unique_ptr<PrefillBackend> inner_;
  testing::Faults faults_;
};

}  // namespace

std::unique_ptr<Backend> open_backend(const DeviceChoice& device, const std::string& kernel) {
  return std::make_unique<FaultyBackend>(make_backend(device, kernel));
}

std::unique_ptr<PrefillBackend> open_prefill(PrefillModel model, const DeviceChoice& device,
                                             const std::string& kernel) {
  const int gpus = model.parallel;
  return std::make_unique<FaultyPrefill>(make_prefill_backend(std::move(model), device, kernel),
                                         gpus);
}

}  // namespace s2o
