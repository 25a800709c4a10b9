// Token files: int32, int64 or uint16 `input_ids` ([n] or [1, n]) in a tensor file (safetensors,
// npy, ...), or ids separated by whitespace in any other file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace s2o {

struct TokenFile {
  std::string file;               // for messages
  std::vector<std::int64_t> ids;  // as stored, not checked against any vocabulary
};

// InputError for a file that is missing or broken, another dtype or rank, or text that is no id.
TokenFile read_token_file(const std::filesystem::path& path);

// Ids [offset, offset + seqlen). InputError when the file is too short, or an id of that range lies
// outside [0, vocab_size), with its index in the file.
std::vector<std::int32_t> select_tokens(const TokenFile& file, std::int64_t offset,
                                        std::int64_t seqlen, int vocab_size);

// What tells one sequence of tokens from another: 16 hexadecimal digits.
std::string tokens_hash(const std::vector<std::int32_t>& tokens);

}  // namespace s2o
