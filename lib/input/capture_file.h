// Files that s2o writes Q, K and V to, and reads back with "source": "dump".
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "lib/input/attention_input.h"
#include "lib/input/formats/format.h"

namespace s2o {

// "layer.12.q": tensor "q", "k" or "v" of a captured layer, [heads, seqlen, head_dim].
std::string capture_tensor_name(int layer, std::string_view tensor);

// Layers of which the file has a tensor with such a name, ascending; empty for other files.
std::vector<int> captured_layers(const TensorFile& file);

// One set of tensors per input, named by its layer, each stored in its input's dtype. The format
// follows from the extension (safetensors or HDF5). Errors: those of Format::write, and
// UnsupportedError when two inputs have the same layer. `others` are written after them.
void write_capture(const std::filesystem::path& path, const std::vector<AttentionInput>& inputs,
                   const TensorMetadata& metadata = {}, std::vector<HostTensor> others = {});

// A single input as tensors "q", "k" and "v".
void write_dump(const std::filesystem::path& path, const AttentionInput& input,
                const TensorMetadata& metadata = {});

}  // namespace s2o
