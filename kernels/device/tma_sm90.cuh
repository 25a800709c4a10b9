// Tensor-map loads (sm_90): a box of a [heads, seqlen, head_dim] tensor into a swizzled tile.
#pragma once

#include "kernels/common/tensor_map.h"
#include "kernels/device/layout.cuh"
#include "kernels/device/mbarrier_sm90.cuh"
#include "kernels/device/platform.cuh"

namespace s2o::device {

#if defined(__CUDACC__)

S2O_DEVICE void tensor_map_prefetch(const TensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
// Box at (column, row, head); its bytes, rows outside the tensor included, complete on `barrier`.
S2O_DEVICE void load_box_async(std::uint32_t target, const TensorMap* map, Barrier* barrier,
                               int column, int row, int head) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(target),
      "l"(map), "r"(shared_address(barrier)), "r"(column), "r"(row), "r"(head)
      : "memory");
}

#else

// What the CPU model keeps in the 128 bytes.
struct ModelTensorMap {
  MappedTensor tensor;
  int box_rows;
};
inline TensorMap model_tensor_map(const MappedTensor& tensor, int box_rows) {
  const ModelTensorMap model{tensor, box_rows};
  TensorMap map{};
  static_assert(sizeof(model) <= sizeof(map.bytes));
  std::memcpy(map.bytes, &model, sizeof(model));
  return map;
}

inline void tensor_map_prefetch(const TensorMap*) {}
inline void load_box_async(std::uint32_t target, const TensorMap* map, Barrier* barrier, int column,
                           int row, int head) {
  ModelTensorMap m;
  std::memcpy(&m, map->bytes, sizeof(m));
  auto* const tile = static_cast<unsigned char*>(shared_pointer(target, 1024));
  const int bytes = m.box_rows * 128;
  std::memset(tile, 0xff, static_cast<std::size_t>(bytes));
  simt::bulk_copy(barrier, bytes, [=] {
    for (int r = 0; r < m.box_rows; ++r) {
      for (int c = 0; c < 64; ++c) {
        const MappedTensor& t = m.tensor;
        const bool inside = row + r >= 0 && row + r < t.num_rows && column + c < t.num_columns &&
                            head >= 0 && head < t.num_heads;
        const auto* const base = static_cast<const std::uint16_t*>(t.base);
        const std::uint16_t value =
            inside ? base[head * t.head_stride + (row + r) * t.num_columns + column + c]
                   : std::uint16_t{0};
        // The 128-byte swizzle exchanges bits 4-6 of the address by bits 7-9.
        std::uint32_t address = target + static_cast<std::uint32_t>(r * 128 + c * 2);
        address ^= ((address >> 7) & 7u) << 4;
        std::memcpy(simt::shared_base() + address, &value, 2);
      }
    }
  });
}

#endif

}  // namespace s2o::device
