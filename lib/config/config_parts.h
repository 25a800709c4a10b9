// What the configs of `s2o eval` and `s2o prefill` share.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "lib/config/json_reader.h"
#include "lib/config/run_config.h"

namespace s2o {

// What --set may change in a document.
struct ConfigKeys {
  std::vector<std::string> top;  // every top-level key
  // Of objects: their keys; no keys stand for any, which a later check knows.
  std::map<std::string, std::vector<std::string>> objects;
  std::vector<std::string> lists;  // of entries, by number; "methods" by name too
};

// apply_set of run_config.h for documents with these keys.
void apply_set(nlohmann::ordered_json& document, const std::string& assignment,
               const ConfigKeys& keys);

// "name" of a run: by default the file's name; results land in results/<name>, so it has to be one
// plain path component.
std::string read_run_name(const JsonReader& reader, const std::string& fallback);
// A non-empty list of objects.
nlohmann::ordered_json read_objects(const JsonReader& reader, const std::string& list);
// As above, each with the string `key`.
nlohmann::ordered_json read_entries(const JsonReader& reader, const std::string& list,
                                    const std::string& key);
// "timing"; what it leaves out is as in `timing`.
TimingConfig read_timing(const JsonReader& root, TimingConfig timing = {}, int min_repeats = 1);
nlohmann::ordered_json to_json(const TimingConfig& timing);

// "runs.json: methods.s2o", or "runs.json: methods[3]" if several entries have that name.
std::string method_path(const std::string& file, const nlohmann::ordered_json& methods,
                        std::size_t index);

}  // namespace s2o
