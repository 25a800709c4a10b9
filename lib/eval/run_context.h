// The context block of a result file: what was asked for, by what, on what, and when.
#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

namespace s2o {

struct RunIdentity {
  std::string name;
  std::uint64_t seed = 0;
  std::size_t num_cells = 0;      // rows of the whole run
  nlohmann::ordered_json config;  // resolved; its hash tells runs apart
  nlohmann::ordered_json inputs;  // what the config's inputs were (lib/input/identity.h)
};

// `device_context` holds the fields device, driver, cuda and sm_clock_mhz.
nlohmann::ordered_json make_run_context(const RunIdentity& run,
                                        const nlohmann::ordered_json& device_context);

}  // namespace s2o
