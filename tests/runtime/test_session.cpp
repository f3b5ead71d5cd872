// What sessions and models compute and say, on several threads too.

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <functional>
#include <thread>

#include "folder.h"
#include "nsn/runtime/session.h"
#include "sample.h"
#include "several.h"

namespace nsn::test {
namespace {

using runtime::Error;
using runtime::Model;
using runtime::Session;
using runtime::Status;

std::string what_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing was thrown";
}

/// Two widths of an MLP, and a network of numbers.
Model open_mixed(const Folder& folder) {
  Sample sample(1);
  sample.mlp({8, 40}, 6, 3);
  sample.transformer("text", 4, 2, 5, true);
  write(folder / "net", sample.bytes());
  return Model::open(folder / "net");
}

TEST(Session, SaysWhatIsWrong) {
  const Folder folder;
  const Model model = open_mixed(folder);
  Session session(model, {2, 1, {}});
  const std::vector<float> x(12);
  std::vector<float> y(64);
  EXPECT_EQ(session.run(3, x.data(), y.data()), Status::kNoSuchSubnetwork);
  EXPECT_EQ(session.run(0, x.data(), y.data(), 3), Status::kBatchTooLarge);
  EXPECT_EQ(session.run(0, x.data(), y.data(), -1), Status::kBatchTooLarge);
  EXPECT_EQ(session.run(0, x.data(), y.data(), 0), Status::kOk);
  EXPECT_EQ(session.run(2, x.data(), y.data()), Status::kWrongInputType);
  const std::vector<int64_t> good{0, 19, 3, 4}, low{0, -1, 3, 4}, high{0, 1, 20, 4};
  EXPECT_EQ(session.run(0, good.data(), y.data()), Status::kWrongInputType);
  EXPECT_EQ(session.run(2, good.data(), y.data()), Status::kOk);
  EXPECT_EQ(session.run(2, low.data(), y.data()), Status::kNoSuchRow);
  EXPECT_EQ(session.run(2, high.data(), y.data()), Status::kNoSuchRow);
  // In place, or half so, which some networks would bear and others not.
  std::vector<float> both(24, 0.5F);
  for (const int64_t apart : {0, 5, -2}) {
    EXPECT_EQ(session.run(0, &both[8], &both[static_cast<size_t>(8 + apart)]), Status::kOverlap);
  }
  for (const int64_t apart : {6, -3}) {
    EXPECT_EQ(session.run(0, &both[8], &both[static_cast<size_t>(8 + apart)]), Status::kOk);
  }
  EXPECT_NE(std::string(message(Status::kOverlap)).find("memory of its own"), std::string::npos);
  EXPECT_NE(std::string(message(Status::kNoSuchRow)).find("no row of the table"),
            std::string::npos);
  EXPECT_NE(std::string(message(Status::kBatchTooLarge)).find("max_batch"), std::string::npos);

  EXPECT_EQ(model.index_of("w40"), 1U);
  EXPECT_NE(what_of([&] { model.index_of("w41"); })
                .find("has no sub-network 'w41'. It has 'w8', "
                      "'w40', 'text'."),
            std::string::npos);
  EXPECT_EQ(what_of([&] { Session(model, {0, 1, {}}); }),
            "nsn: a session's max_batch must be at least 1 and at most 1073741824, but is 0. Give "
            "one in between.");
  EXPECT_NE(what_of([&] { Session(model, {1, 0, {}}); }).find("threads must be at least 1"),
            std::string::npos);
  EXPECT_NE(what_of([&] {
              Session::bytes_for(model, {1, 1025, {}});
            }).find("threads must be at least 1 and at most 1024, but is 1025"),
            std::string::npos);
  // Right in each language that the message may come to.
  for (const Status status : {Status::kNoSuchSubnetwork, Status::kNotInFile, Status::kBatchTooLarge,
                              Status::kWrongInputType}) {
    EXPECT_EQ(std::string(message(status)).find("::"), std::string::npos) << message(status);
  }
  EXPECT_EQ(model.subnetworks()[2].takes_numbers, true);
  EXPECT_EQ(model.subnetworks()[0].input, (std::vector<int64_t>{6}));
  EXPECT_EQ(model.subnetworks()[1].output, (std::vector<int64_t>{3}));
}

TEST(Session, SaysWhatItWouldTake) {
  const Folder folder;
  const Model model = open_mixed(folder);
  for (const int64_t batch : {1, 7, 300}) {
    for (const int threads : {1, 3}) {
      if (threads > 1 && !kHasThreads) continue;
      const runtime::SessionOptions options{batch, threads, {}};
      EXPECT_EQ(Session::bytes_for(model, options), Session(model, options).bytes());
    }
  }
  EXPECT_EQ(Session::bytes_for(model), Session(model).bytes());
}

TEST(Session, AFileThatIsCutRunsWhatItHolds) {
  const Folder folder;
  Sample sample(1);
  sample.mlp({40, 8, 90}, 600, 3);
  const std::string bytes = sample.bytes();
  write(folder / "whole", bytes);
  const Model whole = Model::open(folder / "whole");
  const auto& networks = whole.subnetworks();
  // The smallest lies first, whatever the order of names.
  EXPECT_LT(networks[1].file_bytes, networks[0].file_bytes);
  EXPECT_LT(networks[0].file_bytes, networks[2].file_bytes);
  EXPECT_EQ(networks[2].file_bytes, static_cast<int64_t>(bytes.size()));

  const auto part = static_cast<size_t>(networks[1].file_bytes);
  write(folder / "part", bytes.substr(0, part));
  Model model = Model::open(folder / "part");
  Session session(model, {1, 1, {}}), of_all(whole, {1, 1, {}});
  const std::vector<float> x = sample.numbers(600);
  std::vector<float> y(3), expected(3);
  const auto same = [&](size_t network) {
    EXPECT_EQ(of_all.run(network, x.data(), expected.data()), Status::kOk);
    const Status status = session.run(network, x.data(), y.data());
    return status == Status::kOk && y == expected;
  };
  EXPECT_TRUE(same(1));
  EXPECT_FALSE(model.has(0));
  EXPECT_EQ(session.run(0, x.data(), y.data()), Status::kNotInFile);
  EXPECT_NE(what_of([&] { model.load(0); })
                .find("ends before the weights of 'w40', which needs its first " +
                      std::to_string(networks[0].file_bytes) +
                      " bytes. Append the rest, and call the model's grow, or grow_to."),
            std::string::npos);
  EXPECT_NE(what_of([&] {
              model.load(3);
            }).find("has no sub-network of place 3, but 3 of them. Look it up by its name."),
            std::string::npos);

  // One byte less, and not even that one.
  write(folder / "less", bytes.substr(0, part - 1));
  EXPECT_FALSE(Model::open(folder / "less").has(1));

  // What has been appended is there for sessions that run already.
  std::FILE* file = std::fopen((folder / "part").c_str(), "ab");
  ASSERT_NE(file, nullptr);
  std::fwrite(bytes.data() + part, 1, bytes.size() - part, file);
  std::fclose(file);
  EXPECT_FALSE(model.has(2));
  model.grow();
  EXPECT_TRUE(same(0) && same(1) && same(2));
  model.load(2);

  ASSERT_EQ(::truncate((folder / "part").c_str(), static_cast<off_t>(part)), 0);
  EXPECT_NE(what_of([&] { model.grow(); }).find("may be appended to"), std::string::npos);
}

TEST(Session, AFileInMemoryMayArriveInParts) {
  const Folder folder;
  Sample sample(1);
  sample.mlp({40, 8, 90}, 600, 3);
  const std::string bytes = sample.bytes();
  write(folder / "whole", bytes);
  Model whole = Model::open(folder / "whole");
  Session of_all(whole, {1, 1, {}});
  const std::vector<float> x = sample.numbers(600);
  std::vector<float> y(3), expected(3);
  const auto same = [&](Session& session, size_t network) {
    EXPECT_EQ(of_all.run(network, x.data(), expected.data()), Status::kOk);
    const Status status = session.run(network, x.data(), y.data());
    return status == Status::kOk && y == expected;
  };

  // As much memory as has arrived, and no more.
  const auto part = static_cast<size_t>(whole.subnetworks()[1].file_bytes);
  const std::vector<char> beginning(bytes.begin(), bytes.begin() + static_cast<int64_t>(part));
  const Model small = Model::in_memory(beginning.data(), part);
  Session of_small(small, {1, 1, {}});
  EXPECT_TRUE(same(of_small, 1));
  EXPECT_EQ(of_small.run(0, x.data(), y.data()), Status::kNotInFile);

  // Memory for all of it, in which the rest appears.
  std::vector<char> all(bytes.size(), '\xff');
  const auto header = static_cast<size_t>(sample.file().header_bytes);
  std::copy_n(bytes.begin(), part, all.begin());
  Model model = Model::in_memory(all.data(), header);
  Session session(model, {1, 1, {}});
  EXPECT_EQ(session.run(1, x.data(), y.data()), Status::kNotInFile);
  model.grow_to(part - 1);
  EXPECT_FALSE(model.has(1));
  model.grow_to(part);
  EXPECT_TRUE(same(session, 1));
  EXPECT_FALSE(model.has(0));
  std::copy(bytes.begin(), bytes.end(), all.begin());
  model.grow_to(bytes.size());
  EXPECT_TRUE(same(session, 0) && same(session, 1) && same(session, 2));
  model.load(2);

  const auto says = [&](const std::string& what, const std::function<void()>& call) {
    EXPECT_NE(what_of(call).find(what), std::string::npos) << what_of(call);
  };
  says("Say how many there are", [&] { model.grow_to(part); });
  says("Say it with grow_to", [&] { model.grow(); });
  says("is mapped. Call grow.", [&] { whole.grow_to(bytes.size()); });
  says("the file in memory has no sub-network 'w9'. It has 'w40',", [&] { model.index_of("w9"); });
  says("the file in memory ends after ", [&] { Model::in_memory(all.data(), header / 2); });
  says("ends after 0 bytes, in its header", [&] { Model::in_memory(all.data(), 0); });
  says("is said to have " + std::to_string(SIZE_MAX), [&] { model.grow_to(SIZE_MAX); });
  says("at a multiple of 4 bytes, and best at one of 64, but begins 1 behind one. Align it,",
       [&] { Model::in_memory(all.data() + 1, 10); });
}

TEST(Session, WhereThereAreNoThreadsItSaysSo) {
  if (kHasThreads) GTEST_SKIP();
  const Folder folder;
  const Several several(folder / "net");
  const Model model = Model::open(folder / "net");
  EXPECT_NE(what_of([&] { Session(model, {1, 3, {}}); }).find("gives a session 1 of 3 threads"),
            std::string::npos);
}

TEST(Session, SessionsOfOneModelRunAtTheSameTime) {
  if (!kHasThreads) GTEST_SKIP();
  const Folder folder;
  const Several several(folder / "net");
  std::vector<float> expected(10 * 12);
  const std::vector<float> input(300, 0.25F);
  std::vector<std::thread> threads;
  std::atomic<int> wrong = 0;
  {
    const Model model = Model::open(folder / "net");
    Session session(model, {1, 1, {}});
    for (size_t i = 0; i < 12; ++i) {
      ASSERT_EQ(session.run(i, input.data(), expected.data() + 10 * i), Status::kOk);
    }
    for (int t = 0; t < 4; ++t) {
      // Half of them with threads of their own.
      threads.emplace_back([&, own = Session(model, {1, 1 + t % 2, {}}), t]() mutable {
        std::vector<float> output(10);
        for (size_t n = 0; n < 200; ++n) {
          const size_t i = (n + static_cast<size_t>(t)) % 12;
          const bool is_ok = own.run(i, input.data(), output.data()) == Status::kOk;
          if (!is_ok || !std::equal(output.begin(), output.end(),
                                    expected.begin() + 10 * static_cast<int64_t>(i))) {
            ++wrong;
          }
        }
      });
    }
  }  // the model's handle goes; sessions keep what they need
  for (std::thread& each : threads) each.join();
  EXPECT_EQ(wrong, 0);
}

TEST(Session, ACallersThreadsComputeIt) {
  if (!kHasThreads) GTEST_SKIP();
  const Folder folder;
  Sample sample(1);
  sample.mlp({3000}, 784, 10);
  write(folder / "net", sample.bytes());
  const Model model = Model::open(folder / "net");
  std::atomic<int> calls = 0;
  const auto parallel_for = [&](int64_t count, int64_t grain,
                                void (*task)(const void*, int64_t, int64_t), const void* data) {
    ++calls;
    std::vector<std::thread> threads;
    const int64_t parts = std::min<int64_t>(2, (count + grain - 1) / grain);
    for (int64_t i = 0; i < parts; ++i) {
      threads.emplace_back([=] { task(data, i * count / parts, (i + 1) * count / parts); });
    }
    for (std::thread& each : threads) each.join();
  };
  EXPECT_NE(what_of([&] {
              Session(model, {4, 1, parallel_for});
            }).find("of 1 thread has no use for parallel_for, but is given one. Say in threads"),
            std::string::npos);
  Session with(model, {4, 2, parallel_for}), without(model, {4, 1, {}});
  const auto x = sample.numbers(784 * 4);
  std::vector<float> y(40), expected(40);
  EXPECT_EQ(with.run(0, x.data(), y.data(), 4), Status::kOk);
  EXPECT_EQ(without.run(0, x.data(), expected.data(), 4), Status::kOk);
  EXPECT_EQ(y, expected);
  EXPECT_GT(calls, 0);
}

}  // namespace
}  // namespace nsn::test
