#include "lib/prefill/prompts.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <map>
#include <set>
#include <sstream>

#include "lib/config/json_reader.h"
#include "lib/core/error.h"
#include "lib/core/random.h"
#include "lib/core/regular_file.h"
#include "lib/core/strict_json.h"
#include "lib/core/text.h"
#include "lib/model/tokens.h"

namespace s2o {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::int64_t kMaxTokens = std::numeric_limits<std::int32_t>::max();
const std::vector<std::string> kPromptKeys = {"input_ids", "answer_start", "answer_length", "task",
                                              "sample",    "length",       "meta"};

// ---- prompt files ----

std::vector<std::int32_t> read_ids(const JsonReader& reader, int vocab_size) {
  const Json& list = reader.at("input_ids");
  const std::string path = reader.path_of("input_ids");
  if (!list.is_array() || list.empty()) throw_wrong_json(list, path, "a list of token ids");
  std::vector<std::int32_t> ids;
  ids.reserve(list.size());
  for (const Json& value : list) {
    const bool is_id = value.is_number_integer() && value.get<double>() >= 0 &&
                       value.get<double>() < static_cast<double>(vocab_size);
    if (!is_id) {
      throw InputError(fmt::format("{}: token id {} at index {}, expected an id in [0, {})", path,
                                   value.dump(), ids.size(), vocab_size));
    }
    ids.push_back(value.get<std::int32_t>());
  }
  return ids;
}

void read_answer(const JsonReader& reader, Prompt& prompt) {
  const bool has_start = reader.has("answer_start");
  if (has_start != reader.has("answer_length")) {
    throw InputError(fmt::format("{}: key '{}' is missing", reader.path_of("answer"),
                                 has_start ? "answer_length" : "answer_start"));
  }
  if (!has_start) return;
  prompt.answer_start = reader.get_int("answer_start");
  prompt.answer_length = reader.get_int("answer_length");
  const bool inside = prompt.answer_start >= 1 && prompt.answer_length >= 1 &&
                      prompt.answer_start <= prompt.seqlen() &&
                      prompt.answer_length <= prompt.seqlen() - prompt.answer_start;
  if (inside) return;
  throw InputError(fmt::format(
      "{}: {} tokens from {} on, expected at least one, between 1 and the end of {} input_ids",
      reader.path_of("answer"), prompt.answer_length, prompt.answer_start, prompt.seqlen()));
}

Prompt read_prompt(const std::string& line, const std::string& where, const std::string& name,
                   std::int64_t number, int vocab_size) {
  const Json object = parse_strict_json(line);
  const JsonReader reader(object, where + ": ", kPromptKeys);
  Prompt prompt;
  prompt.tokens = read_ids(reader, vocab_size);
  const std::int64_t length = reader.get_int("length", prompt.seqlen());
  if (length != prompt.seqlen()) {
    throw InputError(fmt::format("{}: found {}, the line has {} input_ids",
                                 reader.path_of("length"), length, prompt.seqlen()));
  }
  read_answer(reader, prompt);
  prompt.task = reader.get_string("task", "prompt");
  prompt.name = fmt::format("{}/{}/{}", name, prompt.task, reader.get_int("sample", number, 0));
  return prompt;
}

// ---- entries of a config ----

struct EntryContext {
  const PrefillConfig& config;
  int vocab_size;
  std::vector<Prompt>& prompts;
};

void expand_tokens(const JsonReader& reader, const EntryContext& context) {
  const std::filesystem::path path = context.config.base_folder / reader.get_string("tokens");
  const std::vector<std::int64_t> seqlens = reader.get_ints("seqlen", /*required=*/true, 1);
  std::vector<std::int64_t> offsets = reader.get_ints("offset", /*required=*/false, 0);
  if (offsets.empty()) offsets = {0};
  const std::string name = reader.get_string("name", path.stem().string());
  const bool wants_loss = reader.get_bool("loss", true);
  const TokenFile file = read_token_file(path);
  for (const std::int64_t seqlen : seqlens) {
    for (const std::int64_t offset : offsets) {
      Prompt prompt = {.name = offset == 0 ? name : fmt::format("{}@{}", name, offset),
                       .tokens = select_tokens(file, offset, seqlen, context.vocab_size),
                       .wants_loss = wants_loss && seqlen > 1};
      prompt.identity.origin["tokens"] = reader.get_string("tokens");
      context.prompts.push_back(std::move(prompt));
    }
  }
}

void expand_prompt_file(const JsonReader& reader, const EntryContext& context) {
  const std::filesystem::path path = context.config.base_folder / reader.get_string("prompts");
  const std::string name = reader.get_string("name", path.stem().string());
  const std::vector<std::string> tasks = reader.get_strings("tasks", /*required=*/false);
  const std::vector<std::int64_t> seqlens = reader.get_ints("seqlen", /*required=*/false, 1);
  const std::int64_t samples = reader.get_int("samples", kMaxTokens, 1, kMaxTokens);
  std::map<std::pair<std::string, std::int64_t>, std::int64_t> taken;
  std::set<std::string> known_tasks;
  for (Prompt& prompt : read_prompt_file(path, context.vocab_size, name)) {
    known_tasks.insert(prompt.task);
    const auto is_one_of = [](const auto& list, const auto& value) {
      return list.empty() || std::find(list.begin(), list.end(), value) != list.end();
    };
    if (!is_one_of(tasks, prompt.task) || !is_one_of(seqlens, prompt.seqlen())) continue;
    if (++taken[{prompt.task, prompt.seqlen()}] > samples) continue;
    prompt.identity.origin["prompts"] = reader.get_string("prompts");
    context.prompts.push_back(std::move(prompt));
  }
  if (taken.empty()) {
    throw ConfigError(
        fmt::format("{}: no prompt has one of these tasks and lengths; the file has the tasks {}",
                    reader.path_of("prompts"), join({known_tasks.begin(), known_tasks.end()})));
  }
}

void expand_random(const JsonReader& reader, const EntryContext& context) {
  if (!reader.get_bool("random")) {
    throw ConfigError(fmt::format("{}: found false, expected true", reader.path_of("random")));
  }
  const CounterRandom random(context.config.seed, /*stream=*/0);
  for (const std::int64_t seqlen : reader.get_ints("seqlen", /*required=*/true, 1, kMaxTokens)) {
    Prompt prompt = {.name = reader.get_string("name", "random")};
    prompt.tokens.resize(static_cast<std::size_t>(seqlen));
    for (std::size_t i = 0; i < prompt.tokens.size(); ++i) {
      prompt.tokens[i] = static_cast<std::int32_t>(random.below(i, context.vocab_size));
    }
    context.prompts.push_back(std::move(prompt));
  }
}

struct EntryKind {
  const char* key;
  std::vector<std::string> keys;
  void (*expand)(const JsonReader& reader, const EntryContext& context);
};

const std::vector<EntryKind>& entry_kinds() {
  static const std::vector<EntryKind> kKinds = {
      {"tokens", {"tokens", "name", "seqlen", "offset", "loss"}, expand_tokens},
      {"prompts", {"prompts", "name", "tasks", "seqlen", "samples"}, expand_prompt_file},
      {"random", {"random", "name", "seqlen"}, expand_random}};
  return kKinds;
}

// What is measured on a prompt depends on its tokens, on its answer and on whether losses are asked
// for.
void identify(std::vector<Prompt>& prompts) {
  std::vector<NamedInput> named;
  for (Prompt& prompt : prompts) {
    prompt.identity.facts["tokens_hash"] = tokens_hash(prompt.tokens);
    prompt.identity.facts["answer_start"] = prompt.answer_start;
    prompt.identity.facts["answer_length"] = prompt.answer_length;
    prompt.identity.facts["loss"] = prompt.wants_loss;
    named.push_back({&prompt.name, 0, prompt.seqlen(), &prompt.identity});
  }
  tell_names_apart(named);
}

// Results are known by name and length: two prompts that share both could not be told apart.
void require_distinct(const std::vector<Prompt>& prompts, const std::string& file) {
  std::set<std::pair<std::string, std::int64_t>> seen;
  for (const Prompt& prompt : prompts) {
    if (seen.emplace(prompt.name, prompt.seqlen()).second) continue;
    throw ConfigError(fmt::format(
        "{}: prompts: '{}' with {} tokens occurs twice; give one of them another \"name\", or its "
        "line another \"sample\"",
        file, prompt.name, prompt.seqlen()));
  }
}

}  // namespace

