// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/virtio/features.hpp>

#include <support/check.hpp>

#include <array>
#include <cstddef>
#include <string_view>

namespace {

using ballast::error;
using ballast::feature_dependency;
using ballast::feature_set;
namespace feature = ballast::feature;
using std::string_view;

// The two texts of Linux's balloon document.
constexpr string_view without_oom =
    "0100000000000000000000000000110010000000000000000000000000000000";
constexpr string_view with_oom = "0110000000000000000000000000110010000000000000000000000000000000";

constexpr bool is_text(const char* a, string_view b) { return a != nullptr && string_view(a) == b; }

constexpr auto names = [](auto check) {
  check(is_text(feature::name(24), "VIRTIO_F_NOTIFY_ON_EMPTY"));
  check(is_text(feature::name(27), "VIRTIO_F_ANY_LAYOUT"));
  check(is_text(feature::name(28), "VIRTIO_F_INDIRECT_DESC"));
  check(is_text(feature::name(29), "VIRTIO_F_EVENT_IDX"));
  check(is_text(feature::name(32), "VIRTIO_F_VERSION_1"));
  check(is_text(feature::name(33), "VIRTIO_F_ACCESS_PLATFORM"));
  check(is_text(feature::name(34), "VIRTIO_F_RING_PACKED"));
  check(is_text(feature::name(35), "VIRTIO_F_IN_ORDER"));
  check(is_text(feature::name(36), "VIRTIO_F_ORDER_PLATFORM"));
  check(is_text(feature::name(37), "VIRTIO_F_SR_IOV"));
  check(is_text(feature::name(38), "VIRTIO_F_NOTIFICATION_DATA"));
  check(is_text(feature::name(39), "VIRTIO_F_NOTIF_CONFIG_DATA"));
  check(is_text(feature::name(40), "VIRTIO_F_RING_RESET"));
  check(is_text(feature::name(41), "VIRTIO_F_ADMIN_VQ"));
  check(is_text(feature::name(43), "VIRTIO_F_SUSPEND"));
  unsigned named = 0;
  for (unsigned bit = 0; bit < 300; ++bit)
    if (feature::name(bit) != nullptr) ++named;
  check(named == 15);
};
BOTH("ring and transport bits have the specification's names and no others have", names)

constexpr auto defined = [](auto check) {
  const auto range = [](unsigned first, unsigned last) {
    for (unsigned bit = first; bit <= last; ++bit)
      if (!feature::is_defined(bit)) return false;
    return true;
  };
  check(range(0, 24));
  check(range(27, 29));
  check(range(32, 43));
  check(range(50, 127));
  for (const unsigned bit : {25u, 26u, 30u, 31u, 44u, 49u, 128u, 255u, 256u, ~0u})
    check(!feature::is_defined(bit));
};
BOTH("bits without a meaning are not defined (FT-3)", defined)

constexpr auto sets = [](auto check) {
  feature_set set{1, 28, 29, 32};
  check(set.test(1) && set.test(28) && set.test(29) && set.test(32));
  check(!set.test(0) && !set.test(2) && !set.test(31) && !set.test(33));
  check(set.count() == 4);
  check(set.highest() == 32);
  check(!set.empty());
  set.clear(1);
  check(!set.test(1) && set.count() == 3);
  check(set == feature_set{28, 29, 32});
  check(set != feature_set{28, 29});
  check(set.with(255).highest() == 255);
  check(set.with(255).without(255) == set);
  check(feature_set{}.empty() && feature_set{}.count() == 0 && feature_set{}.highest() == -1);
  check(feature_set{0}.highest() == 0 && feature_set{63}.highest() == 63);
  check(feature_set{64}.highest() == 64 && feature_set{64, 3}.count() == 2);
};
BOTH("a set holds the bits that were set and not cleared", sets)

constexpr auto operators = [](auto check) {
  const feature_set a{0, 63, 64, 200};
  const feature_set b{0, 64, 129};
  check((a | b) == feature_set{0, 63, 64, 129, 200});
  check((a & b) == feature_set{0, 64});
  check((a - b) == feature_set{63, 200});
  check((b - a) == feature_set{129});
  check((a & b).is_subset_of(a) && (a & b).is_subset_of(b));
  check(!a.is_subset_of(b) && !b.is_subset_of(a) && a.is_subset_of(a));
  check(feature_set{}.is_subset_of(b));
};
BOTH("union, intersection, difference and subset work over all 256 bits", operators)

constexpr auto out_of_range = [](auto check) {
  feature_set set{256, 1000, ~0u};
  check(set.empty());
  set.set(256);
  set.clear(~0u);
  check(set.empty());
  check(!feature_set{255}.test(256) && !feature_set{0}.test(256));
  check(feature_set{7}.with(512) == feature_set{7});
  set.set_word32(8, ~0u);
  set.set_word32(~0u, ~0u);
  check(set.empty());
  check(feature_set{255}.word32(8) == 0 && feature_set{0}.word32(8) == 0);
  check(feature_set{0}.word32(~0u) == 0);
};
BOTH("a bit beyond 255 is never in a set and changes nothing", out_of_range)

constexpr auto windows = [](auto check) {
  const feature_set set{0, 31, 32, 63, 95, 255};
  check(set.word32(0) == 0x8000'0001);
  check(set.word32(1) == 0x8000'0001);
  check(set.word32(2) == 0x8000'0000);
  check(set.word32(3) == 0);
  check(set.word32(7) == 0x8000'0000);
  feature_set copy;
  for (std::uint32_t i = 0; i < 8; ++i) copy.set_word32(i, set.word32(i));
  check(copy == set);
  copy.set_word32(1, 1); // replaces, and leaves the neighbour in the same 64 bits
  check(copy == feature_set{0, 31, 32, 95, 255});
  copy.set_word32(0, 0);
  check(copy == feature_set{32, 95, 255});
};
BOTH("32-bit windows replace exactly their bits", windows)

constexpr auto documented_texts = [](auto check) {
  const auto a = ballast::parse_features(without_oom);
  const auto b = ballast::parse_features(with_oom);
  check(a && *a == feature_set{1, 28, 29, 32});
  check(b && *b == feature_set{1, 2, 28, 29, 32});
};
BOTH("both texts of Linux's balloon document give their bits", documented_texts)

constexpr auto lengths = [](auto check) {
  std::array<char, 300> text{};
  for (char& c : text) c = '0';
  text[1] = '1';
  const auto first = [&text](std::size_t n) {
    return ballast::parse_features(std::span<const char>(text).first(n));
  };
  for (const std::size_t n : {2u, 63u, 64u, 65u, 128u, 255u, 256u, 257u, 300u})
    check(first(n) && *first(n) == feature_set{1});
  check(first(1) && first(1)->empty());
  check(first(0).error() == error::feature_text_length);

  text[127] = '1';
  text[45] = '1'; // no meaning, but kept
  check(*first(128) == feature_set{1, 45, 127});
  text[255] = '1';
  check(*first(300) == feature_set{1, 45, 127, 255});
  text[256] = '1';
  check(*first(256) == feature_set{1, 45, 127, 255});
  check(first(257).error() == error::feature_beyond_set);
  check(first(300).error() == error::feature_beyond_set);
};
BOTH("any length parses; a 1 beyond bit 255 is an error and zeros there are not", lengths)

constexpr auto characters = [](auto check) {
  const auto parse = [](string_view text) { return ballast::parse_features(text); };
  check(parse("01\n") && *parse("01\n") == feature_set{1});
  check(parse("01\n\n").error() == error::feature_text_character);
  check(parse("0\n1").error() == error::feature_text_character);
  check(parse("\n").error() == error::feature_text_length);
  check(parse("").error() == error::feature_text_length);
  check(parse("01 ").error() == error::feature_text_character);
  check(parse("0x1").error() == error::feature_text_character);
  check(parse("012").error() == error::feature_text_character);
  check(parse(string_view("01\0", 3)).error() == error::feature_text_character);
};
BOTH("one newline at the end is allowed and no other character", characters)

constexpr auto formatting = [](auto check) {
  std::array<char, 64> text{};
  check(ballast::format_features({1, 2, 28, 29, 32}, text).has_value());
  check(string_view(text.data(), text.size()) == with_oom);
  check(ballast::format_features({1, 28, 29, 32}, text).has_value());
  check(string_view(text.data(), text.size()) == without_oom);

  std::array<char, 128> wide{};
  const feature_set set{0, 64, 127};
  check(ballast::format_features(set, wide).has_value());
  check(wide[0] == '1' && wide[64] == '1' && wide[127] == '1' && wide[1] == '0');
  check(*ballast::parse_features(wide) == set);

  std::array<char, 270> wider{};
  check(ballast::format_features(feature_set{255}, wider).has_value());
  check(wider[255] == '1' && wider[256] == '0' && wider[269] == '0');
  check(*ballast::parse_features(wider) == feature_set{255});
};
BOTH("formatting gives the text back at every width", formatting)

constexpr auto formatting_too_small = [](auto check) {
  std::array<char, 65> text{};
  const std::span<char> all(text);
  check(ballast::format_features({64}, all.first(64)).error() == error::buffer_too_small);
  check(text[0] == '\0');
  check(ballast::format_features({64}, all).has_value());
  check(ballast::format_features({}, all.first(0)).error() == error::buffer_too_small);
  check(ballast::format_features({}, all.first(1)).has_value() && text[0] == '0');
};
BOTH("a width that a set bit passes is an error and writes nothing", formatting_too_small)

constexpr feature_dependency chain[] = {{3, 2}, {2, 1}, {1, 32}};

constexpr auto dependencies = [](auto check) {
  check(ballast::missing_dependency({1, 2, 3, 32}, chain) == nullptr);
  check(ballast::missing_dependency({}, chain) == nullptr);
  check(ballast::missing_dependency({32}, chain) == nullptr);
  const auto* line = ballast::missing_dependency({3, 1, 32}, chain);
  check(line != nullptr && line->feature == 3 && line->needs == 2);
  check(ballast::missing_dependency({7}, std::span<const feature_dependency>{}) == nullptr);
  // The whole chain falls with its last link.
  check(ballast::drop_unmet_dependencies({1, 2, 3, 5}, chain) == feature_set{5});
  check(ballast::drop_unmet_dependencies({2, 3, 32}, chain) == feature_set{32});
  check(ballast::drop_unmet_dependencies({1, 2, 3, 32}, chain) == feature_set{1, 2, 3, 32});
};
BOTH("a feature without the one it needs is found, and dropped with all that need it (FT-2, FT-6)",
     dependencies)

constexpr auto ring_dependencies = [](auto check) {
  const auto missing = [](const feature_set& set) {
    return ballast::missing_dependency(set, ballast::ring_feature_dependencies) != nullptr;
  };
  // Out of reach of the legacy interface: bits 33 to 63 that the ring and the transport use.
  for (unsigned bit = 0; bit < feature_set::capacity; ++bit) {
    const bool is_beyond_legacy = bit > 32 && feature::name(bit) != nullptr;
    check(missing({bit}) == is_beyond_legacy);
    check(!missing({bit, feature::version_1}));
  }
};
BOTH("ring and transport bits above 32 need VERSION_1 (FT-6)", ring_dependencies)

constexpr auto accepting = [](auto check) {
  const feature_set offered{1, 2, 29, 32, 34};
  const auto accept = [&offered](const feature_set& accepted) {
    return ballast::check_accepted(offered, accepted, ballast::ring_feature_dependencies).error();
  };
  check(accept({1, 29, 32, 34}) == error::none);
  check(accept({}) == error::none);
  check(accept(offered) == error::none);
  check(accept({1, 3, 32}) == error::feature_not_offered);
  check(accept({255}) == error::feature_not_offered);
  check(accept({1, 34}) == error::feature_dependency);
};
BOTH("only offered features with all they need may be accepted (FT-1, FT-2)", accepting)

} // namespace
