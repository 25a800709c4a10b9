// A CPU model of one CUDA grid, so that the very source of a kernel can be run and checked on a
// machine without a GPU. Every device thread is a fiber; warp-wide and block-wide instructions
// meet at rendezvous points; asynchronous copies and warpgroup products take effect at a random
// moment between their issue and the wait that orders them. A kernel that reads too early, writes
// too late or deadlocks therefore fails under some seed. Not modelled: memory ordering between
// proxies, bank conflicts, speed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

namespace s2o::simt {

inline constexpr int kWarpLanes = 32;
inline constexpr int kWarpgroupThreads = 128;

struct LaunchConfig {
  int num_blocks = 1;
  int num_threads = 128;
  std::size_t shared_bytes = 0;
  std::uint64_t seed = 0;  // decides the order of threads and the moment of asynchronous effects
};

// Runs `body` once per thread of every block, blocks one after the other. Throws
// std::runtime_error on deadlock, on divergence at a collective instruction and on misuse.
void launch(const LaunchConfig& config, const std::function<void()>& body);

// Of the running fiber.
int thread_index();
int block_index();
int num_threads();  // of a block
int num_blocks();
std::byte* shared_base();  // 1024-byte aligned, filled with 0xff at the start of a block
std::uint32_t shared_offset(const void* pointer);

// Meets the other threads of the warp (or warpgroup) that call with the same name; the last one to
// arrive runs `run(args of all threads, in thread order)` before any of them goes on.
void collective(int group_threads, const char* name, void* args,
                const std::function<void(const std::vector<void*>&)>& run);

template <class Args, class Run>
void warp_collective(const char* name, Args& args, Run run) {
  collective(kWarpLanes, name, &args, [&run](const std::vector<void*>& lanes) {
    std::vector<Args*> typed(lanes.size());
    for (std::size_t i = 0; i < lanes.size(); ++i) typed[i] = static_cast<Args*>(lanes[i]);
    run(typed);
  });
}

// bar.sync and bar.arrive: `num_threads` threads meet at barrier `id`.
void barrier_sync(int id, int num_threads);
void barrier_arrive(int id, int num_threads);

// cp.async: the effect happens at some time before the wait that covers its group.
void async_copy(std::function<void()> effect);
void async_copy_commit();
void async_copy_wait(int groups_left);

// mbarrier objects, identified by their address in shared memory.
void mbarrier_init(const void* barrier, int count);
void mbarrier_arrive(const void* barrier, int count, int transaction_bytes);
void mbarrier_arrive_after_copies(const void* barrier);  // cp.async.mbarrier.arrive.noinc
void mbarrier_wait(const void* barrier, int parity);
bool mbarrier_test(const void* barrier, int parity);
// A bulk copy: the effect, then complete_tx on the barrier.
void bulk_copy(const void* barrier, int bytes, std::function<void()> effect);

// Warpgroup products: executed in issue order per warpgroup, at some time before the wait. Called
// by every thread; `run` sees the args of all 128 threads, which must stay alive until the wait.
void warpgroup_product(const char* name, void* args,
                       std::function<void(const std::vector<void*>&)> run);
void warpgroup_commit();
void warpgroup_wait(int groups_left);

}  // namespace s2o::simt