std::vector<Prompt> read_prompt_file(const std::filesystem::path& file, int vocab_size,
                                     const std::string& name) {
  std::istringstream stream(read_whole_file(file));
  std::vector<Prompt> prompts;
  std::int64_t number = 0;
  for (std::string line; std::getline(stream, line);) {
    const std::string where = fmt::format("{}: line {}", file.string(), ++number);
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    try {
      prompts.push_back(
          read_prompt(line, where, name, static_cast<std::int64_t>(prompts.size()), vocab_size));
    } catch (const JsonTextError& error) {
      throw InputError(fmt::format("{}: {}", where, error.what()));
    } catch (const ConfigError& error) {
      throw InputError(error.what());  // the reader's messages name the place already
    }
  }
  if (prompts.empty()) throw InputError(fmt::format("{}: holds no prompt", file.string()));
  return prompts;
}

std::vector<Prompt> expand_prompts(const PrefillConfig& config, int vocab_size) {
  std::vector<Prompt> prompts;
  for (std::size_t i = 0; i < config.prompts.size(); ++i) {
    const Json& entry = config.prompts[i];
    const std::string path = fmt::format("{}: prompts[{}]", config.file, i);
    const auto& kinds = entry_kinds();
    const auto kind = std::find_if(kinds.begin(), kinds.end(), [&entry](const EntryKind& known) {
      return entry.contains(known.key);
    });
    if (kind == kinds.end()) {
      throw ConfigError(fmt::format(
          "{}: expected one of the keys 'tokens' (a token file), 'prompts' (a prompt file), "
          "'random'",
          path));
    }
    kind->expand(JsonReader(entry, path, kind->keys), {config, vocab_size, prompts});
  }
  identify(prompts);
  require_distinct(prompts, config.file);
  return prompts;
}

std::vector<std::int64_t> logit_rows(const Prompt& prompt, int count) {
  std::vector<std::int64_t> rows;
  if (prompt.answer_length > 0) {
    for (std::int64_t i = 0; i < prompt.answer_length; ++i) {
      rows.push_back(prompt.answer_start - 1 + i);
    }
    return rows;
  }
  const std::int64_t wanted = std::min<std::int64_t>(count, prompt.seqlen());
  const CounterRandom random(/*seed=*/0, /*stream=*/1);
  for (std::int64_t i = 0; i < wanted; ++i) {
    const std::int64_t begin = i * prompt.seqlen() / wanted;
    const std::int64_t size = (i + 1) * prompt.seqlen() / wanted - begin;
    rows.push_back(begin + random.below(static_cast<std::uint64_t>(i), size));
  }
  if (wanted > 0) rows.back() = prompt.seqlen() - 1;
  return rows;
}

}  // namespace s2o
