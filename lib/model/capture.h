// `s2o capture` as a function: prefill a model and write Q, K and V of some layers to a file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "lib/input/attention_input.h"
#include "lib/model/prefill.h"

namespace s2o {

struct CaptureOptions {
  std::filesystem::path model;               // Hugging Face model directory
  std::filesystem::path tokens;              // token file (lib/model/tokens.h)
  std::int64_t offset = 0;                   // first token of the file that is used
  std::int64_t seqlen = 0;                   // 0: all tokens from the offset on
  std::vector<int> layers;                   // empty: all
  StorageDType dtype = StorageDType::kBF16;  // of attention during prefill, and of the file
  bool allow_nonfinite = false;
  std::filesystem::path out;  // .safetensors or .h5
  PrefillProgress progress;   // may be empty
};

struct CaptureSummary {
  std::vector<int> layers;  // ascending
  Problem problem;          // of every layer
  PrefillTimes times;
  std::uintmax_t file_bytes = 0;
};

// Writes tensors "layer.<i>.q", ".k" and ".v" [heads, seqlen, head_dim] (lib/input/capture_file.h)
// and, where the format has a place for it, metadata: model, tokens, offset, seqlen, dtype.
// Layers after the last one asked for are not computed.
//
// Everything that can be checked is checked before the prefill: ConfigError for a layer that the
// model does not have or an output that cannot be created, else the errors of load_model,
// read_token_file, Prefill and write_capture.
CaptureSummary capture(const CaptureOptions& options);

}  // namespace s2o
