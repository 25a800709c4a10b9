#include "kernels/testing/simt.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "kernels/testing/fiber.h"

namespace s2o::simt {
namespace {

// SplitMix64: enough randomness for a schedule, and the same on every machine.
class ScheduleRandom {
 public:
  explicit ScheduleRandom(std::uint64_t seed) : state_(seed) {}
  std::uint64_t below(std::uint64_t n) {
    state_ += 0x9e3779b97f4a7c15ull;
    std::uint64_t x = state_;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return (x ^ (x >> 31)) % n;
  }

 private:
  std::uint64_t state_;
};

// Something that will happen later, exactly once.
struct AsyncOp {
  std::function<void()> effect;
  std::vector<std::shared_ptr<AsyncOp>> before;  // must happen first
  bool done = false;

  void run() {
    if (done) return;
    for (const std::shared_ptr<AsyncOp>& op : before) op->run();
    done = true;
    effect();
    effect = nullptr;
    before.clear();
  }
};
using OpPtr = std::shared_ptr<AsyncOp>;

// A rendezvous or barrier: waiters sleep until `generation` moves on.
struct Meeting {
  std::uint64_t generation = 0;
  int arrived = 0;
  const char* name = nullptr;
  std::vector<void*> args;
};

struct Mbarrier {
  int expected = 0;
  int pending = 0;
  std::int64_t transactions = 0;
  std::uint64_t phase = 0;  // completed phases
};

struct CopyState {
  std::vector<OpPtr> open;
  std::deque<std::vector<OpPtr>> groups;
};

struct Fiber {
  FiberContext context;
  bool finished = false;
  const std::uint64_t* wait_counter = nullptr;  // sleeps while *wait_counter == wait_value
  std::uint64_t wait_value = 0;
  const char* where = "start";
  CopyState copies;
};

struct Warpgroup {
  std::vector<OpPtr> open;
  std::deque<std::vector<OpPtr>> groups;
  OpPtr last;
};

class Block {
 public:
  Block(const LaunchConfig& config, int index, const std::function<void()>& body)
      : config_(config),
        index_(index),
        body_(body),
        random_(config.seed * 1000003u + static_cast<std::uint64_t>(index)),
        fibers_(static_cast<std::size_t>(config.num_threads)),
        warps_(static_cast<std::size_t>(config.num_threads) / kWarpLanes),
        warpgroup_meetings_(
            std::max<std::size_t>(1, static_cast<std::size_t>(config.num_threads) / 128)),
        warpgroups_(warpgroup_meetings_.size()),
        shared_(config.shared_bytes + 2048, std::byte{0xff}) {
    const auto address = reinterpret_cast<std::uintptr_t>(shared_.data());
    shared_base_ = shared_.data() + ((1024 - address % 1024) % 1024);
  }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  void run();
  void fiber_main() noexcept;

  int current() const { return current_; }
  int index() const { return index_; }
  const LaunchConfig& config() const { return config_; }
  std::byte* shared_base() const { return shared_base_; }

  void sleep_while(const std::uint64_t* counter, std::uint64_t value, const char* where);
  void meet(int group_threads, const char* name, void* args,
            const std::function<void(const std::vector<void*>&)>& run);
  void barrier(int id, int num_threads, bool wait);
  void enqueue(const OpPtr& op) { pending_.push_back(op); }
  CopyState& copies() { return fibers_[static_cast<std::size_t>(current_)].copies; }
  Warpgroup& warpgroup() { return warpgroups_[static_cast<std::size_t>(current_ / 128)]; }
  Mbarrier& mbarrier(const void* address);
  void init_mbarrier(const void* address, int count);
  void arrive(const void* address, int count, std::int64_t expect_bytes, std::int64_t done_bytes);

 private:
  void start_fibers();
  bool run_ready_fibers();
  bool run_one_pending();
  [[noreturn]] void report_deadlock() const;
  std::uint64_t draw(std::uint64_t n) { return random_.below(n); }

