// The ranking by rows on devices that cannot run it: an error that says what to do.
#include "kernels/planning/launch.cuh"
#include "kernels/planning/s2o/row_ops.h"

namespace s2o::device {
namespace {

[[noreturn]] void refuse() {
  throw UnsupportedError(
      "planning of s2o_plus: ranking 'rows' needs the kernels for sm_90a; use ranking 'mean'");
}

}  // namespace

void run_op(const PlanDevice&, const RowProfileArgs&, const Elements&) { refuse(); }
void run_op(const PlanDevice&, const PackKeysArgs&, const Elements&) { refuse(); }
void run_op(const PlanDevice&, const PackQueriesArgs&, const Elements&) { refuse(); }
void run_op(const PlanDevice&, const FindReachArgs&, const Elements&) { refuse(); }
void run_op(const PlanDevice&, const RankRowsArgs&, const Elements&) { refuse(); }

}  // namespace s2o::device
