// libs2o_mpi.so: point-to-point messages by MPI, for lib/ranks/mpi.cpp.
#include <mpi.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "lib/ranks/mpi_module.h"

namespace s2o {
namespace {

// A message is its length, then pieces: MPI counts elements in 32 bits.
constexpr int kLengthTag = 1;
constexpr int kPieceTag = 2;
constexpr std::size_t kPieceBytes = std::size_t{1} << 30;

void copy_text(const char* from, char* text, std::size_t size) {
  if (size == 0) return;
  std::strncpy(text, from, size - 1);
  text[size - 1] = '\0';
}

int library(char* text, std::size_t size) {
  char found[MPI_MAX_LIBRARY_VERSION_STRING] = {};
  int length = 0;
  const int error = MPI_Get_library_version(found, &length);
  if (error == MPI_SUCCESS) copy_text(found, text, size);
  return error;
}

int start(int* rank, int* size, int* local_rank) {
  // Of Open MPI, where nobody has chosen: rows are kilobytes, which shared memory and TCP carry as
  // well as any fabric, and looking for fabrics takes half of the start.
  setenv("OMPI_MCA_pml", "ob1", 0);
  setenv("OMPI_MCA_btl", "self,vader,tcp", 0);
  int error = MPI_Init(nullptr, nullptr);
  if (error != MPI_SUCCESS) return error;
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  MPI_Comm node = MPI_COMM_NULL;
  error = MPI_Comm_rank(MPI_COMM_WORLD, rank);
  if (error == MPI_SUCCESS) error = MPI_Comm_size(MPI_COMM_WORLD, size);
  if (error == MPI_SUCCESS) {
    error = MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, *rank, MPI_INFO_NULL, &node);
  }
  if (error == MPI_SUCCESS) error = MPI_Comm_rank(node, local_rank);
  if (error == MPI_SUCCESS) error = MPI_Comm_free(&node);
  return error;
}

int send(int to, const void* data, std::size_t bytes) {
  std::uint64_t length = bytes;
  int error = MPI_Send(&length, 1, MPI_UINT64_T, to, kLengthTag, MPI_COMM_WORLD);
  for (std::size_t done = 0; error == MPI_SUCCESS && done < bytes; done += kPieceBytes) {
    const auto piece = static_cast<int>(std::min(kPieceBytes, bytes - done));
    error = MPI_Send(static_cast<const char*>(data) + done, piece, MPI_BYTE, to, kPieceTag,
                     MPI_COMM_WORLD);
  }
  return error;
}

int probe(int* found, int* from, std::uint64_t* bytes) {
  MPI_Status status;
  int error = MPI_Iprobe(MPI_ANY_SOURCE, kLengthTag, MPI_COMM_WORLD, found, &status);
  if (error != MPI_SUCCESS || *found == 0) return error;
  *from = status.MPI_SOURCE;
  return MPI_Recv(bytes, 1, MPI_UINT64_T, *from, kLengthTag, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
}

int receive(int from, void* data, std::size_t bytes) {
  int error = MPI_SUCCESS;
  for (std::size_t done = 0; error == MPI_SUCCESS && done < bytes; done += kPieceBytes) {
    const auto piece = static_cast<int>(std::min(kPieceBytes, bytes - done));
    error = MPI_Recv(static_cast<char*>(data) + done, piece, MPI_BYTE, from, kPieceTag,
                     MPI_COMM_WORLD, MPI_STATUS_IGNORE);
  }
  return error;
}

int finish() { return MPI_Finalize(); }

void error_text(int error, char* text, std::size_t size) {
  char found[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  MPI_Error_string(error, found, &length);
  copy_text(found, text, size);
}

constexpr MpiModule kModule = {.library = library,
                               .start = start,
                               .send = send,
                               .probe = probe,
                               .receive = receive,
                               .finish = finish,
                               .error_text = error_text};

}  // namespace
}  // namespace s2o

extern "C" const s2o::MpiModule* s2o_mpi_module() { return &s2o::kModule; }
