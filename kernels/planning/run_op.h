// From an operation to its device code: one function for each line of ops.def and kind of device,
// defined in the *.cu files of the folders below. Those files are compiled twice: by nvcc for CUDA,
// and by the host compiler for the CPU model of the tests. Host-safe.
#pragma once

#include <cstdint>

#include "kernels/planning/op.h"

struct CUstream_st;

namespace s2o::device {

// A CUDA stream; launch.cuh, which only nvcc sees whole, says how a kernel is launched on it.
struct CudaPlanDevice {
  CUstream_st* stream = nullptr;

  template <class Kernel, class Args>
  void launch(const Args& args) const;
  template <class Kernel, class Args>
  void launch_sm90(const Args& args, const Elements& elements) const;
};

// The CPU model of a GPU. `seed` decides the schedule of the next launch and is counted up.
struct ModelPlanDevice {
  std::uint64_t* seed = nullptr;

  template <class Kernel, class Args>
  void launch(const Args& args) const;
  template <class Kernel, class Args>
  void launch_sm90(const Args& args, const Elements& elements) const;
};

// run_op_sm90 is false where the arguments do not suit the kernels for sm_90a.
#define S2O_OP(name, Args)                                                        \
  void run_op(const CudaPlanDevice&, const Args& args, const Elements& elements); \
  void run_op(const ModelPlanDevice&, const Args& args, const Elements& elements);
#define S2O_OP_SM90(name, Args)                                                        \
  S2O_OP(name, Args)                                                                   \
  bool run_op_sm90(const CudaPlanDevice&, const Args& args, const Elements& elements); \
  bool run_op_sm90(const ModelPlanDevice&, const Args& args, const Elements& elements);
#include "kernels/planning/ops.def"

// Throws CudaError when a launch is refused, UnsupportedError for other head dimensions than 64 and
// 128.
template <class Device>
void run_any_op(const Device& device, PlanningVariant variant, const AnyOp& op) {
  switch (op.op) {
#define S2O_OP(name, Args) \
  case Op::name:           \
    return run_op(device, *static_cast<const Args*>(op.args), op.elements);
#define S2O_OP_SM90(name, Args)                                                 \
  case Op::name:                                                                \
    if (variant == PlanningVariant::kSm90 &&                                    \
        run_op_sm90(device, *static_cast<const Args*>(op.args), op.elements)) { \
      return;                                                                   \
    }                                                                           \
    return run_op(device, *static_cast<const Args*>(op.args), op.elements);
#include "kernels/planning/ops.def"
  }
}

}  // namespace s2o::device
