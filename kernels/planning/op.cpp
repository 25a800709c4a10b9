#include "kernels/planning/op.h"

namespace s2o {

const char* op_name(Op op) {
  static constexpr const char* kNames[] = {
#define S2O_OP(name, Args) #name,
#define S2O_OP_SM90(name, Args) #name,
#include "kernels/planning/ops.def"
  };
  return kNames[static_cast<int>(op)];
}

}  // namespace s2o