  LaunchConfig config_;
  int index_;
  const std::function<void()>& body_;
  ScheduleRandom random_;
  std::vector<Fiber> fibers_;
  std::vector<Meeting> warps_;
  std::vector<Meeting> warpgroup_meetings_;
  std::vector<Warpgroup> warpgroups_;
  Meeting barriers_[16];
  std::unordered_map<const void*, Mbarrier> mbarriers_;
  std::vector<OpPtr> pending_;
  std::vector<std::byte> shared_;
  std::byte* shared_base_ = nullptr;
  FiberContext scheduler_;
  int current_ = -1;
  std::exception_ptr failure_;
};

Block* g_block = nullptr;

Block& block() {
  if (g_block == nullptr) throw std::runtime_error("simt: called outside a launch");
  return *g_block;
}

void fiber_entry() { g_block->fiber_main(); }

void Block::fiber_main() noexcept {
  try {
    body_();
    if (!copies().open.empty()) async_copy_commit();
    async_copy_wait(0);
  } catch (...) {
    if (!failure_) failure_ = std::current_exception();
  }
  Fiber& fiber = fibers_[static_cast<std::size_t>(current_)];
  fiber.finished = true;
  fiber.context.switch_to(scheduler_);
}

void Block::start_fibers() {
  for (Fiber& fiber : fibers_) fiber.context.prepare(fiber_entry);
}

bool Block::run_ready_fibers() {
  // Random order of warps; lanes of a warp one after the other.
  std::vector<int> order(fibers_.size() / kWarpLanes);
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int>(i);
  for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[draw(i)]);
  bool progressed = false;
  for (const int warp : order) {
    if (draw(4) == 0 && progressed) continue;  // some warps lag behind
    for (int lane = 0; lane < kWarpLanes; ++lane) {
      Fiber& fiber = fibers_[static_cast<std::size_t>(warp * kWarpLanes + lane)];
      if (fiber.finished) continue;
      if (fiber.wait_counter != nullptr && *fiber.wait_counter == fiber.wait_value) continue;
      fiber.wait_counter = nullptr;
      progressed = true;
      current_ = warp * kWarpLanes + lane;
      scheduler_.switch_to(fiber.context);
      if (failure_) std::rethrow_exception(failure_);
    }
    // An effect may wake a warp that was passed over: it counts as progress.
    while (draw(3) == 0 && run_one_pending()) progressed = true;
  }
  return progressed;
}

bool Block::run_one_pending() {
  std::erase_if(pending_, [](const OpPtr& op) { return op->done; });
  if (pending_.empty()) return false;
  pending_[draw(pending_.size())]->run();
  return true;
}

void Block::run() {
  g_block = this;
  start_fibers();
  for (;;) {
    const bool progressed = run_ready_fibers();
    const bool all_done = std::all_of(fibers_.begin(), fibers_.end(),
                                      [](const Fiber& fiber) { return fiber.finished; });
    if (all_done) break;
    if (!progressed && !run_one_pending()) report_deadlock();
  }
  while (run_one_pending()) {
  }
  g_block = nullptr;
}

void Block::report_deadlock() const {
  std::string text = "simt: deadlock in block " + std::to_string(index_) + ":";
  const char* last = nullptr;
  for (std::size_t i = 0; i < fibers_.size(); ++i) {
    if (fibers_[i].finished || fibers_[i].where == last) continue;
    last = fibers_[i].where;
    text += " thread " + std::to_string(i) + " waits at " + last + ";";
  }
  throw std::runtime_error(text);
}

void Block::sleep_while(const std::uint64_t* counter, std::uint64_t value, const char* where) {
  Fiber& fiber = fibers_[static_cast<std::size_t>(current_)];
  while (*counter == value) {
    fiber.wait_counter = counter;
    fiber.wait_value = value;
    fiber.where = where;
    fiber.context.switch_to(scheduler_);
  }
}

void Block::meet(int group_threads, const char* name, void* args,
                 const std::function<void(const std::vector<void*>&)>& run) {
  std::vector<Meeting>& meetings = group_threads == kWarpLanes ? warps_ : warpgroup_meetings_;
  Meeting& meeting = meetings[static_cast<std::size_t>(current_ / group_threads)];
  if (meeting.arrived == 0) {
    meeting.name = name;
    meeting.args.assign(static_cast<std::size_t>(group_threads), nullptr);
  } else if (std::strcmp(meeting.name, name) != 0) {
    throw std::runtime_error("simt: thread " + std::to_string(current_) + " calls " + name +
                             " while its group calls " + meeting.name);
  }
  meeting.args[static_cast<std::size_t>(current_ % group_threads)] = args;
  const std::uint64_t generation = meeting.generation;
  if (++meeting.arrived == group_threads) {
    meeting.arrived = 0;
    const std::vector<void*> all_args = meeting.args;
    run(all_args);
    ++meeting.generation;
    return;
  }
  sleep_while(&meeting.generation, generation, name);
}

void Block::barrier(int id, int num_threads, bool wait) {
  if (id < 0 || id >= 16 || num_threads % kWarpLanes != 0) {
    throw std::runtime_error("simt: bad barrier id or thread count");
  }
  Meeting& meeting = barriers_[id];
  const std::uint64_t generation = meeting.generation;
  if (++meeting.arrived == num_threads) {
    meeting.arrived = 0;
    ++meeting.generation;
    return;
  }
  if (meeting.arrived > num_threads) throw std::runtime_error("simt: too many barrier arrivals");
  if (wait) sleep_while(&meeting.generation, generation, "barrier");
}

void Block::init_mbarrier(const void* address, int count) {
  mbarriers_[address] = {.expected = count, .pending = count, .transactions = 0, .phase = 0};
}

Mbarrier& Block::mbarrier(const void* address) {
  const auto found = mbarriers_.find(address);
  if (found == mbarriers_.end()) throw std::runtime_error("simt: mbarrier used before init");
  return found->second;
}

void Block::arrive(const void* address, int count, std::int64_t expect_bytes,
                   std::int64_t done_bytes) {
  Mbarrier& barrier = mbarrier(address);
  barrier.transactions += expect_bytes - done_bytes;
  barrier.pending -= count;
  if (barrier.pending < 0) throw std::runtime_error("simt: too many mbarrier arrivals");
  if (barrier.pending == 0 && barrier.transactions == 0) {
    barrier.pending = barrier.expected;
    ++barrier.phase;
  }
}

OpPtr make_op(std::function<void()> effect) {
  auto op = std::make_shared<AsyncOp>();
  op->effect = std::move(effect);
  return op;
}

}  // namespace

