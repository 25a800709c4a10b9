// Sections of the latency table that compare settings with each other: at equal error, between
// lengths, and planning against what it must do. Times are those of Setting means.
#pragma once

#include <optional>
#include <set>
#include <string>
#include <vector>

#include "lib/report/curves.h"
#include "lib/report/peer_times.h"
#include "lib/report/report_table.h"
#include "lib/report/settings.h"

namespace s2o {

// Of all times, each once, sorted.
std::set<std::string> peer_names(const std::vector<PeerTime>& times);
// The peer's time over the setting's total, for rows of its shape; empty without both.
std::optional<double> speedup_over_peer(const Setting& setting, const std::string& peer,
                                        const std::vector<PeerTime>& times);

// Exponents of planning, attention and total time of each setting over long lengths: slopes of
// least squares in log-log. No row for a setting with one such length.
ReportTable growth_table(const std::vector<Setting>& settings);

// Planning time beside the arithmetic and bytes of PlanningCost. Settings that differ in their knob
// alone and cost the same share a row.
ReportTable planning_cost_table(const std::vector<Setting>& settings);

// The settings of one method that differ in length alone, by ascending length. Those without the
// metric are left out.
struct LengthSeries {
  const Setting* first = nullptr;
  std::vector<const Setting*> settings;
};
std::vector<LengthSeries> series_by_length(const std::vector<Setting>& settings,
                                           const std::string& metric);

}  // namespace s2o
