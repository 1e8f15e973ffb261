// Threads that stay: one team computes a whole step, and meets between its parts.
//
// A forward pass has dozens of parallel parts of a few microseconds each. Members spin at a meeting,
// because a sleep would cost more than the part; between passes they spin shortly, then sleep, so
// that other processes get the cores.
#pragma once

#include <atomic>
#include <climits>
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

// Spins, then lets others run: a member may have lost its core to another process.
template <class Done>
inline void wait_until(const Done& done) {
    for (int spins = 0; !done(); ++spins) {
        if (spins < 4000) {
            pause_briefly();
        } else {
            sched_yield();
        }
    }
}

// The threads that run one piece of work, each calling `each` for the same parts in the same order.
class Team {
  public:
    explicit Team(int size) : size_(size) {}

    // Runs body(task) once for every task in [0, tasks), then meets. Who runs a task is chance, so
    // a result must depend on its task only.
    template <class Body>
    void each(int tasks, const Body& body) {
        if (size_ == 1) {
            for (int task = 0; task < tasks; ++task) body(task);
            return;
        }
        for (int task; (task = next_.fetch_add(1, std::memory_order_relaxed)) < tasks;) body(task);
        meet();
    }

    int size() const { return size_; }

  private:
    void meet() {
        const unsigned meeting = meetings_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
            arrived_.store(0, std::memory_order_relaxed);
            next_.store(0, std::memory_order_relaxed);
            meetings_.store(meeting + 1, std::memory_order_release);
            return;
        }
        wait_until([&] { return meetings_.load(std::memory_order_acquire) != meeting; });
    }

    const int size_;
    alignas(64) std::atomic<int> next_{0};
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<unsigned> meetings_{0};
};

// The process's helper threads. They are never joined: a process that ends takes them with it.
class Pool {
  public:
    // Runs work(team) on the caller and threads - 1 helpers; alone if the helpers are busy.
    template <class Work>
    void run(int threads, const Work& work) {
        if (threads > 1 && busy_.try_lock()) {
            const std::lock_guard<std::mutex> guard(busy_, std::adopt_lock);
            hire(threads - 1);
            Team team(threads);
            call_ = [](const void* body, Team& members) {
                (*static_cast<const Work*>(body))(members);
            };
            body_ = &work;
            team_ = &team;
            wanted_ = threads - 1;
            working_.store(hired_, std::memory_order_relaxed);  // All answer, so none comes late.
            calls_.fetch_add(1);
            if (asleep_.load() > 0) futex(FUTEX_WAKE_PRIVATE, INT_MAX);
            work(team);
            wait_until([&] { return working_.load(std::memory_order_acquire) == 0; });
            return;
        }
        Team alone(1);
        work(alone);
    }

  private:
    void hire(int helpers) {
        if (owner_ != getpid()) {  // A fork copies no threads.
            owner_ = getpid();
            hired_ = 0;
            asleep_.store(0);
        }
        for (; hired_ < helpers; ++hired_) {
            std::thread(&Pool::help, this, hired_, calls_.load()).detach();
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
            if (index < wanted_) call_(body_, *team_);
            working_.fetch_sub(1, std::memory_order_release);
        }
    }

    void futex(int operation, unsigned value) {
        syscall(SYS_futex, reinterpret_cast<unsigned*>(&calls_), operation, value, nullptr, nullptr,
                0);
    }

    std::mutex busy_;
    pid_t owner_ = 0;
    int hired_ = 0;
    void (*call_)(const void*, Team&) = nullptr;
    const void* body_ = nullptr;
    Team* team_ = nullptr;
    int wanted_ = 0;
    alignas(64) std::atomic<unsigned> calls_{0};
    std::atomic<int> working_{0};
    std::atomic<int> asleep_{0};
};

inline Pool& pool() {
    static Pool* const helpers = new Pool;
    return *helpers;
}

}  // namespace
