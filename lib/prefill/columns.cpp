#include "lib/prefill/columns.h"

namespace s2o {
namespace {

MetricColumn shown(const char* name, const char* unit, const char* help) {
  return {.name = name, .unit = unit, .help = help};
}
MetricColumn stored(const char* name, const char* unit, const char* help) {
  return {.name = name, .unit = unit, .help = help, .in_text_table = false};
}

}  // namespace

const std::vector<MetricColumn>& prefill_columns() {
  static const std::vector<MetricColumn> kColumns = {
      shown("time_to_first_token_ms", "ms",
            "from tokens to the logits of the last position; median of the repeats"),
      shown("linear_ms", "ms", "of it: matrix products of projections, MLP and the last logits"),
      shown("attention_ms", "ms", "of it: attention"),
      shown("planning_ms", "ms", "of it: choosing what attention visits"),
      stored("communication_ms", "ms",
             "of it: waiting for sums over GPUs, where computing does not hide them"),
      shown("rest_ms", "ms", "of it: embedding, norms, RoPE, activation, residuals, gaps"),
      stored("time_to_first_token_p10_ms", "ms", "10 % quantile; null for a single repeat"),
      stored("time_to_first_token_p90_ms", "ms", "90 % quantile; null for a single repeat"),
      shown("speedup_vs_dense", "", "time to first token of dense on the same prompt / this one"),
      shown("compute_density", "", "mean over layers; see the column of `s2o eval`"),
      stored("pair_density", "", "mean over layers; see the column of `s2o eval`"),
      shown("held_out_loss", "nats", "mean next-token loss of the prompt"),
      stored("dense_loss", "nats", "the same with dense attention"),
      shown("kl_from_dense", "nats", "mean of KL(dense || method) over rows of logits"),
      stored("max_abs_logit_error", "",
             "largest difference from a logit of dense, over those rows"),
      shown("top1_agreement", "", "fraction of those rows with the same best token as dense"),
      stored("logit_rows", "", "rows of logits compared"),
      stored("answer_tokens", "", "tokens of the prompt's answer"),
      stored("answer_correct", "", "of them, those predicted with all tokens before them given"),
      shown("retrieval_accuracy", "", "answer_correct / answer_tokens"),
      shown("exact_match", "", "1 if the whole answer was predicted, else 0"),
      shown("estimated_l2", "",
            "of all layers, from check_rows rows of each: root of the mean squared relative error"),
      stored("estimated_l2_low", "", "lower end of its 95 % interval"),
      stored("estimated_l2_high", "", "upper end of its 95 % interval"),
      shown("estimated_kl", "nats", "of a tuned file with effects of layers, from the same rows"),
      stored("estimated_kl_low", "nats", "lower end of its 95 % interval"),
      stored("estimated_kl_high", "nats", "upper end of its 95 % interval"),
      stored("check_ms", "ms", "what those rows took; in no other time"),
      stored("gpus", "", "that share the model; null on the CPU"),
      stored("device_bytes", "bytes", "planned peak on the device, weights included"),
  };
  return kColumns;
}

}  // namespace s2o
