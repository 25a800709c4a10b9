#include "lib/eval/config_schema.h"

#include <cmath>
#include <string>
#include <vector>

#include "lib/config/params.h"
#include "lib/config/run_config.h"
#include "lib/input/synthetic.h"
#include "lib/methods/method.h"

namespace s2o {
namespace {

using Json = nlohmann::ordered_json;

Json number_or_integer(double value) {
  const bool whole = value == std::nearbyint(value) && std::abs(value) < 0x1p53;
  return whole ? Json(static_cast<std::int64_t>(value)) : Json(value);
}

// The schema of one value of a parameter.
Json scalar_schema(const ParamSpec& spec) {
  switch (spec.type) {
    case ParamType::kBool:
      return {{"type", "boolean"}};
    case ParamType::kChoice:
      return {{"enum", spec.choices}};
    case ParamType::kInt:
    case ParamType::kReal:
      break;
  }
  Json schema = {{"type", spec.type == ParamType::kInt ? "integer" : "number"}};
  if (std::isfinite(spec.min)) schema["minimum"] = number_or_integer(spec.min);
  if (std::isfinite(spec.max)) schema["maximum"] = number_or_integer(spec.max);
  return schema;
}

Json sweep_of(const Json& scalar, bool unique) {
  Json list = {{"type", "array"}, {"items", scalar}, {"minItems", 1}};
  if (unique) list["uniqueItems"] = true;
  return {{"anyOf", {scalar, list}}};
}

Json default_json(const ParamValue& value) {
  return std::visit(
      [](const auto& held) -> Json {
        if constexpr (std::is_same_v<std::decay_t<decltype(held)>, std::monostate>) {
          return nullptr;
        } else {
          return held;
        }
      },
      value);
}

Json param_schema(const ParamSpec& spec) {
  Json scalar = scalar_schema(spec);
  if (std::holds_alternative<std::monostate>(spec.value)) {
    scalar = {{"anyOf", {scalar, {{"type", "null"}}}}};
  }
  Json schema = {{"description", spec.help}, {"default", default_json(spec.value)}};
  schema.update(sweep_of(scalar, false));
  return schema;
}

// An object with exactly these properties.
Json object_schema(const std::string& description, const Json& properties,
                   const std::vector<std::string>& required) {
  Json schema = {{"type", "object"}};
  if (!description.empty()) schema["description"] = description;
  schema["properties"] = properties;
  if (!required.empty()) schema["required"] = required;
  schema["additionalProperties"] = false;
  return schema;
}

Json described(Json schema, const std::string& description) {
  schema["description"] = description;
  return schema;
}

Json params_entry(const std::string& key, const std::string& name, const std::string& description,
                  const std::vector<ParamSpec>& specs) {
  Json properties = {{key, {{"const", name}}}};
  for (const ParamSpec& spec : specs) properties[spec.name] = param_schema(spec);
  return object_schema(description, properties, {key});
}

// Integers of a list that JsonReader reads: no value twice.
Json integers(std::int64_t min) { return sweep_of({{"type", "integer"}, {"minimum", min}}, true); }

Json weights_entry() {
  const Json text = {{"type", "string"}};
  return object_schema("Q, K and V of a model's prefill, on the CPU",
                       {{"source", {{"const", "weights"}}},
                        {"name", described(text, "of the input in tables; default: model/tokens")},
                        {"model", described(text, "Hugging Face model directory")},
                        {"tokens", described(text, "token file")},
                        {"seqlen", described(integers(1), "tokens; a list is a sweep")},
                        {"layers", described(integers(0), "default: all")},
                        {"offset",
                         {{"type", "integer"},
                          {"minimum", 0},
                          {"default", 0},
                          {"description", "first token of the file that is used"}}}},
                       {"source", "model", "tokens", "seqlen"});
}

Json dump_entry() {
  const Json text = {{"type", "string"}};
  return object_schema(
      "Q, K and V from tensor files",
      {{"source", {{"const", "dump"}}},
       {"name", described(text, "of the input in tables; default: dump/<file>")},
       {"path", described(sweep_of(text, true), "tensor file, or several")},
       {"tensors", object_schema("names in the file; may hold {layer}",
                                 {{"q", text}, {"k", text}, {"v", text}}, {})},
       {"layout", {{"enum", {"head_major", "token_major"}}, {"default", "head_major"}}},
       {"layers", described(integers(0), "default: all that the file names")}},
      {"source", "path"});
}

Json timing_schema() {
  const TimingConfig defaults;
  const auto count = [](int min, int value, const char* description) -> Json {
    return {{"type", "integer"},
            {"minimum", min},
            {"maximum", kMaxRepeats},
            {"default", value},
            {"description", description}};
  };
  return object_schema(
      "",
      {{"warmup", count(0, defaults.warmup, "untimed runs before the timed ones, on CUDA")},
       {"repeats", count(1, defaults.repeats, "timed runs on CUDA")},
       {"cpu_repeats", count(1, defaults.cpu_repeats, "timed runs on the CPU, without warm-up")}},
      {});
}

Json flag(bool value, const char* description) {
  return {{"type", "boolean"}, {"default", value}, {"description", description}};
}

}  // namespace

Json config_schema() {
  const RunConfig defaults;
  Json methods = Json::array();
  for (const Method* method : all_methods()) {
    const MethodInfo& info = method->info();
    methods.push_back(params_entry("name", info.name, info.summary, info.params));
  }
  const Json inputs = {
      weights_entry(), dump_entry(),
      params_entry("source", "synthetic", "Seeded structured Q, K and V", synthetic_param_specs())};
  Json properties = {
      {"$schema", {{"type", "string"}, {"description", "for editors; no effect"}}},
      {"name",
       {{"type", "string"},
        {"pattern", "^(?!\\.{1,2}$)[^/\\u0000]+$"},
        {"description", "of the run and of its folder below results/; default: the file's name"}}},
      {"seed", {{"type", "integer"}, {"minimum", 0}, {"default", defaults.seed}}},
      {"device",
       {{"type", "string"},
        {"pattern", "^(auto|cpu|cuda(:[0-9]{1,9})?)$"},
        {"default", device_text(defaults.device)}}},
      {"kernel",
       {{"enum", kernel_choices()},
        {"default", defaults.kernel},
        {"description", "attention kernel: the best of the device, or a variant"}}},
      {"dtype",
       {{"enum", kDTypeChoices},
        {"default", defaults.dtype},
        {"description", "storage of Q, K and V"}}},
      {"inputs", {{"type", "array"}, {"minItems", 1}, {"items", {{"oneOf", inputs}}}}},
      {"methods", {{"type", "array"}, {"minItems", 1}, {"items", {{"oneOf", methods}}}}},
      {"timing", timing_schema()},
      {"save_outputs", flag(defaults.save_outputs, "keep each method's output in results.h5")},
      {"allow_nonfinite", flag(defaults.allow_nonfinite, "go on when Q, K or V hold NaN or inf")}};
  Json schema = {{"$schema", "https://json-schema.org/draft/2020-12/schema"},
                 {"title", "s2o run config"}};
  schema.update(object_schema("A list where a single value is expected is a sweep.", properties,
                              {"inputs", "methods"}));
  return schema;
}

}  // namespace s2o
