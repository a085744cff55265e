// SPDX-License-Identifier: BSD-3-Clause
#include "target.hpp"

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

// Runs a target without libFuzzer: with each file that is named, or lies in a directory that is.

namespace {

int runs = 0;

void replay(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  const std::vector<std::uint8_t> data(bytes.begin(), bytes.end());
  if (!file) std::fprintf(stderr, "%s cannot be read\n", path.c_str());
  ballast_fuzz::require(static_cast<bool>(file), "every file can be read");
  // The one that is under way when it ends is the last that was named.
  std::fprintf(stderr, "%s\n", path.c_str());
  LLVMFuzzerTestOneInput(data.data(), data.size());
  ++runs;
}

} // namespace

int main(int count, char** arguments) {
  for (int i = 1; i < count; ++i) {
    const std::filesystem::path path = arguments[i];
    if (!std::filesystem::is_directory(path)) {
      replay(path);
      continue;
    }
    for (const auto& entry : std::filesystem::directory_iterator(path)) replay(entry.path());
  }
  std::printf("%d inputs\n", runs);
  return runs == 0 ? 1 : 0;
}
