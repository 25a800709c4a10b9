// Seeded synthetic Q, K, V with the structures that real attention maps show, so that a method can
// be tried without a model. Not a substitute for real attention: label results so.
//
// Every logit (after softmax_scale) is a sum of independent parts; `strength` is the logit boost of
// a structure over the noise, `noise` the standard deviation of the noise logits:
//   noise         q, k i.i.d. normal; key norms log-normal (sigma 0.5), which makes the softmax
//                 heavy-tailed: few keys are large for all queries
//   sinks         keys 0..3 share a direction with every query: + strength (their values are small,
//                 as in real models)
//   stripes       1 key in 128 (seeded) is a vertical stripe: + strength for every later query
//   slashes       4 distances per head (seeded, distance 0 among them): + strength for the keys at
//                 that distance, by 48 rotating planes of geometric frequencies, as RoPE does it
//   needles       seqlen / 64 pairs (run of 64 queries, one earlier key): + 1.5 strength
//   heavy_tail    topics: token x has a topic drawn from a Zipf law over 64 topics; query and key
//   of
//                 one topic gain + strength: important keys are scattered single tokens
//   mixed         all of them, each with 0.6 strength
//   uniform       no structure and no noise in k: every causal key has the same mass
// Values: i.i.d. normal plus a topic mean, so that what a query finds matters to its output.
//
// Share of the causal keys that hold 95 % of the mass of a late query (2,048 tokens, defaults;
// pinned by lib/input/tests/synthetic_test.cpp): uniform .95, sinks .23, stripes .17, needles .13,
// heavy_tail .095, slashes .014, mixed .009.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "lib/config/params.h"
#include "lib/input/attention_input.h"

namespace s2o {

// seqlen, num_q_heads, num_kv_heads, head_dim, pattern, strength, noise.
const std::vector<ParamSpec>& synthetic_param_specs();

// ConfigError "<path>.<parameter>: found, expected" for values that do not fit each other.
void check_synthetic(const ParamSet& params, const std::string& path);

// What make_synthetic takes at its peak.
std::uint64_t synthetic_bytes(const ParamSet& params);

// Of params that pass the check. Deterministic in (params, seed); not rounded and not validated
// yet.
AttentionInput make_synthetic(const ParamSet& params, std::uint64_t seed);

}  // namespace s2o
