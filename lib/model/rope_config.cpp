#include "lib/model/rope_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <set>
#include <string>
#include <utility>

#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/core/text.h"

namespace s2o {
namespace {

constexpr const char* kTypes = "default, linear, dynamic, yarn, llama3";
constexpr const char* kOriginal = "original_max_position_embeddings";

void check_whole_heads_rotate(const ConfigFields& fields) {
  const float part = fields.real("partial_rotary_factor", 1.0f);
  if (part != 1.0f) fields.unsupported("partial_rotary_factor", fmt::format("{}", part), "1");
}

// Null when absent, null or empty: transformers goes on to the other key then.
const nlohmann::json* rope_object(const ConfigFields& root, const char* key) {
  const nlohmann::json* value = root.find(key);
  if (value == nullptr) return nullptr;
  if (!value->is_object()) root.wrong(key, "an object");
  return value->empty() ? nullptr : value;
}

// A theta may stand in one of them only, and the type under its old name.
nlohmann::json comparable(nlohmann::json rope) {
  if (rope.contains("type") && !rope.contains("rope_type")) rope["rope_type"] = rope["type"];
  rope.erase("type");
  rope.erase("rope_theta");
  return rope;
}

void check_agreement(const ConfigFields& root, const nlohmann::json& scaling,
                     const nlohmann::json& parameters) {
  const nlohmann::json a = comparable(scaling);
  const nlohmann::json b = comparable(parameters);
  std::set<std::string> keys;
  for (const auto& [key, value] : a.items()) keys.insert(key);
  for (const auto& [key, value] : b.items()) keys.insert(key);
  for (const std::string& key : keys) {
    const nlohmann::json left = a.value(key, nlohmann::json());
    const nlohmann::json right = b.value(key, nlohmann::json());
    if (left == right) continue;
    throw InputError(fmt::format(
        "{0}: {1} is {2} here and {3} in rope_parameters; expected one of the two keys, "
        "or the same in both",
        root.place("rope_scaling"), key, left.dump(), right.dump()));
  }
}

// One object counts before the top level, as in transformers; two must agree with it.
float read_theta(const ConfigFields& root, const nlohmann::json* scaling,
                 const nlohmann::json* parameters) {
  struct Found {
    std::string place;
    float theta;
  };
  std::vector<Found> found;  // the first counts
  const auto look = [&found](const ConfigFields& fields) {
    constexpr const char* kKey = "rope_theta";
    if (fields.find(kKey) != nullptr) found.push_back({fields.place(kKey), fields.real(kKey, {})});
  };
  if (scaling != nullptr) look({*scaling, root.place("rope_scaling") + "."});
  if (parameters != nullptr) look({*parameters, root.place("rope_parameters") + "."});
  look(root);
  if (found.empty()) {
    const float fallback = RopeConfig{}.theta;
    log_warning("{}: missing, {} is used, as in transformers", root.place("rope_theta"), fallback);
    return fallback;
  }
  const Found& used = found.front();
  const bool both = scaling != nullptr && parameters != nullptr;
  for (const Found& other : found) {
    if (other.theta == used.theta) continue;
    if (both) {
      throw InputError(fmt::format("{}: found {}, but {} says {}; expected one theta", used.place,
                                   used.theta, other.place, other.theta));
    }
    log_warning("{}: found {}, but {} says {}, which is used, as in transformers", other.place,
                other.theta, used.place, used.theta);
  }
  if (both && found.size() == 1) {
    log_warning("{}: found {}, which is used for the other rope key too", used.place, used.theta);
  }
  return used.theta;
}

void warn_about_unused(const ConfigFields& fields, const std::string& type,
                       std::vector<std::string> used) {
  for (const char* always : {"rope_type", "type", "rope_theta", "partial_rotary_factor"}) {
    used.emplace_back(always);
  }
  for (const auto& [key, value] : fields.object().items()) {
    if (std::find(used.begin(), used.end(), key) != used.end()) continue;
    log_warning("{}: not part of rope type {}, ignored", fields.place(key.c_str()), type);
  }
}

// "rope_type", or "type" in older files. Without either only a theta may stand there.
std::string read_type(const ConfigFields& fields) {
  for (const auto& [key, value] : fields.object().items()) {
    if (value.is_object()) {  // per-layer-type rope parameters
      fields.unsupported(key.c_str(), "an object", "one rope for all layers");
    }
  }
  if (fields.find("rope_type") == nullptr && fields.find("type") == nullptr) {
    for (const auto& [key, value] : fields.object().items()) {
      if (key == "rope_theta" || key == "partial_rotary_factor" || value.is_null()) continue;
      fields.wrong("rope_type", fmt::format("one of {}, since {} is given", kTypes, key));
    }
    return "default";
  }
  const std::string old = fields.text("type", "");
  const std::string type = fields.text("rope_type", old);
  if (!old.empty() && old != type) {
    log_warning("{}: found '{}', but rope_type '{}' is used, as in transformers",
                fields.place("type"), old, type);
  }
  return type;
}

float read_factor(const ConfigFields& fields) {
  const float factor = fields.real("factor", {});
  if (factor < 1.0f) {
    log_warning("{}: {} shortens the context; factors are at least 1", fields.place("factor"),
                factor);
  }
  return factor;
}

// Beside rope_scaling it counts more than inside, as in transformers. 0 when missing.
std::int64_t read_original(const ConfigFields& root, const ConfigFields& fields) {
  const std::int64_t inside = fields.find(kOriginal) == nullptr
                                  ? 0
                                  : fields.positive(kOriginal, {}, ConfigFields::kMaxTokens);
  if (root.find(kOriginal) == nullptr) return inside;
  const std::int64_t top = root.positive(kOriginal, {}, ConfigFields::kMaxTokens);
  if (inside != 0 && inside != top) {
    log_warning("{}: found {}, but {} says {}, which is used, as in transformers",
                fields.place(kOriginal), inside, root.place(kOriginal), top);
  }
  return top;
}

void read_llama3(const ConfigFields& root, const ConfigFields& fields, std::int64_t max_positions,
                 RopeConfig& rope) {
  rope.factor = read_factor(fields);
  rope.low_freq_factor = fields.real("low_freq_factor", {});
  rope.high_freq_factor = fields.real("high_freq_factor", {});
  if (rope.high_freq_factor <= rope.low_freq_factor) {
    fields.wrong("high_freq_factor",
                 fmt::format("more than low_freq_factor {}", rope.low_freq_factor));
  }
  rope.original_max_position_embeddings = read_original(root, fields);
  if (rope.original_max_position_embeddings == 0) {
    if (max_positions == 0) fields.wrong(kOriginal, "the length before scaling, in tokens");
    log_warning("{}: missing, max_position_embeddings {} is used, as in transformers",
                fields.place(kOriginal), max_positions);
    rope.original_max_position_embeddings = max_positions;
  }
  warn_about_unused(fields, "llama3", {"factor", "low_freq_factor", "high_freq_factor", kOriginal});
}

double attention_scale(double factor, double mscale) {
  return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

float read_attention_factor(const ConfigFields& fields, float factor) {
  if (fields.find("attention_factor") != nullptr) return fields.real("attention_factor", {});
  const auto mscale_of = [&fields](const char* key) {
    const nlohmann::json* value = fields.find(key);
    if (value == nullptr || *value == 0) return 0.0f;
    return fields.real(key, {});
  };
  const float mscale = mscale_of("mscale");
  const float mscale_all_dim = mscale_of("mscale_all_dim");
  const double scale =
      mscale != 0.0f && mscale_all_dim != 0.0f
          ? attention_scale(factor, mscale) / attention_scale(factor, mscale_all_dim)
          : attention_scale(factor, 1.0);
  return static_cast<float>(scale);
}

void read_yarn(const ConfigFields& root, const ConfigFields& fields, std::int64_t max_positions,
               RopeConfig& rope) {
  rope.original_max_position_embeddings = read_original(root, fields);
  if (rope.original_max_position_embeddings == 0) {
    // transformers would take max_position_embeddings, which in a config made for the long context
    // is that of after scaling, and quietly compute other frequencies.
    fields.wrong(kOriginal, "the length in tokens before YaRN");
  }
  const auto factor = fields.object().find("factor");
  if (factor != fields.object().end() && factor->is_null() && max_positions > 0) {
    rope.factor = static_cast<float>(static_cast<double>(max_positions) /
                                     static_cast<double>(rope.original_max_position_embeddings));
  } else {
    rope.factor = read_factor(fields);
  }
  // 0 counts as absent.
  const auto rotations = [&fields](const char* key, float fallback) {
    const nlohmann::json* value = fields.find(key);
    return value != nullptr && *value == 0 ? fallback : fields.real(key, fallback);
  };
  rope.beta_fast = rotations("beta_fast", rope.beta_fast);
  rope.beta_slow = rotations("beta_slow", rope.beta_slow);
  if (rope.beta_fast < rope.beta_slow) {
    fields.wrong(
        fields.find("beta_fast") != nullptr ? "beta_fast" : "beta_slow",
        fmt::format("beta_fast {} to be at least beta_slow {}", rope.beta_fast, rope.beta_slow));
  }
  if (rope.theta <= 1.0f) {
    throw InputError(fmt::format("{}: found {}, expected a number > 1 (YaRN takes its logarithm)",
                                 root.place("rope_theta"), rope.theta));
  }
  rope.truncate = fields.flag("truncate", true);
  rope.attention_factor = read_attention_factor(fields, rope.factor);
  warn_about_unused(fields, "yarn",
                    {"factor", kOriginal, "attention_factor", "beta_fast", "beta_slow", "truncate",
                     "mscale", "mscale_all_dim"});
}

float power(float theta, std::size_t pair, int head_dim) {
  return std::pow(theta, static_cast<float>(2 * pair) / static_cast<float>(head_dim));
}

// The pair, as a real number, whose wavelength fits `rotations` times into the original context.
double correction_dim(const RopeConfig& rope, double rotations, double head_dim) {
  const auto original = static_cast<double>(rope.original_max_position_embeddings);
  return head_dim * std::log(original / (rotations * 2.0 * std::numbers::pi)) /
         (2.0 * std::log(static_cast<double>(rope.theta)));
}

// Between the borders a pair's frequency goes from kept to divided, linearly in its index.
void scale_yarn(const RopeConfig& rope, int head_dim, std::vector<float>& frequencies) {
  double low = correction_dim(rope, rope.beta_fast, head_dim);
  double high = correction_dim(rope, rope.beta_slow, head_dim);
  if (rope.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, head_dim - 1.0);
  if (low == high) high += 0.001;
  const auto width = static_cast<float>(high - low);
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    const float ramp =
        std::clamp((static_cast<float>(i) - static_cast<float>(low)) / width, 0.0f, 1.0f);
    const float kept = 1.0f - ramp;
    const float divided = 1.0f / (rope.factor * power(rope.theta, i, head_dim));
    frequencies[i] = divided * (1.0f - kept) + frequencies[i] * kept;
  }
}

void scale_llama3(const RopeConfig& rope, std::vector<float>& frequencies) {
  const auto original = static_cast<float>(rope.original_max_position_embeddings);
  const float longest_kept = original / rope.high_freq_factor;
  const float shortest_divided = original / rope.low_freq_factor;
  for (float& frequency : frequencies) {
    const float wavelength = 2.0f * std::numbers::pi_v<float> / frequency;  // tokens
    if (wavelength > shortest_divided) {
      frequency /= rope.factor;
    } else if (wavelength >= longest_kept) {
      const float kept = (original / wavelength - rope.low_freq_factor) /
                         (rope.high_freq_factor - rope.low_freq_factor);
      frequency = (1.0f - kept) * frequency / rope.factor + kept * frequency;
    }
  }
}

// NTK-aware: beyond the trained length theta grows with the prompt.
float dynamic_theta(const RopeConfig& rope, int head_dim, std::int64_t seqlen) {
  if (seqlen <= rope.original_max_position_embeddings) return rope.theta;
  const float stretch = rope.factor * static_cast<float>(seqlen) /
                            static_cast<float>(rope.original_max_position_embeddings) -
                        (rope.factor - 1.0f);
  return rope.theta *
         std::pow(stretch, static_cast<float>(static_cast<double>(head_dim) / (head_dim - 2)));
}

}  // namespace

const char* rope_type_name(RopeType type) {
  switch (type) {
    case RopeType::kDefault:
      return "default";
    case RopeType::kLinear:
      return "linear";
    case RopeType::kDynamic:
      return "dynamic";
    case RopeType::kYarn:
      return "yarn";
    case RopeType::kLlama3:
      return "llama3";
  }
  return "";
}

RopeConfig read_rope_config(const ConfigFields& root, std::int64_t max_positions) {
  check_whole_heads_rotate(root);
  const nlohmann::json* const scaling = rope_object(root, "rope_scaling");
  const nlohmann::json* const parameters = rope_object(root, "rope_parameters");
  if (scaling != nullptr && parameters != nullptr) check_agreement(root, *scaling, *parameters);
  RopeConfig rope;
  rope.theta = read_theta(root, scaling, parameters);
  if (scaling == nullptr && parameters == nullptr) return rope;
  const char* const key = scaling != nullptr ? "rope_scaling" : "rope_parameters";
  const ConfigFields fields(scaling != nullptr ? *scaling : *parameters, root.place(key) + ".");
  const std::string type = read_type(fields);
  check_whole_heads_rotate(fields);
  if (type == "default") {
    warn_about_unused(fields, type, {});
  } else if (type == "linear") {
    rope.type = RopeType::kLinear;
    rope.factor = read_factor(fields);
    warn_about_unused(fields, type, {"factor"});
  } else if (type == "dynamic") {
    rope.type = RopeType::kDynamic;
    rope.factor = read_factor(fields);
    rope.original_max_position_embeddings = max_positions;
    if (max_positions == 0) {
      root.wrong("max_position_embeddings", "the length in tokens that dynamic rope starts from");
    }
    warn_about_unused(fields, type, {"factor"});
  } else if (type == "yarn") {
    rope.type = RopeType::kYarn;
    read_yarn(root, fields, max_positions, rope);
  } else if (type == "llama3") {
    rope.type = RopeType::kLlama3;
    read_llama3(root, fields, max_positions, rope);
  } else {
    const char* const type_key = fields.find("rope_type") != nullptr ? "rope_type" : "type";
    fields.unsupported(type_key, "'" + type + "'", kTypes);
  }
  return rope;
}

RopeFrequencies rope_frequencies(const RopeConfig& rope, int head_dim, std::int64_t seqlen) {
  const float theta =
      rope.type == RopeType::kDynamic ? dynamic_theta(rope, head_dim, seqlen) : rope.theta;
  RopeFrequencies result;
  result.inverse.resize(static_cast<std::size_t>(head_dim / 2));
  for (std::size_t i = 0; i < result.inverse.size(); ++i) {
    result.inverse[i] = 1.0f / power(theta, i, head_dim);
  }
  switch (rope.type) {
    case RopeType::kDefault:
    case RopeType::kDynamic:
      break;
    case RopeType::kLinear:
      for (float& frequency : result.inverse) frequency /= rope.factor;
      break;
    case RopeType::kYarn:
      scale_yarn(rope, head_dim, result.inverse);
      result.scale = rope.attention_factor;
      break;
    case RopeType::kLlama3:
      scale_llama3(rope, result.inverse);
      break;
  }
  return result;
}

}  // namespace s2o
