#include "app/report_options.h"

#include <fmt/format.h>

#include "app/commands.h"

#include "lib/core/error.h"
#include "lib/core/text.h"

namespace s2o {

void add_report_options(CLI::App& command, ReportFlags& flags) {
  command
      .add_option("results", flags.results,
                  "Result files or folders of `s2o eval` or `s2o prefill`; several are joined")
      ->required();
  command.add_option("--format", flags.format, "Output: " + join(kReportFormats))
      ->capture_default_str();
  command
      .add_option("--reference", flags.reference,
                  "What ratios are relative to: a method, or \"method param=value ...\"")
      ->capture_default_str();
  command.add_option("--sparsity", flags.sparsity, "Sparsities to compare at, with commas")
      ->capture_default_str();
  command
      .add_option("--errors", flags.errors,
                  "Errors to compare at, with commas; auto: densities at the reference's errors at "
                  "the sparsities above, times at usual levels")
      ->capture_default_str();
  command
      .add_option("--unit", flags.unit,
                  "What is compared and resampled: layer, head (needs results.h5), or auto")
      ->capture_default_str();
  command
      .add_option("--knob", flags.knobs,
                  "METHOD=PARAM: trace the method's curve by this parameter instead of its own "
                  "knob")
      ->allow_extra_args(false);
  command.add_flag("--by-family", flags.by_family,
                   "At equal error: settings that differ in more than the knob are rows of their "
                   "own, instead of one method with the best of them");
  command.add_option("--resamples", flags.resamples, "Bootstrap resamples")
      ->check(integer_in(1, 1000000))
      ->capture_default_str();
  command.add_option("--seed", flags.seed, "Of the bootstrap")
      ->check(integer_in<std::uint64_t>(0))
      ->capture_default_str();
}

MatchOptions match_options(const ReportFlags& flags) {
  MatchOptions options;
  options.reference = flags.reference;
  options.sparsity = parse_sparsity_levels(flags.sparsity);
  options.errors = parse_error_levels(flags.errors);
  options.resamples = flags.resamples;
  options.seed = flags.seed;
  options.by_family = flags.by_family;
  options.curves.unit = parse_match_unit(flags.unit);
  for (const std::string& knob : flags.knobs) {
    const std::size_t equals = knob.find('=');
    if (equals == std::string::npos || equals == 0 || equals + 1 == knob.size()) {
      throw ConfigError(fmt::format("--knob {}: expected METHOD=PARAM", knob));
    }
    options.curves.knobs[knob.substr(0, equals)] = knob.substr(equals + 1);
  }
  return options;
}

}  // namespace s2o
