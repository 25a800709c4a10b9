// All arrays of a planner: declared first, so that their size is known before they are made, then
// bound to memory of a device (or of the host, in tests). Constants belong to the planner; the rest
// is scratch, which planners that run one after the other can share.
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
    T* data() const { return count_ == 0 ? nullptr : reinterpret_cast<T*>(base() + offset_); }
    std::int64_t size() const { return static_cast<std::int64_t>(count_); }
    std::size_t size_bytes() const { return count_ * sizeof(T); }

   private:
    friend class Workspace;
    std::byte* base() const {
      return is_constant_ ? workspace_->constants_base_ : workspace_->base_;
    }
    const Workspace* workspace_ = nullptr;
    bool is_constant_ = false;
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
    return place<T>(static_cast<std::size_t>(count), /*is_constant=*/false);
  }
  template <class T>
  Array<T> add_constant(const std::vector<T>& values) {
    const Array<T> array = place<T>(values.size(), /*is_constant=*/true);
    const auto* first = reinterpret_cast<const std::byte*>(values.data());
    constants_.push_back({.offset = array.offset_, .bytes = {first, first + array.size_bytes()}});
    return array;
  }

  std::int64_t bytes() const { return constant_bytes() + scratch_bytes(); }
  std::int64_t constant_bytes() const { return static_cast<std::int64_t>(constant_bytes_); }
  std::int64_t scratch_bytes() const { return static_cast<std::int64_t>(bytes_); }
  // To one allocation of bytes(), or to two. Scratch holds nothing that must outlive a plan, its
  // attention and its check.
  void bind(void* base) { bind(base, static_cast<std::byte*>(base) + constant_bytes_); }
  void bind(void* constants, void* scratch) {
    constants_base_ = static_cast<std::byte*>(constants);
    base_ = static_cast<std::byte*>(scratch);
  }
  // Of the constants, whose offsets count from here.
  void* base() const { return constants_base_; }
  const std::vector<Constant>& constants() const { return constants_; }
  void forget_constants() { constants_.clear(); }

 private:
  template <class T>
  Array<T> place(std::size_t count, bool is_constant) {
    std::size_t& bytes = is_constant ? constant_bytes_ : bytes_;
    Array<T> array;
    array.workspace_ = this;
    array.is_constant_ = is_constant;
    array.offset_ = bytes;
    array.count_ = count;
    constexpr std::size_t kAlignment = 256;
    bytes += (array.size_bytes() + kAlignment - 1) / kAlignment * kAlignment;
    return array;
  }

  std::byte* constants_base_ = nullptr;
  std::byte* base_ = nullptr;  // of the scratch
  std::size_t constant_bytes_ = 0;
  std::size_t bytes_ = 0;
  std::vector<Constant> constants_;
};

}  // namespace s2o
