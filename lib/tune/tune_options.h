// What the options of `s2o tune` ask for.
#pragma once

#include <vector>

#include "lib/methods/tuned/tuned_file.h"
#include "lib/tune/tune.h"

namespace s2o {

const char* target_name(TuneTarget target);

// The same. ConfigError for lengths and files that are missing, and for unknown choices.
const TuneOptions& checked_options(const TuneOptions& options);

// Settings of the methods asked for, each once; the first is dense, which nothing is lost by.
// ConfigError for methods that cannot be tuned.
std::vector<TunedSetting> settings_to_try(const TuneOptions& options);

}  // namespace s2o
