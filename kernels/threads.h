// Threads that stay: one team computes a whole step, part by part.
//
// A forward pass has dozens of parallel parts of a few microseconds each. A member that finds a part
// at work spins, because a sleep would cost more than the part; between passes helpers spin shortly,
// then sleep, so that other processes get the cores. Nobody waits for a member that has no task in
// hand: on a busy machine it may have lost its core, and the others do its share.
#pragma once

#include <algorithm>
#include <atomic>
#include <climits>
#include <memory>
#include <mutex>
#include <thread>

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace {

inline void pause_briefly() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

// Spins, then lets others run.
template <class Done>
inline void wait_until(const Done& done) {
    for (int spins = 0; !done(); ++spins) {
        if (spins < 2000) {
            pause_briefly();
        } else {
            sched_yield();
        }
    }
}

struct alignas(64) Part {
    std::atomic<int> next{0};
    std::atomic<int> done{0};
};

// One member's view of a piece of work: every member walks through the same parts in their order.
class Team {
  public:
    Team(int size, Part* parts) : size_(size), parts_(parts) {}

    // Runs body(task) once for every task in [0, tasks), and returns when all are done. Who runs a
    // task is chance, so a result must depend on its task only.
    template <class Body>
    void each(int tasks, const Body& body) {
        if (size_ == 1) {
            for (int task = 0; task < tasks; ++task) body(task);
            return;
        }
        Part& part = *parts_++;
        for (int task; (task = part.next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
            body(task);
            part.done.fetch_add(1, std::memory_order_release);
        }
        wait_until([&] { return part.done.load(std::memory_order_acquire) == tasks; });
    }

    int size() const { return size_; }

    // Tasks to cut so many equal things into: several for each member, as one may be late.
    int shares_of(int things) const { return size_ == 1 ? 1 : std::min(things, 6 * size_); }

  private:
    const int size_;
    Part* parts_;
};

// The process's helper threads. They are never joined: a process that ends takes them with it.
class Pool {
  public:
    // Runs work(team) on the caller and threads - 1 helpers; alone if the helpers are busy. The work
    // calls `each` at most `parts` times.
    template <class Work>
    void run(int threads, int parts, const Work& work) {
        if (threads == 1 || !busy_.try_lock()) {
            Team alone(1, nullptr);
            work(alone);
            return;
        }
        const std::lock_guard<std::mutex> guard(busy_, std::adopt_lock);
        hire(threads - 1);
        prepare(parts);
        call_ = [](const void* body, Team& team) { (*static_cast<const Work*>(body))(team); };
        body_ = &work;
        threads_ = threads;
        inside_.fetch_and(~CLOSED, std::memory_order_release);
        calls_.fetch_add(1);
        if (asleep_.load() > 0) futex(FUTEX_WAKE_PRIVATE, INT_MAX);
        Team team(threads, parts_.get());
        work(team);
        inside_.fetch_or(CLOSED, std::memory_order_acquire);
        wait_until([&] { return inside_.load(std::memory_order_acquire) == CLOSED; });
    }

  private:
    static constexpr int CLOSED = 1 << 30;

    void hire(int helpers) {
        if (owner_ != getpid()) {  // A fork copies no threads.
            owner_ = getpid();
            hired_ = 0;
            asleep_.store(0);
            inside_.store(CLOSED);
        }
        for (; hired_ < helpers; ++hired_) {
            std::thread(&Pool::help, this, hired_, calls_.load()).detach();
        }
    }

    void prepare(int parts) {
        if (parts > capacity_) {
            parts_.reset(new Part[parts]);
            capacity_ = parts;
        }
        for (int part = 0; part < parts; ++part) {
            parts_[part].next.store(0, std::memory_order_relaxed);
            parts_[part].done.store(0, std::memory_order_relaxed);
        }
    }

    void help(int index, unsigned seen) {
        for (;;) {
            for (int spins = 0; calls_.load(std::memory_order_acquire) == seen; ++spins) {
                if (spins < 1000) {
                    pause_briefly();
                    continue;
                }
                asleep_.fetch_add(1);
                if (calls_.load() == seen) futex(FUTEX_WAIT_PRIVATE, seen);
                asleep_.fetch_sub(1);
            }
            seen = calls_.load(std::memory_order_acquire);
            // Whoever comes after the work was closed stays out; to come twice does no harm, since
            // parts that are done have no tasks left.
            const bool open = !(inside_.fetch_add(1, std::memory_order_acq_rel) & CLOSED);
            if (open && index + 1 < threads_) {
                Team team(threads_, parts_.get());
                call_(body_, team);
            }
            inside_.fetch_sub(1, std::memory_order_release);
        }
    }

    void futex(int operation, unsigned value) {
        syscall(SYS_futex, reinterpret_cast<unsigned*>(&calls_), operation, value, nullptr, nullptr,
                0);
    }

    std::mutex busy_;
    pid_t owner_ = 0;
    int hired_ = 0;
    std::unique_ptr<Part[]> parts_;
    int capacity_ = 0;
    void (*call_)(const void*, Team&) = nullptr;
    const void* body_ = nullptr;
    int threads_ = 0;
    alignas(64) std::atomic<unsigned> calls_{0};
    alignas(64) std::atomic<int> inside_{CLOSED};
    std::atomic<int> asleep_{0};
};

inline Pool& pool() {
    static Pool* const helpers = new Pool;
    return *helpers;
}

}  // namespace
