// What a run costs beside its time: allocations, calls of the system, resident memory. By itself,
// since it counts all of the process's allocations, which sanitizers want to do too.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <thread>

#include "allocations.h"
#include "folder.h"
#include "nsn/runtime/session.h"
#include "sample.h"
#include "several.h"

namespace nsn::test {
namespace {

using runtime::Model;
using runtime::Session;
using runtime::Status;

/// Calls `look(run)` for each of several networks and batches; `run()` runs it, and has to go well.
template <typename Look>
void over_runs(const Look& look) {
  const Folder folder;
  const Several several(folder / "net");
  const Model model = Model::open(folder / "net");
  Session session(model, {40, 1, {}});
  const std::vector<float> input(300 * 40, 0.5F);
  std::vector<float> output(10 * 40);
  for (const int64_t samples : {1, 40}) {
    for (size_t i = 0; i < model.subnetworks().size(); ++i) {
      SCOPED_TRACE("network " + std::to_string(i));
      look([&] { EXPECT_EQ(session.run(i, input.data(), output.data(), samples), Status::kOk); });
    }
  }
}

TEST(Cost, ARunAllocatesNothing) {
  over_runs([](const auto& run) {
    const int64_t before = allocations;
    run();
    EXPECT_EQ(allocations - before, 0);
  });
}

/// Page faults of this process that the system served without and with a disk.
int64_t page_faults() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return usage.ru_minflt + usage.ru_majflt;
}

TEST(Cost, ARunFaultsNoPagesOnceItsWeightsAreThere) {
  over_runs([](const auto& run) {
    run();
    const int64_t before = page_faults();
    run();
    EXPECT_EQ(page_faults() - before, 0);
  });
}

TEST(Cost, ARunCallsTheSystemForNothing) {
  const Folder folder;
  const Several several(folder / "net");
  // Strict mode: the kernel ends a process that calls for more than read, write and its own end.
  for (const bool breaks : {false, true}) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      const Model model = Model::open(folder / "net");
      Session session(model, {40, 1, {}});
      const std::vector<float> input(300 * 40, 0.5F);
      std::vector<float> output(10 * 40);
      bool done = ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) == 0;
      for (const int64_t samples : {1, 40}) {
        for (size_t i = 0; i < 12; ++i) {
          done = session.run(i, input.data(), output.data(), samples) == Status::kOk && done;
        }
      }
      if (breaks) ::getppid();
      ::syscall(SYS_exit, done ? 0 : 1);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    // That the filter is at work shows the second round.
    EXPECT_EQ(WIFEXITED(status) && WEXITSTATUS(status) == 0, !breaks);
  }
}

/// How often each thread of this process has gone to sleep.
std::map<std::string, std::string> sleeps() {
  std::map<std::string, std::string> result;
  for (const auto& each : std::filesystem::directory_iterator("/proc/self/task")) {
    std::ifstream status(each.path() / "status");
    for (std::string line; std::getline(status, line);) {
      if (line.rfind("voluntary_ctxt_switches", 0) == 0) result[each.path()] = line;
    }
  }
  return result;
}

TEST(Cost, ARunOfFewPartsLeavesOtherThreadsAsleep) {
  // Two or three tiles of rows, which are as many parts.
  const Folder folder;
  Sample sample(1);
  sample.mlp({32}, 4096, 1);
  write(folder / "net", sample.bytes());
  const Model model = Model::open(folder / "net");
  constexpr int kThreads = 24;
  Session session(model, {9, kThreads, {}});
  const std::vector<float> input(4096 * 9, 0.5F);
  std::vector<float> output(9);
  const auto sleep = [] { std::this_thread::sleep_for(std::chrono::milliseconds(20)); };
  // Until all but this one have fallen asleep.
  auto before = sleeps();
  for (int awake = kThreads, rounds = 0; awake > 1 && rounds < 500; ++rounds) {
    sleep();
    const auto now = sleeps();
    awake = 0;
    for (const auto& [thread, count] : now) awake += before[thread] == count ? 0 : 1;
    before = now;
  }
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(session.run(0, input.data(), output.data(), 9), Status::kOk);
    sleep();
  }
  int woken = 0;
  for (const auto& [thread, count] : sleeps()) woken += before.at(thread) == count ? 0 : 1;
  // This one, and the other parts'.
  EXPECT_GE(before.size(), kThreads);
  EXPECT_LE(woken, 3);
}

/// Bytes of the mapping of a file that are in this process's memory.
int64_t resident_bytes(const std::string& path) {
  std::FILE* maps = std::fopen("/proc/self/smaps", "r");
  char line[4096];
  bool is_ours = false;
  int64_t result = 0;
  while (maps != nullptr && std::fgets(line, sizeof line, maps) != nullptr) {
    const std::string text = line;
    if (text.find('-') < text.find(' ')) is_ours = text.find(path) != std::string::npos;
    long long kilobytes = 0;
    if (is_ours && std::sscanf(line, "Rss: %lld kB", &kilobytes) == 1) result += kilobytes * 1024;
  }
  if (maps != nullptr) std::fclose(maps);
  return result;
}

/// Bytes of this process that are in memory, its own and what it maps.
int64_t resident_bytes() {
  long long all = 0, resident = 0;
  std::FILE* found = std::fopen("/proc/self/statm", "r");
  EXPECT_TRUE(found != nullptr && std::fscanf(found, "%lld %lld", &all, &resident) == 2);
  if (found != nullptr) std::fclose(found);
  return resident * ::sysconf(_SC_PAGESIZE);
}

TEST(Cost, WhatNoOneUsesIsNotRead) {
  const Folder folder;
  Sample sample(1);
  sample.mlp({16, 4000}, 784, 10);
  write(folder / "net", sample.bytes());
  // As it is on a device: on the disk, and not in the system's cache, which maps what was written
  // at once in large pieces.
  const int file = ::open((folder / "net").c_str(), O_RDONLY);
  ASSERT_EQ(::fsync(file), 0);
  ASSERT_EQ(::posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED), 0);
  ::close(file);
  const int64_t before = resident_bytes();
  const Model model = Model::open(folder / "net");
  Session session(model, {1, 1, {}});
  const std::vector<float> x(784);
  std::vector<float> y(10);
  ASSERT_GT(model.subnetworks()[1].file_bytes, 12'000'000);
  EXPECT_EQ(session.run(0, x.data(), y.data()), Status::kOk);
  // Its 50 KB of weights, the header, and what the system maps around them at once.
  EXPECT_LT(resident_bytes(folder / "net"), 500'000);
  // And the session's memory, and pages of the library that ran for the first time.
  EXPECT_LT(resident_bytes() - before, 500'000);
  EXPECT_EQ(session.run(1, x.data(), y.data()), Status::kOk);
  EXPECT_GT(resident_bytes(folder / "net"), 12'000'000);
}

}  // namespace
}  // namespace nsn::test
