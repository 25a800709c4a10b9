// Where calls run. On a GPU, workspaces belong to a device and a stream: calls in one stream follow
// each other there, so they share memory; calls of several threads in one stream take turns.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "app/python/src/call.h"

namespace s2o::python {

// Plans of the sequences of a batch, kept by whoever asked for them.
class Plan {
 public:
  virtual ~Plan() = default;
  // `call` has the shape, type and device that the plan was made for.
  virtual std::optional<std::vector<RunWork>> run(const Call& call, std::uintptr_t stream,
                                                  bool check, bool wants_work) = 0;
  virtual std::int64_t bytes() const = 0;
  const char* planner = "none";  // as in results
  Setting setting;
  Call shape;  // without pointers
};

// Plans and attends. `stream` is the CUDA stream, 0 the default one; unused on the CPU. `check`
// waits for the device and makes an InputError of a score that is not finite; the CPU always
// checks Q, K and V. `wants_work` waits, too. The work that is returned has an entry a sequence.
std::optional<std::vector<RunWork>> attend(const Setting& setting, const Call& call,
                                           std::uintptr_t stream, bool check, bool wants_work);
std::unique_ptr<Plan> make_plan(const Setting& setting, const Call& call, std::uintptr_t stream,
                                bool check);
// Frees the workspaces of all streams.
void clear_cache();
// Device memory that they hold.
std::int64_t cache_bytes();

// The parts for a CUDA device; in builds without CUDA an UnsupportedError that says so.
std::optional<std::vector<RunWork>> attend_cuda(const Setting& setting, const Call& call,
                                                std::uintptr_t stream, bool check, bool wants_work);
std::unique_ptr<Plan> make_plan_cuda(const Setting& setting, const Call& call,
                                     std::uintptr_t stream, bool check);

}  // namespace s2o::python
