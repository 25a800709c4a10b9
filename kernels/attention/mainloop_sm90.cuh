// The Hopper attention kernels: a persistent block of one producer and one or two consumer
// warpgroups. Blocks take tiles from a counter, heavy tiles first. TraitsSm90 is the kernel over
// 16-bit input, QuantisedTraits that over quantised input (quantise.h).
#pragma once

#include "kernels/attention/consumer_sm90.cuh"
#include "kernels/attention/producer_sm90.cuh"
#include "kernels/attention/quantised_consumer_sm90.cuh"
#include "kernels/attention/quantised_producer_sm90.cuh"

namespace s2o::device {

template <class Traits>
S2O_DEVICE void init_barriers_sm90(SharedSm90<Traits>& s) {
  for (int buffer = 0; buffer < SharedSm90<Traits>::kQueryBuffers; ++buffer) {
    barrier_init(&s.q_full[buffer], Traits::kFillArrivals);
    barrier_init(&s.q_empty[buffer], Traits::kConsumerWarps);
  }
  for (int stage = 0; stage < Traits::kStages; ++stage) {
    barrier_init(&s.k_full[stage], Traits::kFillArrivals);
    barrier_init(&s.k_empty[stage], Traits::kConsumerWarps);
    barrier_init(&s.v_full[stage], Traits::kFillArrivals);
    barrier_init(&s.v_empty[stage], Traits::kConsumerWarps);
  }
  barrier_init(&s.all_posted, Traits::kConsumerWarps);
}

// Calls launch.operator()<StepDecision>() for the instance that the plan needs (host).
template <class Launch>
void with_decision_sm90(const AttentionKernelArgs& args, const Launch& launch) {
  if (args.stop.tau > 0.0f) {
    launch.template operator()<StepDecision::kEarlyStop>();
  } else if (args.pv_skip_threshold > 0.0f) {
    launch.template operator()<StepDecision::kPvSkip>();
  } else {
    launch.template operator()<StepDecision::kNone>();
  }
}

template <class Traits>
S2O_DEVICE void attention_sm90_body(const typename Traits::Args& args, const AttentionMaps& maps) {
  using Consumer = typename Traits::Consumer;
  static_assert(
      Traits::kProducerRegisters + Traits::kConsumerWarpgroups * Traits::kConsumerRegisters <= 504);
  auto& shared = *reinterpret_cast<SharedSm90<Traits>*>(shared_memory());
  if (thread_index() == 0) {
    init_barriers_sm90<Traits>(shared);
    Consumer::init_decisions(shared);
    barrier_init_fence();
  }
  if constexpr (Traits::kOnesBytes > 0) Consumer::write_ones(shared);
  sync_block(Traits::kThreads);
  if (thread_index() < Traits::kProducerThreads) {
    set_register_limit_down<Traits::kProducerRegisters>();
    typename Traits::Producer(args, maps, shared).run();
  } else {
    set_register_limit_up<Traits::kConsumerRegisters>();
    Consumer(args, shared).run();
  }
}

}  // namespace s2o::device
