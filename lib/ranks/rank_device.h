// Which devices a rank takes.
#pragma once

#include <string>
#include <vector>

#include "lib/config/run_config.h"

namespace s2o {

// The GPUs of a host go to its ranks in order, `gpus` to each; a rank that sees only its own (as
// Slurm can arrange) takes those. ConfigError when the config names the number of a GPU: it would
// be the same for all. UnsupportedError when a rank would need more GPUs than there are.
DeviceChoice choose_rank_device(const DeviceChoice& device, const std::string& kernel,
                                int local_rank, int gpus);

// "cpu", "cuda:1 NVIDIA H200", "cuda:0-1 NVIDIA H200".
std::string rank_device_text(const DeviceChoice& device, int gpus);
// See device_identity; none for the CPU.
std::vector<std::string> rank_device_ids(const DeviceChoice& device, int gpus);

// A warning when the launcher gave this process one core of many: the host's part of a run uses
// all.
void warn_about_binding();

}  // namespace s2o
