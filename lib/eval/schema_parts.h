// Parts of the JSON Schemas of configs (config_schema.h, lib/prefill/prefill_schema.h).
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "lib/config/run_config.h"

namespace s2o {

// One value, or a list of at least one; `unique`: none twice.
nlohmann::ordered_json schema_sweep(const nlohmann::ordered_json& scalar, bool unique);
// Integers of a list that JsonReader reads: no value twice.
nlohmann::ordered_json schema_integers(std::int64_t min);
nlohmann::ordered_json schema_described(nlohmann::ordered_json schema,
                                        const std::string& description);
// An object with exactly these properties.
nlohmann::ordered_json schema_object(const std::string& description,
                                     const nlohmann::ordered_json& properties,
                                     const std::vector<std::string>& required);

// "inputs" entries.
nlohmann::ordered_json weights_entry();
nlohmann::ordered_json dump_entry();
nlohmann::ordered_json synthetic_entry();
// One entry per method, each with `extra` properties beside its parameters.
nlohmann::ordered_json method_entries(
    const nlohmann::ordered_json& extra = nlohmann::ordered_json::object());
nlohmann::ordered_json timing_schema(const TimingConfig& defaults, int min_repeats = 1);
// $schema, name, seed, device, kernel, dtype.
nlohmann::ordered_json run_properties();

}  // namespace s2o
