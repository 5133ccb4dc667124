// Compiled for any x86-64 processor.
#include "team.h"

#include <algorithm>
#include <atomic>
#include <csignal>
#include <mutex>
#include <pthread.h>
#include <thread>
#include <x86intrin.h>

namespace loraplex {
namespace {

constexpr uint64_t IDLE_CYCLES = 200'000;   // how long a thread looks for the next job before it sleeps: about 0.1 ms
constexpr uint64_t WAITING_CYCLES = 50'000; // the same for the end of a stage

// Waits until `is_over`; false after `cycles` in vain.
template <typename Condition> bool spin(uint64_t cycles, const Condition &is_over) {
    const uint64_t begin = __rdtsc();
    while (!is_over()) {
        if (__rdtsc() - begin > cycles)
            return false;
        _mm_pause();
    }
    return true;
}

struct alignas(64) Progress {
    std::atomic<int64_t> next{0};
    alignas(64) std::atomic<int32_t> done{0};
};

struct Job {
    const Stage *stages;
    int64_t count;
    int64_t helpers; // threads besides the caller's that may take part
    Progress progress[MOST_STAGES];
};

void take_part(Job &job) {
    for (int64_t index = 0; index < job.count; index++) {
        const Stage &stage = job.stages[index];
        Progress &progress = job.progress[index];
        const int32_t items = static_cast<int32_t>(stage.items);
        for (;;) {
            const int64_t first = progress.next.fetch_add(stage.share, std::memory_order_relaxed);
            if (first >= stage.items)
                break;
            const int64_t last = std::min(first + stage.share, stage.items);
            stage.work(first, last);
            const int32_t mine = static_cast<int32_t>(last - first);
            if (progress.done.fetch_add(mine, std::memory_order_acq_rel) + mine == items)
                progress.done.notify_all();
        }
        const auto is_over = [&] { return progress.done.load(std::memory_order_acquire) >= items; };
        if (spin(WAITING_CYCLES, is_over))
            continue;
        // Waits for a change of the very value that was found too small: a second load might find the last one, which
        // nobody changes again.
        for (int32_t seen; (seen = progress.done.load(std::memory_order_acquire)) < items;)
            progress.done.wait(seen, std::memory_order_acquire);
    }
}

// Never destroyed: its threads live as long as the process.
class Team {
  public:
    // False where another thread's job is running: the caller does the work alone.
    bool run(Job &job, bool wakes) {
        const std::unique_lock<std::mutex> lock(busy_, std::try_to_lock);
        if (!lock.owns_lock())
            return false;
        for (; size_ < job.helpers; size_++)
            start(size_);
        job_.store(&job);
        ticket_.fetch_add(1);
        if (wakes)
            ticket_.notify_all();
        take_part(job);
        job_.store(nullptr);
        // Who came in before that line may still be on its way out. Whoever comes after it finds no job.
        while (!spin(WAITING_CYCLES, [&] { return inside_.load() == 0; }))
            std::this_thread::yield();
        return true;
    }

  private:
    void start(int64_t index) {
        sigset_t all, before; // signals are the interpreter's: none is delivered to these threads
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        std::thread([this, index] { help(index); }).detach();
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
    }

    [[noreturn]] void help(int64_t index) {
        uint32_t seen = 0;
        for (;;) {
            if (!spin(IDLE_CYCLES, [&] { return ticket_.load() != seen; }))
                ticket_.wait(seen);
            seen = ticket_.load();
            inside_.fetch_add(1);
            Job *job = job_.load();
            if (job && index < job->helpers)
                take_part(*job);
            inside_.fetch_sub(1);
        }
    }

    std::mutex busy_;
    int64_t size_ = 0;
    alignas(64) std::atomic<uint32_t> ticket_{0};
    alignas(64) std::atomic<Job *> job_{nullptr};
    alignas(64) std::atomic<int32_t> inside_{0};
};

std::atomic<Team *> team{nullptr};

// A forked child has no threads but its own: it gets a team of its own when it needs one.
Team &current_team() {
    static const int registered = pthread_atfork(nullptr, nullptr, [] { team.store(nullptr); });
    static_cast<void>(registered);
    Team *found = team.load();
    if (found)
        return *found;
    auto *made = new Team;
    if (team.compare_exchange_strong(found, made))
        return *made;
    delete made;
    return *found;
}

} // namespace

void run_stages(const Stage *stages, int64_t count, int64_t threads, Effort effort) {
    if (threads > 1 && effort != Effort::alone) {
        Job job{stages, count, threads - 1, {}};
        if (current_team().run(job, effort == Effort::everybody))
            return;
    }
    for (int64_t index = 0; index < count; index++)
        if (stages[index].items > 0)
            stages[index].work(0, stages[index].items);
}

} // namespace loraplex
