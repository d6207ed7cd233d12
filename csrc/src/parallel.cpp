#include "pyids/parallel.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace pyids {

namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::milliseconds kPollEvery{50};

struct Stopped {};  // thrown on worker threads: another thread knows why

thread_local std::function<void()>* current_poll = nullptr;
thread_local Clock::time_point next_poll;
thread_local const std::atomic<bool>* stopping =
    nullptr;  // of the blocks that this thread works on

}  // namespace

InterruptScope::InterruptScope(std::function<void()> poll)
    : poll_(std::move(poll)), before_(current_poll) {
  current_poll = &poll_;
  next_poll = Clock::now() + kPollEvery;
}

InterruptScope::~InterruptScope() { current_poll = before_; }

void check_interrupt() {
  if (stopping != nullptr && stopping->load(std::memory_order_relaxed)) throw Stopped{};
  if (current_poll == nullptr) return;
  const auto now = Clock::now();
  if (now < next_poll) return;
  next_poll = now + kPollEvery;
  (*current_poll)();
}

void parallel_blocks(std::size_t n_blocks, int n_threads,
                     const std::function<void(std::size_t, int)>& body) {
  const auto n_workers = std::min(n_blocks, static_cast<std::size_t>(std::max(1, n_threads)));
  std::atomic<std::size_t> next{0};
  std::atomic<bool> stop{false};
  std::exception_ptr error;
  std::mutex error_mutex;
  auto work = [&](int thread) {
    const std::atomic<bool>* const outer = std::exchange(stopping, &stop);
    try {
      for (std::size_t block = next++; block < n_blocks; block = next++) {
        check_interrupt();
        body(block, thread);
      }
    } catch (const Stopped&) {
    } catch (...) {
      std::lock_guard<std::mutex> lock(error_mutex);
      if (!error) error = std::current_exception();
      stop = true;
    }
    stopping = outer;
  };
  std::vector<std::thread> threads;
  if (n_workers > 1) threads.reserve(n_workers - 1);
  for (std::size_t thread = 1; thread < n_workers; ++thread) {
    try {
      threads.emplace_back(work, static_cast<int>(thread));
    } catch (const std::system_error&) {
      break;  // a limit on threads or memory: those that run share the blocks
    }
  }
  if (n_workers > 0) work(0);
  for (auto& thread : threads) thread.join();
  if (error) std::rethrow_exception(error);
  // Inside another call's block whose work is to end: not all blocks were run.
  if (stopping != nullptr && stopping->load(std::memory_order_relaxed)) throw Stopped{};
}

}  // namespace pyids
