// Ranks of one run, as a launcher (mpirun, srun) started them, and messages between them.
#pragma once

#include <cstddef>
#include <optional>
#include <string>

#include "lib/ranks/mpi_module.h"

namespace s2o {

// What the launcher says in the environment, before anything of MPI is opened.
struct Launch {
  std::string launcher = "";  // "Open MPI's mpirun", "srun", ...
  int rank = 0;
  int size = 1;
  std::optional<int> local_rank;  // among the ranks of this host; not every launcher says it
};
Launch find_launch();

// Whether this build and machine can do it: one line of `s2o list devices`.
struct MpiStatus {
  bool usable = false;
  std::string detail;  // "Open MPI v4.1.4", or why not
};
MpiStatus query_mpi();
// "with MPI" or "without MPI": what was there at configure time.
std::string mpi_build_text();

class Mpi {
 public:
  struct Message {
    int from = 0;
    std::string bytes;
  };

  // Opens the module and starts MPI. UnsupportedError when this build has none, or where MPI does
  // not see the ranks that the launcher started.
  explicit Mpi(const Launch& launch);

  int rank() const { return rank_; }
  int size() const { return size_; }
  int local_rank() const { return local_rank_; }  // among the ranks of this host

  void send(int to, const std::string& bytes);
  // Does not wait.
  std::optional<Message> receive();
  // Waits for all ranks; nothing may be sent after it.
  void finish();

 private:
  void check(int error, const char* what) const;

  const MpiModule* module_ = nullptr;
  int rank_ = 0;
  int size_ = 1;
  int local_rank_ = 0;
};

}  // namespace s2o
