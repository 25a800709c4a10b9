// `s2o capture` as a function: prefill a model with dense attention and write Q, K and V of some
// layers, and logits of the last positions, to a file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "lib/config/run_config.h"
#include "lib/input/attention_input.h"
#include "lib/model/prefill.h"

namespace s2o {

struct CapturedLayer {
  int layer = 0;
  int kv_group = -1;  // one KV head and its query heads; -1: all heads
};
// "3": layer 3; "3:1": KV group 1 of layer 3. ConfigError "<path>: ..." for anything else.
CapturedLayer parse_captured_layer(const std::string& text, const std::string& path);

struct CaptureOptions {
  std::filesystem::path model;               // Hugging Face model directory
  std::filesystem::path tokens;              // token file (lib/model/tokens.h)
  std::int64_t offset = 0;                   // first token of the file that is used
  std::int64_t seqlen = 0;                   // 0: all tokens from the offset on
  std::vector<CapturedLayer> layers;         // empty: all, unless logits are asked for
  std::int64_t logit_rows = 0;               // of the last positions
  StorageDType dtype = StorageDType::kBF16;  // of attention during prefill, and of the file
  bool allow_nonfinite = false;
  DeviceChoice device;
  std::string cublas_folder;  // as PrefillModel
  std::filesystem::path out;  // .safetensors or .h5
  PrefillProgress progress;   // may be empty
};

struct CaptureSummary {
  std::vector<int> layers;  // ascending
  std::int64_t seqlen = 0;
  std::uintmax_t file_bytes = 0;
};

// Writes tensors "layer.<i>.q", ".k" and ".v" [heads, seqlen, head_dim] (lib/input/capture_file.h),
// if asked for "logits" [logit_rows, vocab_size] in fp32, and, where the format has a place for
// it, metadata: model, tokens, offset, seqlen, dtype, device. On the CPU, layers after the last one
// asked for are not computed.
//
// Everything that can be checked is checked before the prefill: ConfigError for a layer or KV group
// that the model does not have or an output that cannot be created, else the errors of load_model,
// read_token_file, make_prefill_backend, its run and write_capture.
CaptureSummary capture(const CaptureOptions& options);

}  // namespace s2o