void launch(const LaunchConfig& config, const std::function<void()>& body) {
  if (config.num_threads <= 0 || config.num_threads % kWarpLanes != 0) {
    throw std::runtime_error("simt: threads must be whole warps");
  }
  for (int index = 0; index < config.num_blocks; ++index) {
    Block current(config, index, body);
    try {
      current.run();
    } catch (...) {
      g_block = nullptr;
      throw;
    }
  }
}

int thread_index() { return block().current(); }
int block_index() { return block().index(); }
int num_threads() { return block().config().num_threads; }
int num_blocks() { return block().config().num_blocks; }
std::byte* shared_base() { return block().shared_base(); }

std::uint32_t shared_offset(const void* pointer) {
  const auto offset = static_cast<const std::byte*>(pointer) - block().shared_base();
  if (offset < 0 || offset > static_cast<std::ptrdiff_t>(block().config().shared_bytes)) {
    throw std::runtime_error("simt: pointer is not in shared memory");
  }
  return static_cast<std::uint32_t>(offset);
}

void collective(int group_threads, const char* name, void* args,
                const std::function<void(const std::vector<void*>&)>& run) {
  block().meet(group_threads, name, args, run);
}

void barrier_sync(int id, int num_threads) { block().barrier(id, num_threads, true); }
void barrier_arrive(int id, int num_threads) { block().barrier(id, num_threads, false); }

