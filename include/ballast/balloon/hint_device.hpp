// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/balloon/protocol.hpp>
#include <ballast/result.hpp>

#include <cstdint>

namespace ballast::balloon {

/// Where a device is in free page hinting. Linux and QEMU use the same four.
enum class hint_state : std::uint8_t {
  stop,      ///< no hints wanted; the driver keeps what it hinted
  requested, ///< an id is shown, the driver has not taken it up yet
  start,     ///< the driver has: what it adds now are hints
  done,      ///< the driver may use what it hinted
};

/// What a driver's output buffer did.
enum class hint_event : std::uint8_t {
  started,   ///< the round of the current id
  ended,     ///< that round: the driver has no more, or went on to another id
  stale,     ///< of an older round, or of none: ignored
  duplicate, ///< the current id once more: ignored
};

struct hint_command {
  hint_event event = hint_event::stale;
  /// Tell the driver that the configuration changed.
  bool is_config_changed = false;

  friend constexpr bool operator==(const hint_command&, const hint_command&) noexcept = default;
};

struct hint_device_options {
  /// The lowest id: the first one, and the one after UINT32_MAX. QEMU's is 0x80000000. Below
  /// `command_id::first` means that.
  std::uint32_t first_id = command_id::first;
  /// Show STOP, as QEMU does, once the driver has taken up an id. Any configuration change
  /// notification in a round then makes Linux end it early.
  bool hides_started_id = false;
  /// QEMU stops the whole device for a command that is not 4 bytes; otherwise it is counted.
  bool needs_reset_if_malformed = false;
};

/// What came from the driver since construction.
struct hint_device_counters {
  std::uint64_t rounds = 0; ///< that the driver took up
  std::uint64_t stale_commands = 0;
  std::uint64_t duplicate_commands = 0;
  std::uint64_t malformed_commands = 0; ///< not 4 bytes
};

/// A `hint_device` at rest: plain values, for `save` and `restore`.
struct hint_device_state {
  static constexpr std::uint32_t current_version = 1;
  std::uint32_t version = current_version;
  std::uint32_t id = 0;       ///< issued last; 0: none
  std::uint32_t open_ids = 0; ///< of the ids up to it, those that the driver may still use
  bool is_oldest_taken_up = false;
  bool has_asked = false; ///< for hints, since the last reset

  friend constexpr bool operator==(const hint_device_state&,
                                   const hint_device_state&) noexcept = default;
};

/// The device's half of free page hinting: which id is shown, and which hints count. Touches no
/// memory and no queue.
///
///     hints.start();                      // of a migration: behind each sync of its dirty bitmap
///     hints.stop();                       // before the next one
///     hints.done();                       // the migration is over, or will not use hints any more
///     config.set32(offsetof(config, free_page_hint_cmd_id), hints.command_id());   // after each
///
///     for each chain c of free_page_vq, its readable bytes first, however they are cut:
///       if (!c.readable().empty()) is it 4 bytes ? hints.on_command(id) : hints.on_malformed();
///       if (hints.is_accepting()) for each of c.writable(): the pages in it are free
///       return the chain with used length 0
///
/// Each call tells whether the driver needs a configuration change notification.
///
/// A hint says that the page's contents do not matter *until the guest writes to it again*, which
/// it may do before the hint is looked at (`hint_release::early`, and Linux). So skip the page in a
/// dirty bitmap that a later write sets again; to discard the memory itself is right only with a
/// driver that keeps what it hinted until the buffer is returned, and only before that.
/// Spec: "Free Page Hinting". QEMU: virtio_balloon_get_free_page_hints.
class hint_device {
 public:
  /// Bytes of a command.
  static constexpr std::uint32_t command_bytes = 4;

  constexpr explicit hint_device(const hint_device_options& options = {}) noexcept
      : options_(options) {
    if (options_.first_id < command_id::first) options_.first_id = command_id::first;
  }

  // What the VMM asks for.

  /// Asks for hints under the next id. With a value the configuration changed.
  /// Errors: `wrong_state` (all ids are out: the driver has not sent STOP for the one that would be
  /// next, so it must not be used again); then nothing changed.
  constexpr result<void> start() noexcept {
    const std::uint32_t ids = UINT32_MAX - options_.first_id + 1;
    if (open_ids_ == ids) return error::wrong_state;
    id_ = id_ < options_.first_id || id_ == UINT32_MAX ? options_.first_id : id_ + 1;
    ++open_ids_;
    has_asked_ = true;
    state_ = hint_state::requested;
    return {};
  }

  /// Wants no hints for now; the driver keeps the pages it hinted. A DONE stays: the driver may not
  /// have seen it yet, and would never release its pages.
  [[nodiscard]] constexpr bool stop() noexcept {
    return state_ != hint_state::done && move_to(hint_state::stop);
  }

  /// Has no more use for any hint; the driver may release the pages.
  [[nodiscard]] constexpr bool done() noexcept { return move_to(hint_state::done); }

  /// What `free_page_hint_cmd_id` shows.
  [[nodiscard]] constexpr std::uint32_t command_id() const noexcept {
    switch (state_) {
    case hint_state::requested: return id_;
    case hint_state::start: return options_.hides_started_id ? command_id::stop : id_;
    case hint_state::done: return command_id::done;
    case hint_state::stop: break;
    }
    return command_id::stop;
  }

