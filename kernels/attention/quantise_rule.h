// How Q and K are prepared before they are rounded to 8 bits (quantise.h).
#pragma once

namespace s2o {

struct QuantiseRule {
  bool smooth_k = true;   // takes the mean of the keys off
  bool rotate_qk = true;  // by a Hadamard matrix: spreads columns that stand out over all
  bool operator==(const QuantiseRule&) const = default;
};

}  // namespace s2o
