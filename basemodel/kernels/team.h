// The threads that the kernels share out their work to.
//
// A job is a list of stages that follow each other; a stage is a number of items that any thread may take. Whoever is
// awake takes the next share, so a thread that the system has put aside, or that has yet to wake up, holds nobody up
// unless it is in the middle of a share. Who computes an item has no influence on its bits.
//
// A thread that has nothing to do looks for the next job for some microseconds and then sleeps: within a step of a model
// the jobs follow so closely that nobody sleeps, and beside a busy neighbour no core is kept from it for long.
#pragma once
#include <cstdint>
#include <functional>

namespace loraplex {

constexpr int64_t MOST_STAGES = 8;

struct Stage {
    int64_t items;
    int64_t share; // items that a thread takes at a time
    std::function<void(int64_t first, int64_t last)> work;
};

// About how much there is to do in a job: alone, or with the threads that happen to be awake, or with all.
enum class Effort { alone, whoever_is_awake, everybody };

// Runs the stages with at most `threads` threads, the caller's own included; returns when all is done.
void run_stages(const Stage *stages, int64_t count, int64_t threads, Effort effort);

} // namespace loraplex
