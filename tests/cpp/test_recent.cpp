#include <gtest/gtest.h>

#include <stdexcept>
#include <vector>

#include "nsn/values/layout.h"
#include "values/borders.h"
#include "values/recent.h"

namespace nsn::test {
namespace {

TEST(Recent, KeepsThoseThatWereAskedForLast) {
  detail::Recent<int> recent(3);
  int made = 0;
  const auto ask = [&](size_t key) {
    return recent.get(key, [&] {
      ++made;
      return static_cast<int>(key) * 10;
    });
  };
  const auto held = ask(1);
  EXPECT_EQ(*ask(2), 20);
  EXPECT_EQ(*ask(3), 30);
  EXPECT_EQ(ask(1), held);  // and is the last one now
  EXPECT_EQ(*ask(4), 40);   // in the place of 2
  EXPECT_EQ(made, 4);
  EXPECT_EQ(ask(1), held);
  EXPECT_EQ(*ask(3), 30);
  EXPECT_EQ(made, 4);
  EXPECT_EQ(*ask(2), 20);
  EXPECT_EQ(made, 5);
  for (size_t key = 5; key < 10; ++key) ask(key);
  EXPECT_EQ(*held, 10);  // whoever holds it has it
  EXPECT_NE(ask(1), held);
}

TEST(Recent, WhatCannotBeMadeLeavesNothing) {
  detail::Recent<int> recent(2);
  EXPECT_THROW(recent.get(1, []() -> int { throw std::runtime_error("no"); }), std::runtime_error);
  EXPECT_EQ(*recent.get(1, [] { return 7; }), 7);
}

/// Layouts that fit borders have a common view, any of them; those that do not, have none with all.
TEST(Borders, ThoseThatFitHaveACommonView) {
  const Layout whole{Axis(24)};
  const Layout two_parts{Axis({{2, 2}, {12, 5}})}, three_parts{Axis({{3, 3}, {8, 4}})};
  const Layout leading{Axis(24, 12)}, odd{Axis(24, 7)};
  detail::Borders borders;
  for (const Layout& each : {whole, two_parts, leading}) borders.add(each);
  EXPECT_TRUE(borders.fit(whole));
  EXPECT_TRUE(borders.fit(two_parts));
  EXPECT_TRUE(borders.fit(leading));
  EXPECT_TRUE(borders.fit({Axis(24, 7)}));    // within the first part
  EXPECT_FALSE(borders.fit({Axis(24, 13)}));  // ends inside of the second
  EXPECT_FALSE(borders.fit(three_parts));     // has a border of its own
  const std::vector<const Layout*> fitting{&whole, &two_parts, &leading, &odd};
  for (size_t mask = 1; mask < 16; ++mask) {
    std::vector<const Layout*> some;
    for (size_t i = 0; i < fitting.size(); ++i) {
      if ((mask >> i) % 2 == 1) some.push_back(fitting[i]);
    }
    EXPECT_TRUE(common_view(some)) << mask;
  }
  EXPECT_FALSE(common_view({&two_parts, &three_parts}));
}

}  // namespace
}  // namespace nsn::test
