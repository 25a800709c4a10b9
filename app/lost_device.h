// A run whose device is lost to its process (a kernel that faulted, a device that went away) goes
// on by itself: the process becomes a fresh one with the same command line and --resume, which does
// not try again what has just failed. Where the fresh one cannot open the device, all further rows
// say so.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lib/eval/backend.h"
#include "lib/prefill/prefill_backend.h"

namespace s2o {

// What the fresh process has to know of the one before.
struct LostDevice {
  DeviceChoice device;              // resolved: `auto` could mean another one by now
  std::string kernel;               // "attention_sm90"
  std::string reason;               // what happened
  std::vector<std::size_t> failed;  // cells whose failure stands
};

// The hidden option that carries it, as JSON.
inline constexpr const char* kAfterFaultOption = "--after-fault";
// Nothing for "". ConfigError for anything else that no process wrote.
std::optional<LostDevice> parse_lost_device(const std::string& text);

// Replaces this process. Comes back only where that fails; the log says why. InterruptedError when
// the run was to end anyway.
void go_on_in_fresh_process(const LostDevice& lost);

// What open_backend and open_prefill open; where that fails after a fault, one that is lost.
std::unique_ptr<Backend> open_backend_after(const std::optional<LostDevice>& lost,
                                            const DeviceChoice& device, const std::string& kernel);
std::unique_ptr<PrefillBackend> open_prefill_after(const std::optional<LostDevice>& lost,
                                                   PrefillModel model, const DeviceChoice& device,
                                                   const std::string& kernel);

}  // namespace s2o
