// RAII over the C interface of HDF5. Included by exactly two sources: the HDF5 tensor format and
// the results writer.
//
// NOTE: the library is not thread-safe as Debian builds it: call it from one thread at a time.
#pragma once

#include <hdf5.h>

#include <string>
#include <string_view>
#include <utility>

namespace s2o {

// Owns one HDF5 id of any kind; the library counts references, so one call closes every kind.
class Hdf5Handle {
 public:
  Hdf5Handle() = default;
  // Takes ownership; a negative id (the call failed) is kept as invalid.
  explicit Hdf5Handle(hid_t id) : id_(id) {}
  Hdf5Handle(Hdf5Handle&& other) noexcept : id_(std::exchange(other.id_, H5I_INVALID_HID)) {}
  Hdf5Handle& operator=(Hdf5Handle&& other) noexcept {
    std::swap(id_, other.id_);
    return *this;
  }
  ~Hdf5Handle() { reset(); }

  hid_t get() const { return id_; }
  bool valid() const { return id_ >= 0; }
  explicit operator bool() const { return valid(); }
  // Closes now. False when the library reports a failure: the last bytes of a file are written
  // here, so a writer has to look.
  bool reset() { return id_ < 0 || H5Idec_ref(std::exchange(id_, H5I_INVALID_HID)) >= 0; }

 private:
  hid_t id_ = H5I_INVALID_HID;
};

// How files are opened and created: without HDF5's locks, so that files on read-only or network
// file systems open too, and those that AtomicFile locks; nothing of a closed file stays open.
inline Hdf5Handle hdf5_file_access() {
  Hdf5Handle access(H5Pcreate(H5P_FILE_ACCESS));
  H5Pset_file_locking(access.get(), false, true);
  H5Pset_fclose_degree(access.get(), H5F_CLOSE_STRONG);
  return access;
}

// While it lives, HDF5 prints nothing on stderr; the errors stay on its stack for hdf5_error_text.
// To be made before anything else of the library is called.
class Hdf5QuietErrors {
 public:
  Hdf5QuietErrors() {
    // A file whose last write failed cannot be closed, and the library's exit handler crashes on
    // it. Handles are closed here explicitly; nothing is left for that handler to do.
    [[maybe_unused]] static const herr_t kNoExitHandler = H5dont_atexit();
    H5Eget_auto2(H5E_DEFAULT, &function_, &data_);
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  }
  ~Hdf5QuietErrors() { H5Eset_auto2(H5E_DEFAULT, function_, data_); }
  Hdf5QuietErrors(const Hdf5QuietErrors&) = delete;
  Hdf5QuietErrors& operator=(const Hdf5QuietErrors&) = delete;

 private:
  H5E_auto2_t function_ = nullptr;
  void* data_ = nullptr;
};

// What the last failed call says went wrong, innermost first: "file signature not found".
inline std::string hdf5_error_text() {
  std::string text;
  const auto take_first = [](unsigned, const H5E_error2_t* entry, void* out) -> herr_t {
    auto& message = *static_cast<std::string*>(out);
    if (message.empty() && entry->desc != nullptr) message = entry->desc;
    return 0;
  };
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, take_first, &text);
  // A failed system call comes with a page of detail; the system's own words say it.
  constexpr std::string_view kSystemError = "error message = '";
  if (const std::size_t begin = text.find(kSystemError); begin != std::string::npos) {
    text = text.substr(begin + kSystemError.size());
    text = text.substr(0, text.find('\''));
  }
  return text.empty() ? "HDF5 gives no reason" : text;
}

}  // namespace s2o
