// What an input is, computed in one place: everything that determines its numbers. Results carry
// the id beside the name, so that rows of different inputs never pass for the same.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "lib/core/file_identity.h"

namespace s2o {

struct InputIdentity {
  // What determines the numbers, layer and seqlen apart: source, parameters, hashes of files and
  // tokens, dtype. One level of plain values.
  nlohmann::ordered_json facts = nlohmann::ordered_json::object();
  // Where they come from, as a reader knows it: paths as given, times of files too large to be
  // hashed whole. Inputs that differ here alone have the same numbers.
  nlohmann::ordered_json origin = nlohmann::ordered_json::object();

  std::string id() const;  // hash of the facts, 16 hexadecimal digits
};

// Adds "<prefix>bytes" and "<prefix>hash" to the facts, and the time, if it matters, to the origin.
void add_file_identity(InputIdentity& identity, const std::string& prefix,
                       const FileIdentity& file);

// One item of "inputs" in the context of a result: name, id, facts, origin.
nlohmann::ordered_json input_to_json(const std::string& name, const InputIdentity& identity);

// One named thing: an input, one of its layers, one length.
struct NamedInput {
  std::string* name = nullptr;  // changed in place
  int layer = 0;
  std::int64_t seqlen = 0;
  const InputIdentity* identity = nullptr;
};

// Makes names longer, by what sets them apart ("synthetic/stripes strength=5",
// "dump/layer0 path=b/layer0.safetensors"), wherever two inputs of one name, layer and seqlen have
// different identities. What is the same in facts and origin keeps the same name.
void tell_names_apart(const std::vector<NamedInput>& inputs);

}  // namespace s2o
