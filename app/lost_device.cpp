#include "app/lost_device.h"

#include <fmt/format.h>
#include <linux/close_range.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <utility>

#include "app/open_device.h"
#include "kernels/common/parallel.h"
#include "lib/core/error.h"
#include "lib/core/log.h"

namespace s2o {
namespace {

// The command line of this process.
std::vector<std::string> own_arguments() {
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  std::vector<std::string> arguments;
  for (std::size_t begin = 0; begin < text.size();) {
    arguments.emplace_back(text.c_str() + begin);
    begin += arguments.back().size() + 1;
  }
  return arguments;
}

// What is asked of a device that is not there.
[[noreturn]] void refuse(const std::string& reason) { throw CudaError(reason); }

class LostBackend final : public Backend {
 public:
  LostBackend(LostDevice lost, std::string reason)
      : was_(std::move(lost)), reason_(std::move(reason)) {}
  std::string name() const override {
    return was_.device.kind == DeviceKind::kCpu ? "cpu" : "cuda";
  }
  std::string kernel() const override { return was_.kernel; }
  DeviceChoice device() const override { return was_.device; }
  nlohmann::ordered_json context() override { return nlohmann::ordered_json::object(); }
  std::string lost() override { return reason_; }
  int outputs_on_host() const override { return 0; }
  void set_input(const AttentionInput&) override { refuse(reason_); }
  void set_heads(const std::optional<HeadRange>&) override { refuse(reason_); }
  void run_reference(const SparsePlan&, const TimingConfig&, AttentionRun&) override {
    refuse(reason_);
  }
  const DenseReference& reference() const override { refuse(reason_); }
  void set_compute(const std::optional<QuantiseRule>&) override { refuse(reason_); }
  void run(const SparsePlan&, const TimingConfig&, AttentionRun&) override { refuse(reason_); }
  std::vector<ErrorSums> error_sums() override { refuse(reason_); }
  const std::vector<float>& out() override { refuse(reason_); }

 private:
  const LostDevice was_;
  const std::string reason_;
};

class LostPrefill final : public PrefillBackend {
 public:
  LostPrefill(LostDevice lost, std::string reason)
      : was_(std::move(lost)), reason_(std::move(reason)) {}
  std::string name() const override {
    return was_.device.kind == DeviceKind::kCpu ? "cpu" : "cuda";
  }
  std::string kernel() const override { return was_.kernel; }
  nlohmann::ordered_json context() override { return nlohmann::ordered_json::object(); }
  std::string lost() override { return reason_; }
  PrefillMemory memory(std::int64_t) const override { refuse(reason_); }
  void prepare(std::int64_t) override { refuse(reason_); }
  PrefillRun run(std::span<const std::int32_t>, std::span<const LayerMethod>, const PrefillWanted&,
                 const TimingConfig&, const PrefillProgress&) override {
    refuse(reason_);
  }
  void logits_of(std::span<const float>, std::span<float>) override { refuse(reason_); }

 private:
  const LostDevice was_;
  const std::string reason_;
};

// What `open` makes, or after a fault, where it cannot, a Lost that says why.
template <class Lost, class Base, class Open>
std::unique_ptr<Base> open_after(const std::optional<LostDevice>& lost, const Open& open) {
  try {
    return open();
  } catch (const Error& error) {
    if (!lost) throw;
    return std::make_unique<Lost>(
        *lost, fmt::format("{}; a fresh process finds: {}", lost->reason, error.what()));
  }
}

}  // namespace

std::optional<LostDevice> parse_lost_device(const std::string& text) {
  if (text.empty()) return std::nullopt;
  const nlohmann::json note = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  try {
    return LostDevice{.device = parse_device(note.at("device"), kAfterFaultOption),
                      .kernel = note.at("kernel"),
                      .reason = note.at("reason"),
                      .failed = note.at("failed")};
  } catch (const nlohmann::json::exception&) {
    throw ConfigError(fmt::format("{}: is for s2o itself", kAfterFaultOption));
  }
}

void go_on_in_fresh_process(const LostDevice& lost) {
  throw_if_cancelled();
  std::vector<std::string> arguments = own_arguments();
  const auto earlier = std::find(arguments.begin(), arguments.end(), kAfterFaultOption);
  if (earlier == arguments.end()) {
    arguments.emplace_back("--resume");
  } else {
    arguments.resize(static_cast<std::size_t>(earlier - arguments.begin()));
  }
  arguments.emplace_back(kAfterFaultOption);
  arguments.push_back(nlohmann::json({{"device", device_text(lost.device)},
                                      {"kernel", lost.kernel},
                                      {"reason", lost.reason},
                                      {"failed", lost.failed}})
                          .dump(-1, ' ', true, nlohmann::json::error_handler_t::replace));
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  log_warning("{}; a fresh process goes on", lost.reason);
  std::fflush(nullptr);
  // The driver's files too: what the old process held on the device ends with them.
  close_range(3, ~0U, CLOSE_RANGE_CLOEXEC);
  execv("/proc/self/exe", argv.data());
  log_warning("a fresh process cannot be started: {}", std::strerror(errno));
}

std::unique_ptr<Backend> open_backend_after(const std::optional<LostDevice>& lost,
                                            const DeviceChoice& device, const std::string& kernel) {
  return open_after<LostBackend, Backend>(
      lost, [&] { return open_backend(lost ? lost->device : device, kernel); });
}

std::unique_ptr<PrefillBackend> open_prefill_after(const std::optional<LostDevice>& lost,
                                                   PrefillModel model, const DeviceChoice& device,
                                                   const std::string& kernel) {
  return open_after<LostPrefill, PrefillBackend>(
      lost, [&] { return open_prefill(std::move(model), lost ? lost->device : device, kernel); });
}

}  // namespace s2o