void async_copy(std::function<void()> effect) {
  const OpPtr op = make_op(std::move(effect));
  block().copies().open.push_back(op);
  block().enqueue(op);
}
void async_copy_commit() {
  CopyState& copies = block().copies();
  copies.groups.push_back(std::move(copies.open));
  copies.open.clear();
}
void async_copy_wait(int groups_left) {
  CopyState& copies = block().copies();
  while (copies.groups.size() > static_cast<std::size_t>(groups_left)) {
    for (const OpPtr& op : copies.groups.front()) op->run();
    copies.groups.pop_front();
  }
}

void mbarrier_init(const void* barrier, int count) { block().init_mbarrier(barrier, count); }
void mbarrier_arrive(const void* barrier, int count, int transaction_bytes) {
  block().arrive(barrier, count, transaction_bytes, 0);
}
void mbarrier_arrive_after_copies(const void* barrier) {
  Block* const owner = &block();
  const OpPtr op = make_op([owner, barrier] { owner->arrive(barrier, 1, 0, 0); });
  CopyState& copies = owner->copies();
  // Those that have happened need no tracking; the others stay for waits.
  const auto track = [&op](std::vector<OpPtr>& group) {
    std::erase_if(group, [](const OpPtr& copy) { return copy->done; });
    op->before.insert(op->before.end(), group.begin(), group.end());
  };
  for (std::vector<OpPtr>& group : copies.groups) track(group);
  track(copies.open);
  owner->enqueue(op);
}
bool mbarrier_test(const void* barrier, int parity) {
  return (block().mbarrier(barrier).phase & 1u) != static_cast<std::uint64_t>(parity);
}
void mbarrier_wait(const void* barrier, int parity) {
  while (!mbarrier_test(barrier, parity)) {
    const Mbarrier& state = block().mbarrier(barrier);
    block().sleep_while(&state.phase, state.phase, "mbarrier");
  }
}
void bulk_copy(const void* barrier, int bytes, std::function<void()> effect) {
  Block* const owner = &block();
  owner->enqueue(make_op([owner, barrier, bytes, effect = std::move(effect)] {
    effect();
    owner->arrive(barrier, 0, 0, bytes);
  }));
}

void warpgroup_product(const char* name, void* args,
                       std::function<void(const std::vector<void*>&)> run) {
  Block& owner = block();
  owner.meet(kWarpgroupThreads, name, args, [&](const std::vector<void*>& all_args) {
    Warpgroup& group = owner.warpgroup();
    const OpPtr op = make_op([all_args, run] { run(all_args); });
    if (group.last) op->before.push_back(group.last);
    group.last = op;
    group.open.push_back(op);
    owner.enqueue(op);
  });
}
void warpgroup_commit() {
  Block& owner = block();
  int unused = 0;
  owner.meet(kWarpgroupThreads, "wgmma.commit_group", &unused, [&](const std::vector<void*>&) {
    Warpgroup& group = owner.warpgroup();
    group.groups.push_back(std::move(group.open));
    group.open.clear();
  });
}
void warpgroup_wait(int groups_left) {
  Block& owner = block();
  int unused = 0;
  owner.meet(kWarpgroupThreads, "wgmma.wait_group", &unused, [&](const std::vector<void*>&) {
    Warpgroup& group = owner.warpgroup();
    while (group.groups.size() > static_cast<std::size_t>(groups_left)) {
      for (const OpPtr& op : group.groups.front()) op->run();
      group.groups.pop_front();
    }
  });
}

}  // namespace s2o::simt
