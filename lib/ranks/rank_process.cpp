#include "lib/ranks/rank_process.h"

#include <fmt/format.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstring>

#include "kernels/common/parallel.h"
#include "lib/core/error.h"
#include "lib/core/failure.h"
#include "lib/core/log.h"

namespace s2o {
namespace {

// Between looks at MPI, which cannot be waited for without a busy core.
constexpr int kPollMs = 1;
constexpr double kAliveSeconds = 5.0;
// Minding processes only forward frames: one that is silent so long is gone, and with it the host
// or its network. Rank 0 also writes the results, which may take a while.
constexpr double kSilenceSeconds = 60.0;
constexpr double kSilenceOfRank0Seconds = 900.0;

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

struct Child {
  FrameSocket socket;
  int pid = -1;
};

// Both before MPI and CUDA have started threads or opened anything.
Child start_worker(const std::function<void(WorkerLink&)>& work) {
  int ends[2] = {};
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
    throw UnsupportedError(fmt::format("ranks: no socket pair: {}", std::strerror(errno)));
  }
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid < 0) {
    throw UnsupportedError(fmt::format("ranks: no child process: {}", std::strerror(errno)));
  }
  if (pid > 0) {
    ::close(ends[1]);
    return {FrameSocket(ends[0]), pid};
  }
  ::close(ends[0]);
  // The results are rank 0's: a worker without it would keep a GPU busy for nobody.
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(1);
  WorkerLink link{FrameSocket(ends[1])};
  try {
    work(link);
  } catch (...) {
    link.send({.kind = FrameKind::kFail, .json = failure_to_json(std::current_exception())});
  }
  std::fflush(nullptr);
  ::_exit(0);
}

std::string death_text(int status) {
  if (WIFSIGNALED(status)) {
    const int number = WTERMSIG(status);
    const char* const name = ::strsignal(number);
    return fmt::format("was ended by signal {} ({})", number, name == nullptr ? "unknown" : name);
  }
  return fmt::format("ended with exit code {}", WEXITSTATUS(status));
}

bool is_last(FrameKind kind) { return kind == FrameKind::kDone || kind == FrameKind::kFail; }

FrameKind kind_of(const std::string& encoded) {
  std::uint32_t kind = 0;
  std::memcpy(&kind, encoded.data(), sizeof(kind));
  return static_cast<FrameKind>(kind);
}

Frame died_frame(int pid) {
  int status = 0;
  ::waitpid(pid, &status, 0);
  return {.kind = FrameKind::kDied, .json = {{"text", death_text(status)}}, .bytes = {}};
}

// A rank other than 0: frames of its child go to rank 0 and back, until rank 0 says that all is
// over.
class Relay {
 public:
  Relay(Mpi& mpi, Child child) : mpi_(mpi), child_(std::move(child)) {}
  ~Relay() {
    if (child_.pid < 0) return;
    ::kill(child_.pid, SIGKILL);
    ::waitpid(child_.pid, nullptr, 0);
  }

  // False when rank 0 is not there any more.
  bool run() {
    double heard = now_seconds();
    double next_alive = heard;
    while (now_seconds() < heard + kSilenceOfRank0Seconds) {
      if (now_seconds() >= next_alive) {
        mpi_.send(0, encode_frame({.kind = FrameKind::kAlive}));
        next_alive = now_seconds() + kAliveSeconds;
      }
      pass_signal_on();
      if (child_.pid < 0) {
        ::usleep(1000 * kPollMs);
      } else if (child_.socket.wait(kPollMs)) {
        from_child();
      }
      while (const std::optional<Mpi::Message> message = mpi_.receive()) {
        heard = now_seconds();
        const FrameKind kind = kind_of(message->bytes);
        if (kind == FrameKind::kBye) return true;
        // Gone: its death is, or will be, a message.
        if (kind != FrameKind::kAlive && child_.pid >= 0) child_.socket.send_text(message->bytes);
      }
    }
    return false;
  }

 private:
  void from_child() {
    const std::optional<std::string> text = child_.socket.receive_text();
    if (text) {
      reported_ = reported_ || is_last(kind_of(*text));
      mpi_.send(0, *text);
      return;
    }
    const Frame died = died_frame(child_.pid);
    child_.pid = -1;
    if (!reported_) mpi_.send(0, encode_frame(died));
  }

  void pass_signal_on() {
    if (!g_cancel_requested.load() || child_.pid < 0 || passed_on_) return;
    ::kill(child_.pid, SIGTERM);
    passed_on_ = true;
  }

  Mpi& mpi_;
  Child child_;
  bool reported_ = false;
  bool passed_on_ = false;
};

Frame place_frame(const RankPlace& place) {
  return {.kind = FrameKind::kPlace,
          .json = {{"rank", place.rank}, {"size", place.size}, {"local_rank", place.local_rank}},
          .bytes = {}};
}

}  // namespace

