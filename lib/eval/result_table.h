// The rows that an evaluation produces. Every writer and reader uses this one type.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace s2o {

struct ResultRow {
  std::string input;
  int layer = 0;
  std::int64_t seqlen = 0;
  int num_q_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  std::string method;
  nlohmann::ordered_json params = nlohmann::ordered_json::object();
  std::string kernel;                                    // "attention_ref", "attention_sm90"
  std::string backend;                                   // "cpu", "cuda"
  std::string planner = "cpu";                           // where the plan was made
  std::map<std::string, std::optional<double>> metrics;  // by column name
  std::map<std::string, std::vector<double>> per_head;   // by column name, [num_q_heads]
  std::vector<std::int32_t>
      stop_steps;  // [num_plan_heads * num_q_tiles], empty without a stop rule
  std::optional<std::string> error;
};

struct ResultTable {
  nlohmann::ordered_json context = nlohmann::ordered_json::object();
  std::vector<ResultRow> rows;
};

inline constexpr int kResultSchemaVersion = 1;

}  // namespace s2o
