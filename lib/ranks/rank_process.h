// The processes of a rank. What the launcher started minds a child that computes, and speaks MPI;
// the child does not, so that one that dies (killed, out of memory, lost with its GPU) is a message
// to rank 0 and not the end of the job, which it would be for every launcher.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>

#include "lib/ranks/frame.h"
#include "lib/ranks/mpi.h"

namespace s2o {

struct RankPlace {
  int rank = 0;
  int size = 1;
  int local_rank = 0;  // among the ranks of this host
};

// The worker's end: what it says goes to rank 0.
class WorkerLink {
 public:
  explicit WorkerLink(FrameSocket socket);

  const RankPlace& place() const { return place_; }
  // Both end the process when nobody is at the other end: nobody would take the rows.
  void send(const Frame& frame);
  Frame receive();

 private:
  FrameSocket socket_;
  RankPlace place_;
};

// Rank 0's end: frames of all workers, its own among them. kDied is the last one of a worker that
// ended otherwise than by kDone or kFail; its "text" says how.
class RankHub {
 public:
  struct Arrived {
    int from = 0;
    Frame frame;
  };
  RankHub(Mpi& mpi, FrameSocket worker, int worker_pid);
  ~RankHub();
  RankHub(const RankHub&) = delete;
  RankHub& operator=(const RankHub&) = delete;

  int size() const { return mpi_.size(); }
  // Nothing within a moment: the caller looks at whatever else it waits for, and calls again.
  std::optional<Arrived> receive();
  void send(int to, const Frame& frame);
  // Ends all ranks. Returns once they have.
  void finish();

 private:
  void poll_worker();
  void poll_mpi();
  void poll_silence();
  void kill_worker();

  Mpi& mpi_;
  FrameSocket worker_;
  int worker_pid_ = -1;  // -1: has ended
  bool worker_reported_ = false;
  std::deque<Arrived> arrived_;
  std::map<int, double> heard_seconds_;  // when a minding process was last heard
  std::set<int> lost_;                   // of these
  double next_alive_seconds_ = 0.0;
};

// Runs a rank and returns its exit code. `work` runs in the child; what it throws becomes kFail.
// `lead` runs in rank 0's own process, when all children exist.
int run_rank(const Launch& launch, const std::function<void(WorkerLink&)>& work,
             const std::function<int(RankHub&)>& lead);

}  // namespace s2o
