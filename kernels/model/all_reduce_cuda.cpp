#include "kernels/model/all_reduce.h"

#include <dlfcn.h>
#include <unistd.h>

#include "kernels/common/error.h"

// NCCL is opened when it is first needed, as cuBLAS is; only its header is needed to build.
#if defined(S2O_HAS_NCCL)
#include <nccl.h>
#endif

namespace s2o {

#if defined(S2O_HAS_NCCL)

namespace {

struct Nccl {
  decltype(&ncclGetVersion) version = nullptr;
  decltype(&ncclGetErrorString) error_text = nullptr;
  decltype(&ncclCommInitAll) init_all = nullptr;
  decltype(&ncclCommDestroy) destroy = nullptr;
  decltype(&ncclCommAbort) abort = nullptr;
  decltype(&ncclAllReduce) all_reduce = nullptr;
};

std::vector<std::string> candidates(const std::string& folder) {
  const std::string file = "libnccl.so.2";
  if (folder.empty()) {
    return {file, "/usr/local/cuda/lib64/" + file, "/usr/local/cuda/lib/" + file};
  }
  return {folder + "/" + file, folder + "/lib/" + file, folder + "/nccl/lib/" + file,
          folder + "/nvidia/nccl/lib/" + file};
}

template <class Function>
void find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (function == nullptr) throw UnsupportedError(std::string("NCCL has no function ") + name);
}

Nccl open_nccl(const std::string& folder) {
  std::string tried;
  for (const std::string& file : candidates(folder)) {
    // Never closed: it has threads.
    void* const library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      tried += (tried.empty() ? "" : ", ") + file;
      continue;
    }
    Nccl nccl;
    find(library, "ncclGetVersion", nccl.version);
    find(library, "ncclGetErrorString", nccl.error_text);
    find(library, "ncclCommInitAll", nccl.init_all);
    find(library, "ncclCommDestroy", nccl.destroy);
    find(library, "ncclCommAbort", nccl.abort);
    find(library, "ncclAllReduce", nccl.all_reduce);
    return nccl;
  }
  throw UnsupportedError(
      "several GPUs need NCCL, and none was found (tried " + tried +
      "); install libnccl2 or the pip package nvidia-nccl, and name its folder with --nccl");
}

std::string version_of(const Nccl& nccl) {
  int number = 0;  // 22809 for 2.28.9
  if (nccl.version(&number) != ncclSuccess) return "unknown";
  return std::to_string(number / 10000) + "." + std::to_string(number / 100 % 100) + "." +
         std::to_string(number % 100);
}

}  // namespace

struct AllReduce::State {
  Nccl nccl;
  std::vector<ncclComm_t> members;
};

NcclStatus query_nccl(const std::string& folder) {
  try {
    return {.usable = true, .detail = "NCCL " + version_of(open_nccl(folder))};
  } catch (const UnsupportedError& error) {
    return {.detail = error.what()};
  }
}

std::string nccl_build_text() { return "with NCCL"; }

AllReduce::AllReduce(const std::vector<int>& devices, const std::string& folder)
    : state_(std::make_unique<State>()) {
  state_->nccl = open_nccl(folder);
  state_->members.resize(devices.size());
  const ncclResult_t result = state_->nccl.init_all(
      state_->members.data(), static_cast<int>(devices.size()), devices.data());
  if (result == ncclSuccess) return;
  throw UnsupportedError("NCCL " + version() + " cannot connect " + std::to_string(devices.size()) +
                         " GPUs: " + state_->nccl.error_text(result) +
                         " (NCCL_DEBUG=WARN says more)");
}

AllReduce::~AllReduce() {
  if (aborted()) return;
  for (const ncclComm_t member : state_->members) state_->nccl.destroy(member);
}

std::string AllReduce::version() const { return version_of(state_->nccl); }

void AllReduce::sum_bf16(int member, std::uint16_t* data, std::size_t count, CudaStream stream) {
  if (aborted()) throw CudaError("NCCL: another GPU has failed");
  const ncclResult_t result =
      state_->nccl.all_reduce(data, data, count, ncclBfloat16, ncclSum,
                              state_->members.at(static_cast<std::size_t>(member)), stream);
  if (result == ncclSuccess) return;
  throw CudaError(std::string("NCCL: sum over GPUs: ") + state_->nccl.error_text(result));
}

void AllReduce::abort() {
  if (aborted_.exchange(true)) return;
  // Members that looked at the flag before are inside the library by now, where this may happen.
  ::usleep(50'000);
  for (const ncclComm_t member : state_->members) state_->nccl.abort(member);
}

#else

namespace {
constexpr const char* kWithout =
    "this build has no NCCL: put nccl.h where the CUDA toolkit's headers are and configure again";
}  // namespace

struct AllReduce::State {};

NcclStatus query_nccl(const std::string&) { return {.detail = kWithout}; }
std::string nccl_build_text() { return "without NCCL"; }
AllReduce::AllReduce(const std::vector<int>&, const std::string&) {
  throw UnsupportedError(kWithout);
}
AllReduce::~AllReduce() = default;
std::string AllReduce::version() const { return ""; }
void AllReduce::sum_bf16(int, std::uint16_t*, std::size_t, CudaStream) {}
void AllReduce::abort() {}

#endif

}  // namespace s2o
