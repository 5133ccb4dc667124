// Compiled for any x86-64 processor.
#include "team.h"

#include <algorithm>
#include <atomic>
#include <csignal>
#include <memory>
#include <mutex>
#include <pthread.h>
#include <thread>
#include <x86intrin.h>

namespace loraplex {
namespace {

constexpr uint64_t IDLE_CYCLES = 200'000;   // how long a thread looks for the next job before it sleeps: about 0.1 ms
constexpr uint64_t WAITING_CYCLES = 50'000; // the same for the end of a stage

// Waits until `is_over`, and meanwhile does what there is to do (`pass` returns false when there is nothing); false
// after `cycles` in vain.
template <typename Condition, typename Pass> bool spin(uint64_t cycles, const Condition &is_over, const Pass &pass) {
    const uint64_t begin = __rdtsc();
    while (!is_over()) {
        if (__rdtsc() - begin > cycles)
            return false;
        if (!pass())
            _mm_pause();
    }
    return true;
}

template <typename Condition> bool spin(uint64_t cycles, const Condition &is_over) {
    return spin(cycles, is_over, [] { return false; });
}

// Items of a stage that nobody has taken yet: the first of them in the lower half of `left`, their end in the upper.
struct alignas(64) Range {
    std::atomic<uint64_t> left;

    void fill(int64_t first, int64_t end) { left.store(pack(first, end), std::memory_order_relaxed); }

    // Takes a share from the front or from the back; false where nothing is left.
    bool take(int64_t share, bool is_front, int64_t &first, int64_t &last) {
        uint64_t seen = left.load(std::memory_order_relaxed), next;
        do {
            const int64_t begin = seen & 0xFFFFFFFF, end = seen >> 32;
            if (begin >= end)
                return false;
            first = is_front ? begin : begin + (end - begin - 1) / share * share;
            last = is_front ? std::min(begin + share, end) : end;
            next = is_front ? pack(last, end) : pack(begin, first);
        } while (!left.compare_exchange_weak(seen, next, std::memory_order_relaxed));
        return true;
    }

    static uint64_t pack(int64_t first, int64_t end) { return uint64_t(first) | uint64_t(end) << 32; }
};

struct alignas(64) Done {
    std::atomic<int32_t> items{0};
};

struct Job {
    const Stage *stages;
    int64_t count;
    int64_t threads; // that may take part, the caller's own included: each has a range of every stage
    Range *ranges;   // [count, threads]
    Done done[MOST_STAGES];

    // Where the range of thread `place` begins: whole shares, the same number of them for each thread.
    int64_t begin(const Stage &stage, int64_t place) const {
        const int64_t shares = (stage.items + stage.share - 1) / stage.share;
        return std::min(shares * place / threads * stage.share, stage.items);
    }
    void fill() {
        for (int64_t index = 0; index < count; index++)
            for (int64_t place = 0; place < threads; place++)
                ranges[index * threads + place].fill(begin(stages[index], place), begin(stages[index], place + 1));
    }
};

// What one thread asks memory for ahead of the stages that it has yet to come to.
struct Foresight {
    const Job &job;
    int64_t place;
    int64_t stage = -1; // the one that it asks for
    int64_t piece = 0;

    // Asks for one more piece of the first stage from `from` on that can be asked for; false where all is asked for.
    bool look(int64_t from) {
        while (from < job.count && !job.stages[from].ask)
            from++;
        if (from >= job.count)
            return false;
        if (from != stage)
            stage = from, piece = 0;
        if (piece >= job.stages[stage].pieces)
            return false;
        job.stages[stage].ask(job.begin(job.stages[stage], place), piece++);
        return true;
    }
};

void take_part(Job &job, int64_t place) {
    Foresight foresight{job, place};
    for (int64_t index = 0; index < job.count; index++) {
        const Stage &stage = job.stages[index];
        std::atomic<int32_t> &done = job.done[index].items;
        const int32_t items = static_cast<int32_t>(stage.items);
        int32_t mine = 0;
        for (int64_t turn = 0; turn < job.threads; turn++) {
            Range &range = job.ranges[index * job.threads + (place + turn) % job.threads];
            for (int64_t first, last; range.take(stage.share, turn == 0, first, last);) {
                stage.work(first, last);
                mine += static_cast<int32_t>(last - first);
            }
        }
        if (mine > 0 && done.fetch_add(mine, std::memory_order_acq_rel) + mine == items)
            done.notify_all();
        const auto is_over = [&] { return done.load(std::memory_order_acquire) >= items; };
        if (spin(WAITING_CYCLES, is_over, [&] { return foresight.look(index + 1); }))
            continue;
        // Waits for a change of the very value that was found too small: a second load might find the last one, which
        // nobody changes again.
        for (int32_t seen; (seen = done.load(std::memory_order_acquire)) < items;)
            done.wait(seen, std::memory_order_acquire);
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
        if (threads_ < job.threads) {
            ranges_ = std::make_unique<Range[]>(MOST_STAGES * job.threads);
            for (; threads_ < job.threads; threads_++)
                start(threads_);
        }
        job.ranges = ranges_.get();
        job.fill();
        job_.store(&job);
        ticket_.fetch_add(1);
        if (wakes)
            ticket_.notify_all();
        take_part(job, 0);
        job_.store(nullptr);
        // Who came in before that line may still be on its way out. Whoever comes after it finds no job.
        while (!spin(WAITING_CYCLES, [&] { return inside_.load() == 0; }))
            std::this_thread::yield();
        return true;
    }

  private:
    void start(int64_t place) {
        sigset_t all, before; // signals are the interpreter's: none is delivered to these threads
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        std::thread([this, place] { help(place); }).detach();
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
    }

    [[noreturn]] void help(int64_t place) {
        uint32_t seen = 0;
        for (;;) {
            if (!spin(IDLE_CYCLES, [&] { return ticket_.load() != seen; }))
                ticket_.wait(seen);
            seen = ticket_.load();
            inside_.fetch_add(1);
            Job *job = job_.load();
            if (job && place < job->threads)
                take_part(*job, place);
            inside_.fetch_sub(1);
        }
    }

    std::mutex busy_;
    int64_t threads_ = 1; // the caller's own included
    std::unique_ptr<Range[]> ranges_;
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
        Job job{stages, count, threads, nullptr, {}};
        if (current_team().run(job, effort == Effort::everybody))
            return;
    }
    for (int64_t index = 0; index < count; index++)
        if (stages[index].items > 0)
            stages[index].work(0, stages[index].items);
}

} // namespace loraplex
