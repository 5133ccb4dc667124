// Very many short jobs on the kernels' threads (kernels/team.h), whose stages end for both threads at about the same time.
// Compiled and run by test_kernel_threads.py; exits with 0 when every item of every job was done once.
#include "team.h"

#include <atomic>

constexpr int64_t JOBS = 200'000;

int main() {
    std::atomic<int64_t> done{0};
    const auto work_for = [&](int64_t turns) {
        for (int64_t turn = 0; turn < turns; turn++)
            asm volatile("");
        done++;
    };
    const loraplex::Stage stages[] = {
        {2, 1, [&](int64_t first, int64_t) { work_for(first == 0 ? 460 : 400); }},
        {2, 1, [&](int64_t, int64_t) { work_for(200); }},
    };
    for (int64_t job = 0; job < JOBS; job++)
        loraplex::run_stages(stages, 2, 2, loraplex::Effort::everybody);
    return done == 4 * JOBS ? 0 : 1;
}
