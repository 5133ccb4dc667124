// The threads that the kernels share out their work to.
//
// A job is a list of stages that follow each other; a stage is a number of items that any thread may take. Each thread
// has a range of them, which it takes share by share from the front, so that it reads memory in one stream; who has
// finished takes shares from the back of the others' ranges, so a thread that the system has put aside, or that has yet
// to wake up, holds nobody up unless it is in the middle of a share. Who computes an item has no influence on its bits.
//
// A thread that has nothing to do looks for the next job for some microseconds and then sleeps: within a step of a model
// the jobs follow so closely that nobody sleeps, and beside a busy neighbour no core is kept from it for long.
#pragma once
#include <cstdint>
#include <functional>

namespace loraplex {

constexpr int64_t MOST_STAGES = 24;

struct Stage {
    int64_t items;
    int64_t share; // items that a thread takes at a time
    std::function<void(int64_t first, int64_t last)> work;
    // What a thread does ahead of a stage while it waits for the others: `ask` memory for pieces [0, pieces) of what
    // `work` reads from item `first` on, where its own range begins. Without it the thread waits only.
    std::function<void(int64_t first, int64_t piece)> ask = nullptr;
    int64_t pieces = 0;
};

// About how much there is to do in a job: alone, or with the threads that happen to be awake, or with all.
enum class Effort { alone, whoever_is_awake, everybody };

// Runs the stages with at most `threads` threads, the caller's own included; returns when all is done.
void run_stages(const Stage *stages, int64_t count, int64_t threads, Effort effort);

} // namespace loraplex
