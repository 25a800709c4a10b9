// What is prefilled: windows of token files, prompts with a known answer, or random tokens.
//
// A prompt file is JSON lines: one object per line with
//   input_ids      the whole prompt, the answer included
//   answer_start   index of the first token of the answer, and
//   answer_length  its tokens; both or neither
//   task           what kind of prompt it is, "prompt" if absent
//   sample         its number within task and length; default: the number of the line, from 0
//   length         if there, has to be the number of input_ids
//   meta           anything; not read
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "lib/config/prefill_config.h"
#include "lib/input/identity.h"

namespace s2o {

struct Prompt {
  std::string name;  // "war_and_peace", "tasks/niah_single/3"
  std::string task;  // "" for text without an answer
  std::vector<std::int32_t> tokens;
  std::int64_t answer_start = 0;
  std::int64_t answer_length = 0;  // 0: there is no answer
  bool wants_loss = false;         // next-token loss of every position
  InputIdentity identity = {};

  std::int64_t seqlen() const { return static_cast<std::int64_t>(tokens.size()); }
};

// The "prompts" of a config, in order. ConfigError for wrong keys and values; InputError for files
// that are missing or broken, token ids outside [0, vocab_size) (with file, line and index) and
// answers outside their prompt.
std::vector<Prompt> expand_prompts(const PrefillConfig& config, int vocab_size);

// All prompts of a prompt file. Their names begin with `name`.
std::vector<Prompt> read_prompt_file(const std::filesystem::path& file, int vocab_size,
                                     const std::string& name);

// Rows of logits that are compared and scored, ascending: those that predict the answer, or else
// one out of each of `count` equal parts of the prompt, the last row among them. Which one is
// random but fixed: rows at even distances would all have the same place in a tile.
std::vector<std::int64_t> logit_rows(const Prompt& prompt, int count);

}  // namespace s2o
