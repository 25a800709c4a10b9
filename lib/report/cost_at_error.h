// What an error costs a method, read between the settings that were measured.
#pragma once

#include <optional>
#include <span>
#include <vector>

namespace s2o {

// One setting of a method in one unit.
struct CostPoint {
  double knob = 0.0;   // places the setting on its curve
  double error = 0.0;  // may be 0 or below: as good as dense attention, or better
  double cost = 0.0;   // > 0: milliseconds, or compute density
  double other = 0.0;  // carried along, interpolated as the cost is: the density at that time
};

struct CostAtError {
  double cost = 0.0;
  double other = 0.0;
};

// The least cost at which the curve errs at most `target`; empty where it nowhere does. Points are
// taken in the order of their knob. Candidates: every point within the target, and, on each segment
// between neighbours that crosses it, where it is crossed on a straight line of log cost over log
// error. A segment with an end that has no logarithm (error <= 0) is not interpolated, and nothing
// is extrapolated: a curve whose cheapest point errs less than asked costs what that point costs.
std::optional<CostAtError> cost_at_error(std::vector<CostPoint> curve, double target);

}  // namespace s2o
