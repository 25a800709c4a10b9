// The rows that an evaluation produces. Every writer and reader uses this one type.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace s2o {

// What a row measured.
enum class RowKind {
  kAttention,  // `s2o eval`: one method on one layer
  kPrefill,    // `s2o prefill`: one method through a whole model
};

// Of RowKind::kPrefill alone.
struct PrefillFacts {
  std::string task;   // of a prompt with a known answer, else ""
  std::string model;  // "tiny-llama", "llama-3.1-8b (seeded weights)"
  std::string qkv;    // what attention read: "model", or "replay of <input>"
  // List of {"begin", "end", "loss"}: mean loss of predictions made at these positions; null if it
  // was not measured.
  nlohmann::ordered_json loss_by_position;
  std::map<std::string, std::vector<double>> per_layer;  // by column name, [num_layers]
};

struct ResultRow {
  RowKind kind = RowKind::kAttention;
  std::string input;     // of a prefill: the prompt
  std::string input_id;  // of what determines the input's numbers; "" in files that lack it
  int layer = 0;         // unused by a prefill
  std::int64_t seqlen = 0;
  int num_q_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  std::string method;
  nlohmann::ordered_json params = nlohmann::ordered_json::object();
  std::string kernel;   // "attention_ref", "attention_sm90"
  std::string backend;  // "cpu", "cuda"
  // Where the plan was made: "cpu", "cuda"; "none" for a plan of the shape alone, which costs a
  // layer nothing; "mixed" when layers differ.
  std::string planner = "cpu";
  std::map<std::string, std::optional<double>> metrics;  // by column name
  std::map<std::string, std::vector<double>> per_head;   // by column name, [num_q_heads]
  std::vector<std::int32_t>
      stop_steps;  // [num_plan_heads * num_q_tiles], empty without a stop rule
  PrefillFacts prefill;
  // Why single metrics are null although the row has no error: "mass_recall: ...".
  std::optional<std::string> note;
  std::optional<std::string> error;
};

struct ResultTable {
  nlohmann::ordered_json context = nlohmann::ordered_json::object();
  std::vector<ResultRow> rows;
};

inline constexpr int kResultSchemaVersion = 1;

}  // namespace s2o
