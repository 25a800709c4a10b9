#include "lib/input/identity.h"

#include <fmt/format.h>

#include <map>
#include <set>
#include <tuple>

#include "lib/core/printable.h"
#include "lib/core/text.h"

namespace s2o {
namespace {

using Json = nlohmann::ordered_json;

// Origin first: a path says more to a reader than a hash.
Json description(const InputIdentity& identity) {
  Json all = identity.origin;
  all.update(identity.facts);
  return all;
}

std::string value_text(const Json& description, const std::string& key) {
  if (!description.contains(key)) return "unknown";
  const Json& value = description[key];
  return value.is_string() ? value.get<std::string>() : json_text(value);
}

// The keys in order of which each splits what those before left together.
std::vector<std::string> telling_keys(const std::vector<Json>& descriptions) {
  std::vector<std::string> keys;
  for (const Json& one : descriptions) {
    for (const auto& [key, value] : one.items()) {
      if (std::find(keys.begin(), keys.end(), key) == keys.end()) keys.push_back(key);
    }
  }
  std::vector<std::string> telling;
  std::vector<std::string> texts(descriptions.size());
  std::size_t groups = 1;
  for (const std::string& key : keys) {
    std::vector<std::string> longer = texts;
    for (std::size_t i = 0; i < texts.size(); ++i) {
      longer[i] += '\n';
      longer[i] += value_text(descriptions[i], key);
    }
    const std::size_t split = std::set<std::string>(longer.begin(), longer.end()).size();
    if (split == groups) continue;
    groups = split;
    texts = std::move(longer);
    telling.push_back(key);
  }
  return telling;
}

}  // namespace

std::string InputIdentity::id() const { return hash_hex(json_text(facts)); }

void add_file_identity(InputIdentity& identity, const std::string& prefix,
                       const FileIdentity& file) {
  identity.facts[prefix + "bytes"] = file.num_bytes;
  identity.facts[prefix + "hash"] = file.hash;
  if (file.modified_ns != 0) identity.origin[prefix + "modified_ns"] = file.modified_ns;
}

Json input_to_json(const std::string& name, const InputIdentity& identity) {
  return {{"name", name},
          {"id", identity.id()},
          {"facts", identity.facts},
          {"origin", identity.origin}};
}

void tell_names_apart(const std::vector<NamedInput>& inputs) {
  std::map<std::tuple<std::string, int, std::int64_t>, std::vector<const NamedInput*>> places;
  for (const NamedInput& input : inputs) {
    places[{*input.name, input.layer, input.seqlen}].push_back(&input);
  }
  for (const auto& [place, same] : places) {
    std::vector<Json> descriptions;
    for (const NamedInput* input : same) descriptions.push_back(description(*input->identity));
    for (const std::string& key : telling_keys(descriptions)) {
      for (std::size_t i = 0; i < same.size(); ++i) {
        *same[i]->name += fmt::format(" {}={}", key, value_text(descriptions[i], key));
      }
    }
  }
}

}  // namespace s2o
