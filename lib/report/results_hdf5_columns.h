// How the columns of /table are stored; numbers otherwise, with NaN for null.
#pragma once

#include <set>
#include <string>

namespace s2o {

inline const std::set<std::string> kTextColumns = {
    "input",  "method", "params", "kernel", "backend",          "planner", "error",
    "prompt", "task",   "model",  "qkv",    "loss_by_position", "note",    "input_id"};
// Texts that are JSON; an empty one is null.
inline const std::set<std::string> kJsonColumns = {"params", "loss_by_position"};
// Texts of which an empty one is null.
inline const std::set<std::string> kNullableColumns = {"note", "error"};
inline const std::set<std::string> kIntegerColumns = {"layer", "seqlen", "num_q_heads",
                                                      "num_kv_heads", "head_dim"};

}  // namespace s2o
