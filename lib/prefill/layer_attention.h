// Planning and attention of the layers of a prompt. Heads of a layer may do different things: each
// run of neighbours with one setting is planned and attended to as a layer of its own. Runs of as
// many heads with the same method and settings share a planner, layers share the scratch of
// planning, and plans that do not depend on Q, K and V are made once. CUDA builds only.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "kernels/attention/prepared_attention.h"
#include "kernels/common/stream.h"
#include "lib/device/cuda_device.h"
#include "lib/device/phase_timer.h"
#include "lib/prefill/prefill_backend.h"

namespace s2o {

class LayerAttention {
 public:
  // Works in `stream`.
  LayerAttention(const CudaDevice& device, CudaStream stream);
  ~LayerAttention();
  LayerAttention(const LayerAttention&) = delete;
  LayerAttention& operator=(const LayerAttention&) = delete;

  // Allocates what the layers need, and keeps what an earlier prompt of the same shape has.
  // UnsupportedError for oracles, whose dense output nobody has, and for settings that cannot run
  // on the problem.
  void prepare(const Problem& problem, StorageDType dtype, std::span<const LayerMethod> layers);

  // Enqueues planning and attention of a layer. Waits for the device only where the method has no
  // code on it. `timer` is in a measurement.
  void enqueue(std::size_t layer, const DeviceInput& input, PhaseTimer& timer);
  // The output of the layer enqueued last: [num_q_heads, seqlen, head_dim].
  const std::uint16_t* out() const { return out_.data(); }

  // Waits, and counts what the layer enqueued last did. InputError naming the layer when a score
  // was not finite.
  PrefillLayer account();

  // The input of the layer enqueued last.
  const DeviceInput& input() const;

  std::int64_t device_bytes() const;

 private:
  struct Setting;
  struct Lane;
  struct Group {
    HeadRange q_heads;
    Setting* setting = nullptr;
  };
  static constexpr std::size_t kMaxLanes = 4;

  // The plan for these heads, which is none of the groups before: known, kept or new.
  Setting* find_setting(const HeadSetting& heads, const std::vector<Group>& before,
                        std::vector<std::unique_ptr<Setting>>& kept);
  std::unique_ptr<Setting> make_setting(const HeadSetting& heads, const Problem& problem,
                                        int number) const;
  AttentionOutput output_of(const HeadRange& q_heads);
  // body(group, lane), whose work begins after all in the stream and is awaited there.
  template <class Body>
  void in_lanes(const std::vector<Group>& groups, const Body& body);

  struct Enqueued {
    std::size_t layer = 0;
    DeviceInput input;
  };

  const CudaDevice& device_;
  const CudaStream stream_;
  Problem problem_;
  StorageDType dtype_ = StorageDType::kBF16;
  std::vector<std::unique_ptr<Setting>> settings_;
  std::vector<std::vector<Group>> layers_;  // [num_layers], all heads in order
  std::optional<Enqueued> last_;

  std::vector<std::unique_ptr<Lane>> lanes_;
  Event fork_;
  AttentionScratch scratch_;
  std::vector<DeviceBytes> planning_scratch_;  // of the first, second, ... group of every layer
  DeviceBuffer<std::uint16_t> out_;            // [num_q_heads, seqlen, head_dim]
  DeviceBuffer<float> lse_;                    // [num_q_heads, seqlen]
};

}  // namespace s2o
