#include "lib/eval/config_schema.h"

#include "lib/config/run_config.h"
#include "lib/eval/schema_parts.h"

namespace s2o {
namespace {

using Json = nlohmann::ordered_json;

Json flag(bool value, const char* description) {
  return {{"type", "boolean"}, {"default", value}, {"description", description}};
}

}  // namespace

Json config_schema() {
  const RunConfig defaults;
  const Json inputs = {weights_entry(), dump_entry(), synthetic_entry()};
  Json properties = run_properties();
  const Json own = {
      {"inputs", {{"type", "array"}, {"minItems", 1}, {"items", {{"oneOf", inputs}}}}},
      {"methods", {{"type", "array"}, {"minItems", 1}, {"items", {{"oneOf", method_entries()}}}}},
      {"timing", timing_schema(defaults.timing)},
      {"save_outputs", flag(defaults.save_outputs, "keep each method's output in results.h5")},
      {"allow_nonfinite", flag(defaults.allow_nonfinite, "go on when Q, K or V hold NaN or inf")}};
  properties.update(own);
  Json schema = {{"$schema", "https://json-schema.org/draft/2020-12/schema"},
                 {"title", "s2o run config"}};
  schema.update(schema_object("A list where a single value is expected is a sweep.", properties,
                              {"inputs", "methods"}));
  return schema;
}

}  // namespace s2o
