#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "support.h"

// Checkpoints: what is written comes back, and no file whatever makes more than an error.

namespace nsn::test {
namespace {

std::string read_file(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  std::ostringstream contents;
  contents << stream.rdbuf();
  return contents.str();
}

void write_file(const std::string& path, const std::string& contents) {
  std::ofstream(path, std::ios::binary) << contents;
}

/// Eight bytes, little endian.
std::string length_bytes(uint64_t length) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes += static_cast<char>((length >> (8 * i)) & 0xFFU);
  return bytes;
}

std::string with_header(const std::string& header, const std::string& data = "") {
  return length_bytes(header.size()) + header + data;
}

/// A network of one weight (1, 2): 8 bytes of data.
NetworkOptions tiny() {
  return NetworkOptions().input({2}).block("a", DenseOptions(2, 1).bias(false));
}

/// The description as a JSON string inside JSON.
std::string escaped_description(const NetworkOptions& options = tiny()) {
  std::string result;
  for (const char c : Description(options).to_json()) {
    if (c == '"') result += '\\';
    result += c;
  }
  return result;
}

std::string tiny_header(const std::string& tensors) {
  return "{\"__metadata__\":{\"nsn\":\"" + escaped_description() + "\",\"format\":\"pt\"}" +
         (tensors.empty() ? "" : "," + tensors) + "}";
}

const std::string kWeight =
    "\"a.weight\":{\"dtype\":\"F32\",\"shape\":[1,2],\"data_offsets\":[0,8]}";

void expect_unreadable(const std::string& contents, const std::vector<std::string>& parts,
                       const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  const std::string path = temporary_path("unreadable.safetensors");
  write_file(path, contents);
  expect_throws_with([&] { load(path); }, parts, file, line);
  std::filesystem::remove(path);
}

TEST(Checkpoint, RoundTripsBitsAndMetadata) {
  const std::string path = temporary_path("round_trip.safetensors");
  for (uint64_t seed = 0; seed < 30; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Case test = random_case(seed, "mean");
    const Metadata metadata = {{"note", "Zürich \"quoted\" \n line"}, {"", "empty key"}};
    save(test.net, path, metadata);
    Random random(0);
    const Checkpoint checkpoint = read_checkpoint(path);
    EXPECT_EQ(checkpoint.metadata, metadata);
    Network again = load(path, {.rules = {{"median", make_rule("median", {}, random)},
                                          {"ramp", make_rule("ramp", {}, random)}}});
    EXPECT_EQ(again->description(), test.net->description());
    const auto own = test.net->parameters(), loaded = again->parameters();
    ASSERT_EQ(own.size(), loaded.size());
    for (size_t i = 0; i < own.size(); ++i) expect_same_bits(loaded[i], own[i]);
    test.net->eval();
    again->eval();
    const auto expected = test.net->joint(test.x), actual = again->joint(test.x);
    for (const auto& output : expected) {
      expect_close(actual[output.key()], output.value(), 1e-13, output.key());
    }
  }
  std::filesystem::remove(path);
}

TEST(Checkpoint, KeepsEveryFloatingDtypeAndSpecialValues) {
  const std::string path = temporary_path("dtypes.safetensors");
  for (const auto dtype : {at::kFloat, at::kDouble, at::kHalf, at::kBFloat16}) {
    Network net(tiny().input({2}, dtype));
    {
      const torch::NoGradGuard no_grad;
      net->parameters()[0].copy_(at::tensor({-0.0, std::numeric_limits<double>::quiet_NaN()}));
    }
    save(net, path);
    expect_same_bits(load(path)->parameters()[0], net->parameters()[0]);
  }
  std::filesystem::remove(path);
}

TEST(Checkpoint, TakesTensorsThatAreNotContiguous) {
  const std::string path = temporary_path("strided.safetensors");
  const Description description(
      NetworkOptions().input({3}).block("a", DenseOptions(3, 2).bias(false)));
  const at::Tensor weight = at::randn({3, 2}).t();
  write_checkpoint(description, {weight}, path);
  expect_same_bits(read_checkpoint(path).parameters[0], weight);
  std::filesystem::remove(path);
}

TEST(Checkpoint, HasTheDocumentedLayout) {
  const std::string path = temporary_path("layout.safetensors");
  torch::manual_seed(1);
  Network net(tiny());
  save(net, path);
  const std::string contents = read_file(path);
  uint64_t header = 0;
  for (size_t i = 0; i < 8; ++i) {
    header |= static_cast<uint64_t>(static_cast<unsigned char>(contents[i])) << (8 * i);
  }
  EXPECT_EQ(header % 8, 0U);
  ASSERT_EQ(contents.size(), 8 + header + 8);
  EXPECT_EQ(std::memcmp(contents.data() + 8 + header, net->parameters()[0].data_ptr(), 8), 0);
  const std::string text = contents.substr(8, header);
  EXPECT_EQ(text[0], '{');
  EXPECT_NE(text.find(kWeight), std::string::npos) << text;
  EXPECT_NE(text.find(escaped_description()), std::string::npos) << text;
  // What the tests below spoil is valid before.
  write_file(path, with_header(tiny_header(kWeight), std::string(8, '\0')));
  expect_same_bits(load(path)->parameters()[0], at::zeros({1, 2}));
  std::filesystem::remove(path);
}

TEST(Checkpoint, SavingTwiceGivesTheSameBytes) {
  const std::string one = temporary_path("one.safetensors"),
                    two = temporary_path("two.safetensors");
  Network net(small_options());
  save(net, one);
  save(load(one), two);
  EXPECT_EQ(read_file(one), read_file(two));
  std::filesystem::remove(one);
  std::filesystem::remove(two);
}

TEST(CheckpointErrors, TruncatedAnywhere) {
  const std::string path = temporary_path("whole.safetensors");
  save(Network(small_options()), path);
  const std::string whole = read_file(path);
  for (size_t length = 0; length < whole.size(); length += length < 64 ? 1 : 13) {
    expect_unreadable(whole.substr(0, length), {"truncated"});
  }
  expect_unreadable(whole.substr(0, whole.size() - 1), {"truncated"});
  expect_unreadable(whole + "x", {"bytes of tensors", "truncated or damaged"});
  std::filesystem::remove(path);
}

TEST(CheckpointErrors, DamagedBytesAreErrorsOrOtherNumbers) {
  const std::string path = temporary_path("damaged.safetensors");
  save(Network(tiny()), path);
  const std::string whole = read_file(path);
  int refused = 0;
  for (size_t place = 0; place < whole.size(); ++place) {
    for (const unsigned char with : {0x00, 0xFF, 0x22, 0x5B, 0x39}) {
      std::string damaged = whole;
      damaged[place] = static_cast<char>(with);
      write_file(path, damaged);
      try {
        load(path);
      } catch (const c10::ValueError&) {
        ++refused;
      }
    }
  }
  EXPECT_GT(refused, 1000);
  std::filesystem::remove(path);
}

TEST(CheckpointErrors, ForeignFiles) {
  expect_unreadable("", {"0 bytes"});
  expect_unreadable("hello", {"5 bytes"});
  expect_unreadable("The quick brown fox jumps over the lazy dog.", {"no complete safetensors"});
  expect_unreadable(std::string("PK\x03\x04") + std::string(500, '\0'), {"unreadable"});
  expect_unreadable(std::string(4096, '\0'), {"its header is no JSON"});
  expect_unreadable(with_header("[]"), {"no JSON object"});
  expect_unreadable(with_header("nonsense"), {"is no safetensors file: its header "});
  expect_unreadable(with_header("{\"__metadata__\":{\"nsn\":1e999}}"),
                    {"is no safetensors file: its header "});
  expect_unreadable(with_header("{\"__metadata__\":{\"nsn\":\"\xff\"}}"),
                    {"is no safetensors file: its header "});
  expect_unreadable(with_header("{}"), {"not one of nsn", "'nsn'"});
  expect_unreadable(with_header("{\"__metadata__\":[]}"), {"__metadata__", "object"});
  expect_unreadable(with_header("{\"__metadata__\":{\"nsn\":1}}"), {"'nsn'", "string"});
  expect_unreadable(with_header("{\"__metadata__\":{\"nsn\":\"{}\"}}"), {"lacks the field 'nsn'"});
  expect_unreadable(with_header("{\"__metadata__\":{\"nsn\":\"no\"}}"), {"no JSON"});
}

TEST(CheckpointErrors, HeaderLengths) {
  const std::string data(8, '\0');
  const std::string header = tiny_header(kWeight);
  for (const uint64_t length : {header.size() + 9, uint64_t{100'000'001}, uint64_t{1} << 40,
                                uint64_t{1} << 63, ~uint64_t{0}, ~uint64_t{0} - 7}) {
    expect_unreadable(length_bytes(length) + header + data,
                      {"announces a header of " + std::to_string(length)});
  }
  expect_unreadable(length_bytes(header.size() + 8) + header + data,
                    {"is no safetensors file: its header "});
  expect_unreadable(length_bytes(header.size() - 1) + header + data,
                    {"is no safetensors file: its header "});
  expect_unreadable(length_bytes(0) + header + data, {"is no safetensors file: its header "});
}

TEST(CheckpointErrors, DeepNesting) {
  for (const size_t depth : {size_t{20}, size_t{100'000}}) {
    expect_unreadable(
        with_header("{\"a\":" + std::string(depth, '[') + std::string(depth, ']') + "}"),
        {"'a' must have the fields"});
    expect_unreadable(with_header("{\"a\":" + std::string(depth, '[')),
                      {"'a' must have the fields"});
    expect_unreadable(with_header(std::string(depth, '[')), {"no JSON object"});
    expect_unreadable(
        with_header("{\"__metadata__\":{\"nsn\":\"" + std::string(depth, '[') + "\"}}"),
        {depth > 32 ? "nested deeper than 32 levels" : "is no JSON"});
  }
}

TEST(CheckpointErrors, Ranges) {
  const auto ranges = [](const std::string& a, const std::string& b) {
    return tiny_header("\"a.weight\":{\"dtype\":\"F32\",\"shape\":[1,2],\"data_offsets\":" + a +
                       "},\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":" + b + "}");
  };
  const std::string data(16, '\0');
  expect_unreadable(with_header(ranges("[0,8]", "[4,12]"), data),
                    {"'b'", "starts at byte 4", "ends at 8"});
  expect_unreadable(with_header(ranges("[0,8]", "[0,8]"), data), {"starts at byte 0"});
  expect_unreadable(with_header(ranges("[0,8]", "[9,17]"), data + "x"), {"starts at byte 9"});
  expect_unreadable(with_header(ranges("[8,16]", "[16,24]"), data), {"starts at byte 8"});
  expect_unreadable(with_header(ranges("[0,8]", "[8,24]"), data), {"'b'", "takes 8 bytes"});
  expect_unreadable(with_header(ranges("[8,0]", "[8,16]"), data), {"'a.weight'", "[8,0]"});
  expect_unreadable(with_header(ranges("[0]", "[8,16]"), data), {"data_offsets", "pair"});
  expect_unreadable(with_header(ranges("[-8,0]", "[8,16]"), data), {"data_offsets", "pair"});
  expect_unreadable(with_header(ranges("[0.0,8.0]", "[8,16]"), data), {"data_offsets", "pair"});
  expect_unreadable(
      with_header(ranges("[18446744073709551608,18446744073709551616]", "[0,8]"), data),
      {"data_offsets"});
  expect_unreadable(with_header(tiny_header(kWeight), std::string(4, '\0')), {"8 bytes", "has 4"});
}

TEST(CheckpointErrors, Tensors) {
  const std::string data(8, '\0');
  const auto weight = [&](const std::string& entry) {
    return with_header(tiny_header("\"a.weight\":" + entry), data);
  };
  const auto fields = [&](const std::string& dtype, const std::string& shape) {
    return weight("{\"dtype\":" + dtype + ",\"shape\":" + shape + ",\"data_offsets\":[0,8]}");
  };
  expect_unreadable(fields("\"F31\"", "[1,2]"), {"'a.weight'", "unknown dtype \"F31\""});
  expect_unreadable(fields("4", "[1,2]"), {"'a.weight'", "dtype"});
  expect_unreadable(fields("\"F32\"", "[2,1]"), {"'a.weight'", "(2, 1)", "(1, 2)"});
  expect_unreadable(fields("\"F32\"", "[2]"), {"'a.weight'", "(2)", "(1, 2)"});
  expect_unreadable(fields("\"I32\"", "[1,2]"), {"'a.weight'", "Int", "floating"});
  expect_unreadable(fields("\"F32\"", "[1,-2]"), {"shape", "naturals"});
  expect_unreadable(fields("\"F32\"", "2"), {"shape", "naturals"});
  expect_unreadable(fields("\"F32\"", "[4294967296,4294967296]"), {"no memory holds"});
  expect_unreadable(fields("\"F32\"", "[0,9223372036854775808]"), {"no memory holds"});
  expect_unreadable(fields("\"F32\"", "[1,1099511627776]"), {"takes"});
  expect_unreadable(weight("{\"dtype\":\"F32\",\"shape\":[1,2]}"), {"data_offsets"});
  expect_unreadable(weight("{\"dtype\":\"F32\",\"shape\":[1,2],\"data_offsets\":[0,8],\"x\":1}"),
                    {"'a.weight'", "fields"});
  expect_unreadable(weight("3"), {"'a.weight'", "fields"});
  expect_unreadable(with_header(tiny_header("")), {"lacks the tensor 'a.weight'"});
  expect_unreadable(
      with_header(
          tiny_header(kWeight + ",\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[8,12]}"),
          data + "1234"),
      {"'b'", "does not know"});
  // Nothing but the extents is wrong with an empty tensor of absurd size.
  expect_unreadable(with_header(tiny_header(kWeight + ",\"b\":{\"dtype\":\"F32\",\"shape\":[0,"
                                                      "4611686018427387904,4611686018427387904],"
                                                      "\"data_offsets\":[8,8]}"),
                                data),
                    {"'b'"});
  expect_unreadable(with_header(tiny_header(kWeight + "," + kWeight), data),
                    {"'a.weight'", "twice"});
  expect_unreadable(with_header("{\"__metadata__\":{},\"__metadata__\":{}}"),
                    {"'__metadata__'", "twice"});
}

TEST(CheckpointErrors, FilesThatTheSystemRefuses) {
  const std::string missing = temporary_path("missing.safetensors");
  try {
    load(missing);
    ADD_FAILURE() << "loaded a file that does not exist";
  } catch (const FileError& error) {
    EXPECT_EQ(error.code(), ENOENT);
    EXPECT_EQ(error.path(), missing);
    EXPECT_NE(std::string(error.what()).find(missing), std::string::npos);
    EXPECT_NE(std::string(error.what()).find("No such file"), std::string::npos);
  }
  const std::string directory = temporary_path("directory");
  std::filesystem::create_directory(directory);
  try {
    load(directory);
    ADD_FAILURE() << "loaded a directory";
  } catch (const FileError& error) {
    EXPECT_EQ(error.code(), EISDIR);
  }
  std::filesystem::remove(directory);
}

TEST(CheckpointErrors, AFailedSaveLeavesNothingBehind) {
  Network net(tiny());
  const auto before = temporary_files();
  const auto expect_refused = [&](const std::string& path, int code) {
    try {
      save(net, path);
      ADD_FAILURE() << "saved to " << path;
    } catch (const FileError& error) {
      EXPECT_EQ(error.code(), code) << error.what();
      EXPECT_EQ(error.path(), path);
    }
  };
  expect_refused(temporary_path("no_such_directory/file.safetensors"), ENOENT);
  const std::string directory = temporary_path("directory");
  std::filesystem::create_directories(directory + "/inner");
  expect_refused(directory, EISDIR);
  EXPECT_TRUE(std::filesystem::is_directory(directory + "/inner"));
  std::filesystem::remove_all(directory);
  const std::string file = temporary_path("file");
  write_file(file, "");
  expect_refused(file + "/inner.safetensors", ENOTDIR);
  std::filesystem::remove(file);
  EXPECT_EQ(temporary_files(), before);
}

TEST(CheckpointErrors, WrongTensorsLeaveTheOldFile) {
  const std::string path = temporary_path("kept.safetensors");
  save(Network(tiny()), path);
  const std::string kept = read_file(path);
  const auto before = temporary_files();
  const Description description(tiny());
  const auto write = [&](const std::vector<at::Tensor>& tensors, const Metadata& metadata = {}) {
    write_checkpoint(description, tensors, path, metadata);
  };
  const at::Tensor weight = at::ones({1, 2});
  expect_throws_with([&] { write({}); }, {"expected 1 parameters", "0"});
  expect_throws_with([&] { write({at::ones({2, 1})}); }, {"'a.weight'", "(1, 2)", "(2, 1)"});
  expect_throws_with([&] { write({at::Tensor()}); }, {"'a.weight'", "undefined"});
  expect_throws_with([&] { write({weight.to(at::kComplexFloat)}); }, {"'a.weight'", "dtype"});
  expect_throws_with([&] { write({weight}, {{"nsn", "mine"}}); }, {"'nsn'", "library's own"});
  expect_throws_with([&] { write({weight}, {{"format", "mine"}}); }, {"'format'"});
  expect_throws_with<c10::Error>([&] { write({weight}, {{"note", "\xff"}}); }, {"UTF-8"});
  expect_throws_with([&] { write({at::ones({1, 2}, at::kLong)}); }, {"'a.weight'", "floating"});
  EXPECT_EQ(read_file(path), kept);
  EXPECT_EQ(temporary_files(), before);
  std::filesystem::remove(path);
}

TEST(Checkpoint, ReplacesTheOldFile) {
  const std::string path = temporary_path("replaced.safetensors");
  write_file(path, std::string(100'000, 'x'));
  Network net(tiny());
  save(net, path);
  expect_same_bits(load(path)->parameters()[0], net->parameters()[0]);
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace nsn::test