WorkerLink::WorkerLink(FrameSocket socket) : socket_(std::move(socket)) {
  // The child is older than what knows its place.
  const Frame frame = receive();
  place_ = {.rank = frame.json.at("rank").get<int>(),
            .size = frame.json.at("size").get<int>(),
            .local_rank = frame.json.at("local_rank").get<int>()};
}

void WorkerLink::send(const Frame& frame) {
  if (!socket_.send(frame)) ::_exit(1);
}

Frame WorkerLink::receive() {
  std::optional<Frame> frame = socket_.receive();
  if (!frame) ::_exit(1);
  return std::move(*frame);
}

RankHub::RankHub(Mpi& mpi, FrameSocket worker, int worker_pid)
    : mpi_(mpi), worker_(std::move(worker)), worker_pid_(worker_pid) {
  for (int rank = 1; rank < mpi_.size(); ++rank) heard_seconds_[rank] = now_seconds();
}
RankHub::~RankHub() { kill_worker(); }

void RankHub::kill_worker() {
  if (worker_pid_ < 0) return;
  ::kill(worker_pid_, SIGKILL);
  ::waitpid(worker_pid_, nullptr, 0);
  worker_pid_ = -1;
}

std::optional<RankHub::Arrived> RankHub::receive() {
  if (arrived_.empty()) {
    poll_worker();
    poll_mpi();
    poll_silence();
  }
  if (arrived_.empty()) return std::nullopt;
  Arrived first = std::move(arrived_.front());
  arrived_.pop_front();
  return first;
}

void RankHub::poll_worker() {
  if (worker_pid_ < 0) {
    ::usleep(1000 * kPollMs);
    return;
  }
  if (!worker_.wait(kPollMs)) return;
  if (std::optional<Frame> frame = worker_.receive()) {
    worker_reported_ = worker_reported_ || is_last(frame->kind);
    arrived_.push_back({0, std::move(*frame)});
    return;
  }
  Frame died = died_frame(worker_pid_);
  worker_pid_ = -1;
  if (!worker_reported_) arrived_.push_back({0, std::move(died)});
}

void RankHub::poll_mpi() {
  while (std::optional<Mpi::Message> message = mpi_.receive()) {
    heard_seconds_[message->from] = now_seconds();
    if (kind_of(message->bytes) == FrameKind::kAlive) continue;
    arrived_.push_back({message->from, decode_frame(message->bytes)});
  }
}

void RankHub::poll_silence() {
  const double now = now_seconds();
  if (now >= next_alive_seconds_) {
    next_alive_seconds_ = now + kAliveSeconds;
    for (int rank = 1; rank < size(); ++rank) send(rank, {.kind = FrameKind::kAlive});
  }
  for (const auto& [rank, heard] : heard_seconds_) {
    if (now < heard + kSilenceSeconds || lost_.contains(rank)) continue;
    lost_.insert(rank);
    arrived_.push_back(
        {rank,
         {.kind = FrameKind::kDied,
          .json = {{"text", fmt::format("was not heard for {:.0f} seconds", kSilenceSeconds)}},
          .bytes = {}}});
  }
}

void RankHub::send(int to, const Frame& frame) {
  if (to != 0) {
    if (!lost_.contains(to)) mpi_.send(to, encode_frame(frame));
  } else if (worker_pid_ >= 0) {
    worker_.send(frame);  // one that is gone will be found out
  }
}

void RankHub::finish() {
  kill_worker();
  for (int rank = 1; rank < size(); ++rank) send(rank, {.kind = FrameKind::kBye});
  // A rank that is not there would be waited for.
  if (lost_.empty()) mpi_.finish();
}

int run_rank(const Launch& launch, const std::function<void(WorkerLink&)>& work,
             const std::function<int(RankHub&)>& lead) {
  Child child = start_worker(work);
  const int pid = child.pid;
  try {
    // A worker that knows its place opens its device while MPI starts.
    if (launch.local_rank) {
      child.socket.send(place_frame(
          {.rank = launch.rank, .size = launch.size, .local_rank = *launch.local_rank}));
    }
    Mpi mpi(launch);
    if (!launch.local_rank) {
      child.socket.send(
          place_frame({.rank = mpi.rank(), .size = mpi.size(), .local_rank = mpi.local_rank()}));
    }
    if (mpi.rank() != 0) {
      const bool over = Relay(mpi, std::move(child)).run();
      if (over) mpi.finish();
      return over ? 0 : 1;
    }
    RankHub hub(mpi, std::move(child.socket), child.pid);
    std::exception_ptr failure;
    int exit_code = 0;
    try {
      exit_code = lead(hub);
    } catch (...) {
      failure = std::current_exception();
    }
    hub.finish();
    if (failure) std::rethrow_exception(failure);
    return exit_code;
  } catch (...) {
    ::kill(pid, SIGKILL);
    throw;
  }
}

}  // namespace s2o
