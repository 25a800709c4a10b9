// The Hopper kernel over quantised input (quantise.h): a persistent block of one producer and one
// or two consumer warpgroups. Blocks take tiles from a counter, heavy tiles first.
#pragma once

#include "kernels/attention/mainloop_sm90.cuh"
#include "kernels/attention/quantised_consumer_sm90.cuh"
#include "kernels/attention/quantised_producer_sm90.cuh"

namespace s2o::device {

template <class Traits>
S2O_DEVICE void start_quantised(QuantisedShared<Traits>& s) {
  for (int buffer = 0; buffer < QuantisedShared<Traits>::kQueryBuffers; ++buffer) {
    barrier_init(&s.q_full[buffer], Traits::kFillArrivals);
    barrier_init(&s.q_empty[buffer], Traits::kConsumerWarps);
  }
  for (int stage = 0; stage < Traits::kStages; ++stage) {
    barrier_init(&s.k_full[stage], Traits::kFillArrivals);
    barrier_init(&s.k_empty[stage], Traits::kConsumerWarps);
    barrier_init(&s.v_full[stage], Traits::kFillArrivals);
    barrier_init(&s.v_empty[stage], Traits::kConsumerWarps);
  }
  barrier_init(&s.reduced, Traits::kConsumerWarps);
  for (std::int32_t& tile : s.stopped_tile) tile = 0;
  for (std::uint32_t& value : s.reduction) value = 0;
  barrier_init_fence();
}

template <class Traits>
S2O_DEVICE void attention_quantised_body(const QuantisedKernelArgs& args,
                                         const AttentionMaps& maps) {
  auto& shared = *reinterpret_cast<QuantisedShared<Traits>*>(shared_memory());
  if (thread_index() == 0) start_quantised(shared);
  if constexpr (!Traits::kWideValues) {
    constexpr std::uint32_t kFourOnes = 0x38383838u;
    constexpr int kWords = Traits::kOnesBytes / 4;
    for (int i = thread_index(); i < Traits::kStages * kWords; i += Traits::kThreads) {
      store_shared_word(
          shared_address(shared.v[i / kWords]) + Traits::kValueBytes + i % kWords * 4u, kFourOnes);
    }
    fence_async_proxy();
  }
  sync_block(Traits::kThreads);
  if (thread_index() < Traits::kProducerThreads) {
    set_register_limit_down<Traits::kProducerRegisters>();
    QuantisedProducer<Traits>(args, maps, shared).run();
  } else {
    set_register_limit_up<Traits::kConsumerRegisters>();
    QuantisedConsumer<Traits>(args, shared).run();
  }
}

}  // namespace s2o::device
