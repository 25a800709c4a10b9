#include "lib/ranks/mpi.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "lib/core/error.h"

namespace s2o {
namespace {

// Launchers and the variables by which their processes know their number.
struct Launcher {
  const char* name;
  const char* rank;
  const char* size;
  const char* local_rank;
};
// Slurm sets the variables of a step in its tasks only; those of the job also in a batch script.
constexpr std::array<Launcher, 3> kLaunchers = {
    {{"mpirun of Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE",
      "OMPI_COMM_WORLD_LOCAL_RANK"},
     {"mpiexec or srun --mpi=pmi2", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"},
     {"srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"}}};

std::optional<int> number_in_environment(const char* name) {
  const char* const text = std::getenv(name);
  if (text == nullptr) return std::nullopt;
  int value = -1;
  const char* const end = text + std::strlen(text);
  const auto parsed = std::from_chars(text, end, value);
  if (parsed.ec != std::errc() || parsed.ptr != end || value < 0) return std::nullopt;
  return value;
}

// Beside the program: both are built together, where MPI is found.
std::filesystem::path module_file() {
  std::error_code error;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  return error ? std::filesystem::path(kMpiModuleName) : program.parent_path() / kMpiModuleName;
}

bool has_module() {
  std::error_code ignored;
  return std::filesystem::exists(module_file(), ignored);
}

const MpiModule& open_module() {
  const std::string file = module_file().string();
  if (!has_module()) {
    throw UnsupportedError(
        fmt::format("this build has no MPI ({} is not there): install libopenmpi-dev or "
                    "libmpich-dev, configure "
                    "and build again",
                    file));
  }
  // Never closed: MPI has threads. Global, because Open MPI's own plug-ins look for its symbols.
  void* const library = dlopen(file.c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (library == nullptr) {
    const char* const why = dlerror();
    throw UnsupportedError(fmt::format("MPI: {}: cannot be opened: {}", file,
                                       why == nullptr ? "unknown reason" : why));
  }
  const auto entry = reinterpret_cast<const MpiModule* (*)()>(dlsym(library, kMpiModuleEntry));
  if (entry == nullptr || entry()->version != kMpiModuleVersion) {
    throw UnsupportedError(fmt::format("MPI: {} is not of this build of s2o", file));
  }
  return *entry();
}

}  // namespace

Launch find_launch() {
  for (const Launcher& launcher : kLaunchers) {
    const std::optional<int> rank = number_in_environment(launcher.rank);
    const std::optional<int> size = number_in_environment(launcher.size);
    if (rank && size && *size > 1) {
      return {.launcher = launcher.name,
              .rank = *rank,
              .size = *size,
              .local_rank = number_in_environment(launcher.local_rank)};
    }
  }
  return {};
}

std::string mpi_build_text() { return has_module() ? "with MPI" : "without MPI"; }

MpiStatus query_mpi() {
  try {
    const MpiModule& module = open_module();
    std::array<char, 256> text = {};
    if (module.library(text.data(), text.size()) != 0) return {.detail = "MPI says no version"};
    std::string version = text.data();  // "Open MPI v4.1.6, ..." or "MPICH Version:\t4.0.2\n..."
    version = version.substr(0, version.find_first_of(",\n"));
    std::ranges::replace(version, '\t', ' ');
    return {.usable = true, .detail = version + "; sweeps: mpirun -n N s2o eval|prefill ..."};
  } catch (const UnsupportedError& error) {
    return {.detail = error.what()};
  }
}

Mpi::Mpi(const Launch& launch) {
  try {
    module_ = &open_module();
  } catch (const UnsupportedError& error) {
    throw UnsupportedError(
        fmt::format("{} started {} ranks, but {}", launch.launcher, launch.size, error.what()));
  }
  check(module_->start(&rank_, &size_, &local_rank_), "start");
  if (size_ == launch.size) return;
  throw UnsupportedError(fmt::format(
      "{} started {} ranks, but MPI sees {}: it is not the launcher of the MPI in this build ({}). "
      "With Slurm, try srun --mpi=pmix",
      launch.launcher, launch.size, size_, query_mpi().detail));
}

void Mpi::check(int error, const char* what) const {
  if (error == 0) return;
  std::array<char, 512> text = {};
  module_->error_text(error, text.data(), text.size());
  throw UnsupportedError(fmt::format("MPI: {}: {}", what, text.data()));
}

void Mpi::send(int to, const std::string& bytes) {
  check(module_->send(to, bytes.data(), bytes.size()), "send");
}

std::optional<Mpi::Message> Mpi::receive() {
  int found = 0;
  int from = 0;
  std::uint64_t bytes = 0;
  check(module_->probe(&found, &from, &bytes), "probe");
  if (found == 0) return std::nullopt;
  Message message = {.from = from, .bytes = std::string(bytes, '\0')};
  check(module_->receive(from, message.bytes.data(), message.bytes.size()), "receive");
  return message;
}

void Mpi::finish() { check(module_->finish(), "finish"); }

}  // namespace s2o
