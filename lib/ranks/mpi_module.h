// The C interface of libs2o_mpi.so, the only part of s2o that links MPI. The program opens it when
// a launcher started several ranks; a single process never does.
#pragma once

#include <cstddef>
#include <cstdint>

namespace s2o {

inline constexpr const char* kMpiModuleName = "libs2o_mpi.so";
inline constexpr const char* kMpiModuleEntry = "s2o_mpi_module";
inline constexpr int kMpiModuleVersion = 1;

// Functions return 0, or an error of MPI (see error_text).
struct MpiModule {
  int version = kMpiModuleVersion;
  // "Open MPI v4.1.4, ..."; may be called before start().
  int (*library)(char* text, std::size_t size) = nullptr;
  int (*start)(int* rank, int* size, int* local_rank) = nullptr;
  // Returns when `data` may be reused.
  int (*send)(int to, const void* data, std::size_t bytes) = nullptr;
  // Whether a message waits: from whom and how long. What it finds must be received next.
  int (*probe)(int* found, int* from, std::uint64_t* bytes) = nullptr;
  int (*receive)(int from, void* data, std::size_t bytes) = nullptr;
  // Waits for all ranks.
  int (*finish)() = nullptr;
  void (*error_text)(int error, char* text, std::size_t size) = nullptr;
};

}  // namespace s2o
