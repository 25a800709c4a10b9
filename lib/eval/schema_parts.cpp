#include "lib/eval/schema_parts.h"

#include <cmath>

#include "lib/config/params.h"
#include "lib/config/run_config.h"
#include "lib/input/synthetic.h"
#include "lib/methods/setting.h"

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
    case ParamType::kPath:
      return {{"type", "string"}};
    case ParamType::kInt:
      if (!spec.allowed.empty()) return {{"enum", spec.allowed}};
      break;
    case ParamType::kReal:
      break;
  }
  Json schema = {{"type", spec.type == ParamType::kInt ? "integer" : "number"}};
  if (std::isfinite(spec.min)) schema["minimum"] = number_or_integer(spec.min);
  if (std::isfinite(spec.max)) schema["maximum"] = number_or_integer(spec.max);
  return schema;
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
  schema.update(schema_sweep(scalar, false));
  return schema;
}

Json params_entry(const std::string& key, const std::string& name, const std::string& description,
                  const std::vector<ParamSpec>& specs, const Json& extra) {
  Json properties = {{key, {{"const", name}}}};
  for (const ParamSpec& spec : specs) properties[spec.name] = param_schema(spec);
  properties.update(extra);
  return schema_object(description, properties, {key});
}

}  // namespace

Json schema_sweep(const Json& scalar, bool unique) {
  Json list = {{"type", "array"}, {"items", scalar}, {"minItems", 1}};
  if (unique) list["uniqueItems"] = true;
  return {{"anyOf", {scalar, list}}};
}

Json schema_object(const std::string& description, const Json& properties,
                   const std::vector<std::string>& required) {
  Json schema = {{"type", "object"}};
  if (!description.empty()) schema["description"] = description;
  schema["properties"] = properties;
  if (!required.empty()) schema["required"] = required;
  schema["additionalProperties"] = false;
  return schema;
}

Json schema_described(Json schema, const std::string& description) {
  schema["description"] = description;
  return schema;
}

Json schema_integers(std::int64_t min) {
  return schema_sweep({{"type", "integer"}, {"minimum", min}}, true);
}

Json weights_entry() {
  const Json text = {{"type", "string"}};
  return schema_object(
      "Q, K and V of a model's prefill, on the CPU",
      {{"source", {{"const", "weights"}}},
       {"name", schema_described(text, "of the input in tables; default: model/tokens")},
       {"model", schema_described(text, "Hugging Face model directory")},
       {"tokens", schema_described(text, "token file")},
       {"seqlen", schema_described(schema_integers(1), "tokens; a list is a sweep")},
       {"layers", schema_described(schema_integers(0), "default: all")},
       {"offset",
        {{"type", "integer"},
         {"minimum", 0},
         {"default", 0},
         {"description", "first token of the file that is used"}}}},
      {"source", "model", "tokens", "seqlen"});
}

Json dump_entry() {
  const Json text = {{"type", "string"}};
  return schema_object(
      "Q, K and V from tensor files",
      {{"source", {{"const", "dump"}}},
       {"name", schema_described(text, "of the input in tables; default: dump/<file>")},
       {"path", schema_described(schema_sweep(text, true), "tensor file, or several")},
       {"tensors", schema_object("names in the file; may hold {layer}",
                                 {{"q", text}, {"k", text}, {"v", text}}, {})},
       {"layout", {{"enum", {"head_major", "token_major"}}, {"default", "head_major"}}},
       {"layers", schema_described(schema_integers(0), "default: all that the file names")}},
      {"source", "path"});
}

Json timing_schema(const TimingConfig& defaults, int min_repeats) {
  const auto count = [](int min, int value, const char* description) -> Json {
    return {{"type", "integer"},
            {"minimum", min},
            {"maximum", kMaxRepeats},
            {"default", value},
            {"description", description}};
  };
  return schema_object(
      "",
      {{"warmup", count(0, defaults.warmup, "untimed runs before the timed ones, on CUDA")},
       {"repeats", count(min_repeats, defaults.repeats, "timed runs on CUDA")},
       {"cpu_repeats", count(1, defaults.cpu_repeats, "timed runs on the CPU, without warm-up")}},
      {});
}

Json synthetic_entry() {
  return params_entry("source", "synthetic", "Seeded structured Q, K and V",
                      synthetic_param_specs(), {{"name", {{"type", "string"}}}});
}

Json method_entries(const Json& extra) {
  Json methods = Json::array();
  std::vector<const Method*> known = all_methods();
  known.push_back(&find_method("tuned"));
  for (const Method* method : known) {
    const MethodInfo& info = method->info();
    methods.push_back(params_entry("name", info.name, info.summary, setting_specs(info), extra));
  }
  return methods;
}

Json run_properties() {
  const RunConfig defaults;
  return {
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
        {"description", "storage of Q, K and V"}}}};
}

}  // namespace s2o
