// What find_launch() reads of the environment.
#include <gtest/gtest.h>

#include <cstdlib>

#include "lib/ranks/mpi.h"

namespace s2o {
namespace {

// Sets variables of launchers, and leaves none.
class LaunchTest : public ::testing::Test {
 protected:
  void SetUp() override { clear(); }
  void TearDown() override { clear(); }
  static void clear() {
    for (const char* name :
         {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "PMI_RANK",
          "PMI_SIZE", "MPI_LOCALRANKID", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"}) {
      unsetenv(name);
    }
  }
};

TEST_F(LaunchTest, place_of_every_launcher) {
  const char* const kVariables[][3] = {
      {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"},
      {"PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"},
      {"SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"}};
  for (const auto& names : kVariables) {
    clear();
    setenv(names[0], "5", 1);
    setenv(names[1], "8", 1);
    EXPECT_EQ(find_launch().local_rank, std::nullopt) << names[2];  // MPI knows
    setenv(names[2], "1", 1);
    const Launch launch = find_launch();
    EXPECT_EQ(launch.rank, 5);
    EXPECT_EQ(launch.size, 8);
    EXPECT_EQ(launch.local_rank, 1) << names[2];
  }
}

TEST_F(LaunchTest, one_process_is_no_launch) {
  EXPECT_EQ(find_launch().size, 1);
  setenv("OMPI_COMM_WORLD_RANK", "0", 1);
  setenv("OMPI_COMM_WORLD_SIZE", "1", 1);
  EXPECT_EQ(find_launch().size, 1);
}

}  // namespace
}  // namespace s2o