  // What comes from the queue.

  /// A driver's output buffer, in the order of the queue.
  [[nodiscard]] constexpr hint_command on_command(std::uint32_t id) noexcept {
    const std::uint32_t shown = command_id();
    const hint_event event = id == command_id::stop ? take_stop() : take_id(id);
    if (event == hint_event::started) ++counters_.rounds;
    if (event == hint_event::stale) ++counters_.stale_commands;
    if (event == hint_event::duplicate) ++counters_.duplicate_commands;
    // Where the id is hidden, a notification of that would end the round.
    return {event, !options_.hides_started_id && shown != command_id()};
  }

  /// A driver's output buffer that is not 4 bytes. Whether the device needs a reset.
  [[nodiscard]] constexpr bool on_malformed() noexcept {
    ++counters_.malformed_commands;
    return options_.needs_reset_if_malformed;
  }

  /// Whether what is in the queue now are hints under the current id; otherwise buffers are
  /// returned and nothing is done with their pages.
  [[nodiscard]] constexpr bool is_accepting() const noexcept { return state_ == hint_state::start; }

  [[nodiscard]] constexpr hint_state state() const noexcept { return state_; }
  [[nodiscard]] constexpr const hint_device_counters& counters() const noexcept {
    return counters_;
  }

  // Life of the device.

  /// The driver and the queue are new: nothing is hinted and nothing asked for. Ids go on.
  constexpr void reset() noexcept {
    state_ = hint_state::stop;
    open_ids_ = 0;
    is_oldest_taken_up_ = has_asked_ = false;
  }

  [[nodiscard]] constexpr hint_device_state save() const noexcept {
    return {.id = id_,
            .open_ids = open_ids_,
            .is_oldest_taken_up = is_oldest_taken_up_,
            .has_asked = has_asked_};
  }

  /// Takes up a saved state: what was hinted is of no use here, so DONE is shown (STOP where the
  /// driver was never asked), ids go on. Tell the driver that the configuration changed.
  /// Errors: `state_version`, `state_invalid`; nothing changed.
  constexpr result<void> restore(const hint_device_state& from) noexcept {
    if (from.version != hint_device_state::current_version) return error::state_version;
    const bool has_id = from.id >= options_.first_id;
    if (from.id != 0 && !has_id) return error::state_invalid;
    if (from.open_ids > (has_id ? UINT32_MAX - options_.first_id + 1 : 0))
      return error::state_invalid;
    if ((from.is_oldest_taken_up && from.open_ids == 0) || (from.has_asked && !has_id) ||
        (from.open_ids != 0 && !from.has_asked))
      return error::state_invalid;
    id_ = from.id;
    open_ids_ = from.open_ids;
    is_oldest_taken_up_ = from.is_oldest_taken_up;
    has_asked_ = from.has_asked;
    state_ = has_asked_ ? hint_state::done : hint_state::stop;
    return {};
  }

 private:
  /// Whether the shown id changed.
  constexpr bool move_to(hint_state next) noexcept {
    const std::uint32_t shown = command_id();
    const bool was_hidden = state_ == hint_state::start && options_.hides_started_id;
    state_ = next;
    // The driver saw the hidden id, or will, and is to see STOP.
    return was_hidden || shown != command_id();
  }

  /// How many ids were issued behind `id` up to the last one.
  [[nodiscard]] constexpr std::uint32_t age(std::uint32_t id) const noexcept {
    return id <= id_ ? id_ - id : (UINT32_MAX - id) + (id_ - options_.first_id) + 1;
  }

  constexpr hint_event take_stop() noexcept {
    if (is_oldest_taken_up_) {
      is_oldest_taken_up_ = false;
      --open_ids_;
    }
    return end_round();
  }

  constexpr hint_event take_id(std::uint32_t id) noexcept {
    if (id >= options_.first_id && age(id) < open_ids_) {
      const std::uint32_t newer = age(id);
      if (is_oldest_taken_up_ && newer + 1 == open_ids_)
        return newer == 0 ? hint_event::duplicate : hint_event::stale;
      // A driver reads ids in the order they are shown in: older ones will not come any more.
      open_ids_ = newer + 1;
      is_oldest_taken_up_ = true;
      if (newer != 0 || state_ != hint_state::requested) return hint_event::stale;
      state_ = hint_state::start;
      return hint_event::started;
    }
    // What follows are not hints under the current id.
    return id == id_ ? hint_event::duplicate : end_round();
  }

  constexpr hint_event end_round() noexcept {
    if (state_ != hint_state::start) return hint_event::stale;
    state_ = hint_state::stop;
    return hint_event::ended;
  }

  hint_device_options options_;
  hint_device_counters counters_;
  std::uint32_t id_ = 0; ///< issued last
  /// Of the ids up to `id_`, those that the driver may yet take up, or took up and has not ended.
  std::uint32_t open_ids_ = 0;
  bool is_oldest_taken_up_ = false; ///< the oldest of these, and no STOP came since
  bool has_asked_ = false;
  hint_state state_ = hint_state::stop;
};

} // namespace ballast::balloon
