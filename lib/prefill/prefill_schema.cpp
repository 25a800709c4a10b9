#include "lib/prefill/prefill_schema.h"

#include "lib/config/prefill_config.h"
#include "lib/eval/schema_parts.h"
#include "lib/model/model_shapes.h"

namespace s2o {
namespace {

using Json = nlohmann::ordered_json;

const Json kText = {{"type", "string"}};

Json prompt_entries() {
  const Json seqlen = schema_described(schema_integers(1), "tokens; a list is a sweep");
  const Json name = schema_described(kText, "of the prompt in tables");
  return Json::array(
      {schema_object("Windows of a token file",
                     {{"tokens", schema_described(kText, "token file")},
                      {"name", name},
                      {"seqlen", seqlen},
                      {"offset", schema_described(schema_integers(0),
                                                  "first token that is used; a list is a sweep")},
                      {"loss",
                       {{"type", "boolean"},
                        {"default", true},
                        {"description", "next-token loss of every position"}}}},
                     {"tokens", "seqlen"}),
       schema_object(
           "Prompts with a known answer, from JSON lines",
           {{"prompts", schema_described(kText, "prompt file")},
            {"name", schema_described(kText, "of the file in tables")},
            {"tasks", schema_described(schema_sweep(kText, true), "only these; default: all")},
            {"seqlen", schema_described(schema_integers(1), "only these lengths; default: all")},
            {"samples",
             {{"type", "integer"},
              {"minimum", 1},
              {"description", "at most so many of each task and length"}}}},
           {"prompts"}),
       schema_object("Seeded random tokens",
                     {{"random", {{"const", true}}}, {"name", name}, {"seqlen", seqlen}},
                     {"random", "seqlen"})});
}

Json model_schema() {
  const Json shape =
      schema_object("Seeded weights of this shape: times only",
                    {{"shape", {{"enum", model_shape_names()}}},
                     {"seed", {{"type", "integer"}, {"minimum", 0}, {"default", 0}}}},
                    {"shape"});
  return {{"anyOf", {schema_described(kText, "Hugging Face model directory"), shape}}};
}

// "layers" of a method: what single layers do instead.
Json layers_schema() {
  return {{"type", "object"},
          {"description", "by layer (\"3\") or range (\"4-7\"): parameters, or another \"name\""},
          {"propertyNames", {{"pattern", "^[0-9]+(-[0-9]+)?$"}}},
          {"additionalProperties", {{"type", "object"}}}};
}

Json replay_schema() {
  const Json sources =
      Json::array({kText, {{"type", "null"}}, weights_entry(), dump_entry(), synthetic_entry()});
  return {{"description",
           "capture file or input that attention reads in place of the model's Q, K, V; layer i of "
           "the model reads layer i modulo theirs: times only"},
          {"anyOf", sources}};
}

}  // namespace

Json prefill_config_schema() {
  const PrefillConfig defaults;
  const Json methods = method_entries({{"layers", layers_schema()}});
  const Json own = {
      {"model", model_schema()},
      {"prompts", {{"type", "array"}, {"minItems", 1}, {"items", {{"oneOf", prompt_entries()}}}}},
      {"methods", {{"type", "array"}, {"minItems", 1}, {"items", {{"oneOf", methods}}}}},
      {"dense_layers",
       {{"type", "array"},
        {"items", {{"type", "integer"}, {"minimum", 0}}},
        {"uniqueItems", true},
        {"description", "layers that stay dense whatever the method"}}},
      {"replay", replay_schema()},
      {"logit_positions",
       {{"type", "integer"},
        {"minimum", 0},
        {"maximum", kMaxLogitPositions},
        {"default", defaults.logit_positions},
        {"description", "rows of a token prompt whose logits are compared with dense"}}},
      {"check_rows",
       {{"type", "integer"},
        {"minimum", 0},
        {"maximum", kMaxCheckRows},
        {"default", defaults.check_rows},
        {"description",
         "rows of each layer whose attention is computed exactly, to estimate its "
         "error; 0: none"}}},
      {"parallel",
       {{"type", "integer"},
        {"minimum", 1},
        {"maximum", kMaxParallel},
        {"default", defaults.parallel},
        {"description", "GPUs that share the model: heads, MLP and vocabulary are split"}}},
      {"timing", timing_schema(defaults.timing, /*min_repeats=*/0)}};
  Json properties = run_properties();
  properties.update(own);
  Json schema = {{"$schema", "https://json-schema.org/draft/2020-12/schema"},
                 {"title", "s2o prefill config"}};
  schema.update(schema_object("A list where a single value is expected is a sweep.", properties,
                              {"model", "prompts", "methods"}));
  return schema;
}

}  // namespace s2o
