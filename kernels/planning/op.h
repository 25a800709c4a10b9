// Operations: what planners, which are host code, ask of a device. Host-safe.
//
// An operation is a struct of arguments, declared in the ops.h of the folder that owns it and
// listed in ops.def. A planner runs one by kernels.run(PoolArgs{...}, input.elements()) and does
// not know whether that enqueues on a CUDA stream (cuda_planning_kernels.h), runs the same device
// code on the CPU model of the tests (kernels/testing/planning_model.h) or is timed on the way.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/common/dtype.h"

namespace s2o {

#define S2O_OP(name, Args) struct Args;
#define S2O_OP_SM90(name, Args) struct Args;
#include "kernels/planning/ops.def"

enum class Op : std::uint8_t {
#define S2O_OP(name, Args) name,
#define S2O_OP_SM90(name, Args) name,
#include "kernels/planning/ops.def"
};

// "pool_blocks".
const char* op_name(Op op);

// The operation whose arguments a struct is.
template <class Args>
struct OpOf;
#define S2O_OP(name, Args)              \
  template <>                           \
  struct OpOf<Args> {                   \
    static constexpr Op kOp = Op::name; \
  };
#define S2O_OP_SM90(name, Args) S2O_OP(name, Args)
#include "kernels/planning/ops.def"

// Which kernels plan: sm90 has its own where warpgroup products pay (S2O_OP_SM90 in ops.def).
enum class PlanningVariant : std::uint8_t { kSm80, kSm90 };

// An operation with its arguments, which lie where OpOf says.
struct AnyOp {
  Op op;
  const void* args;
  Elements elements;
};

class PlanningKernels {
 public:
  virtual ~PlanningKernels() = default;
  virtual void clear(void* array, std::size_t bytes) = 0;
  // Operations run one after the other.
  virtual void enqueue(const AnyOp& op) = 0;

  template <class Args>
  void run(const Args& args, const Elements& elements) {
    enqueue({.op = OpOf<Args>::kOp, .args = &args, .elements = elements});
  }
};

}  // namespace s2o
