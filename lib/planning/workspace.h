// One allocation for all arrays of a planner: declared first, so that its size is known before it
// is made, then bound to memory of a device (or of the host, in tests).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace s2o {

class Workspace {
 public:
  // An array of `count` elements; its data exist once the workspace is bound.
  template <class T>
  class Array {
   public:
    T* data() const {
      return count_ == 0 ? nullptr : reinterpret_cast<T*>(workspace_->base_ + offset_);
    }
    std::int64_t size() const { return static_cast<std::int64_t>(count_); }
    std::size_t size_bytes() const { return count_ * sizeof(T); }

   private:
    friend class Workspace;
    const Workspace* workspace_ = nullptr;
    std::size_t offset_ = 0;
    std::size_t count_ = 0;
  };
  // Contents that do not depend on Q and K, copied once after binding.
  struct Constant {
    std::size_t offset = 0;
    std::vector<std::byte> bytes;
  };

  Workspace() = default;
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  template <class T>
  Array<T> add(std::int64_t count) {
    Array<T> array;
    array.workspace_ = this;
    array.offset_ = bytes_;
    array.count_ = static_cast<std::size_t>(count);
    constexpr std::size_t kAlignment = 256;
    bytes_ += (array.size_bytes() + kAlignment - 1) / kAlignment * kAlignment;
    return array;
  }
  template <class T>
  Array<T> add_constant(const std::vector<T>& values) {
    const Array<T> array = add<T>(static_cast<std::int64_t>(values.size()));
    const auto* first = reinterpret_cast<const std::byte*>(values.data());
    constants_.push_back({.offset = array.offset_, .bytes = {first, first + array.size_bytes()}});
    return array;
  }

  std::int64_t bytes() const { return static_cast<std::int64_t>(bytes_); }
  void bind(void* base) { base_ = static_cast<std::byte*>(base); }
  void* base() const { return base_; }
  const std::vector<Constant>& constants() const { return constants_; }
  void forget_constants() { constants_.clear(); }

 private:
  std::byte* base_ = nullptr;
  std::size_t bytes_ = 0;
  std::vector<Constant> constants_;
};

}  // namespace s2o
