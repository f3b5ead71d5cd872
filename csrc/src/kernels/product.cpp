#include "kernels/product.h"

#include <algorithm>
#include <cstddef>

#include "kernels/panel_tiles.h"
#include "kernels/positions.h"
#include "kernels/shares.h"

namespace nsn::kernels {

namespace {

/// Of a matrix.
constexpr Taps kAllInputs;

/// Taps that are multiplied at a time.
constexpr int64_t kMostTaps = 256;

/// Writes the places of a region's taps, those within `part` of all, for so many inputs that some
/// `loop` of them are there. A panel has the rows of all for each input, or those of the part.
Taps fill_taps(const Window& window, int64_t in, const Region& region, const Interval& part,
               bool has_part, int64_t width, int64_t loop, Place (&places)[kMostTaps]) {
  const auto& [down, across] = region.taps;
  const int64_t below = window.dilation[0] * window.in_size[1] * in;
  const int64_t right = window.dilation[1] * in;
  Place* end = places;
  for (int64_t i = down.begin; i < down.end; ++i) {
    const Interval line = across.behind(i * window.kernel[1]), kept = line.within(part);
    for (int64_t tap = kept.begin; tap < kept.end; ++tap) {
      *end++ = {(i - down.begin) * below + (tap - line.begin) * right,
                (tap - (has_part ? part.begin : 0)) * width};
    }
  }
  const int64_t of_input = end - places, rows = has_part ? part.size() : window.taps();
  const int64_t most = std::max<int64_t>(1, quotient(loop, std::max<int64_t>(1, of_input)));
  const int64_t inputs = Pieces(in, most).largest();
  for (const Place* from = places; end < places + inputs * of_input; ++from) {
    *end++ = {from->x + 1, from->weight + rows * width};
  }
  return {places, inputs, of_input, rows};
}

/// A panel of a narrower type, of which some rows become float32 at a time.
class Expanded {
 public:
  /// Rows at a time, at least as many as taps.
  static constexpr int64_t kMost = kMostTaps;

  Expanded(const PanelTiles& tiles, WeightType type, const Panel& panel)
      : tiles_(tiles), type_(type), from_(panel), panel_(panel) {
    panel_.segments = &segment_;
    panel_.segment_count = 1;
  }

  /// Makes float32 of some inputs' rows, of `all` taps for each those of `taps`, which are all that
  /// what this returns has.
  const Panel& of(const Interval& inputs, const Interval& taps, int64_t all) {
    segment_.inputs = inputs.size();
    float* to = all_;
    // Rows of all taps lie behind each other.
    const int64_t step = taps.size() == all ? inputs.size() : 1;
    Interval own{0, 0};  // of the segment
    for (const Segment* s = from_.segments; own.end < inputs.end; ++s) {
      own = {own.end, own.end + s->inputs};
      const auto [begin, end] = own.within(inputs);
      for (int64_t i = begin; i < end; i += step) {
        const int64_t rows = std::min(step, end - i) * taps.size();
        const int64_t first = ((i - own.begin) * all + taps.begin) * from_.width;
        const auto* weights = static_cast<const char*>(s->weights) + first * bytes_of(type_);
        tiles_.expand(type_, weights, rows * from_.width, to);
        to += rows * from_.width;
      }
    }
    return panel_;
  }

 private:
  const PanelTiles& tiles_;
  WeightType type_;
  const Panel& from_;
  Panel panel_;
  Segment segment_{all_, 0};
  alignas(64) float all_[kMost * kPanel];
};

/// How an image's pools are cut into tiles: of so many samples, lines and columns, whose results
/// stay in a near cache.
struct PoolTiles {
  Positions all;
  Pieces columns, samples, lines;

  /// `most` pools, or one.
  PoolTiles(const Positions& pools, int64_t most)
      : all(pools),
        columns(pools.columns.size(), most),
        samples(pools.samples.size(), std::max<int64_t>(1, most / columns.largest())),
        lines(pools.lines.size(),
              std::max<int64_t>(1, most / (columns.largest() * samples.largest()))) {}

  int64_t count() const { return columns.count * samples.count * lines.count; }

  Positions operator[](int64_t i) const {
    const int64_t above = i / columns.count;
    return {samples[above / lines.count].behind(all.samples.begin),
            lines[above % lines.count].behind(all.lines.begin),
            columns[i % columns.count].behind(all.columns.begin)};
  }
};

/// The panels of a product, in pairs where the first two are one and tiles may be as wide: at a
/// level with such tiles, of float32, and nearly all of the second panel is used.
class Groups {
 public:
  Groups(const PanelTiles& tiles, const Panels& panels, bool may_pair)
      : tiles_(tiles),
        panels_(panels),
        pairs_(may_pair && tiles.pair_rows > 0 && panels.type() == WeightType::kFloat32 &&
               panels.size() > 1 && are_pair(0)) {}

  /// Panels of a group.
  int64_t of_group() const { return pairs_ ? 2 : 1; }
  /// The most features of one that are computed.
  int64_t width() const { return panels_.size() == 0 ? 0 : panels_[0].width * of_group(); }
  int64_t count() const { return (panels_.size() + of_group() - 1) / of_group(); }

  /// How so many rows are cut: of few, tiles of a pair would leave too many over.
  RowTiles tiles_of(int64_t rows) const {
    if (pairs_ && rows >= 4 * tiles_.pair_rows) return {rows, tiles_.pair_rows, 0};
    return {rows, tiles_.rows, tiles_.least_rows};
  }

  /// Calls `each(panel, panels)` for a group's pair, or for its panels one after the other.
  template <typename Each>
  void with(int64_t group, const Each& each) const {
    const int64_t end = std::min((group + 1) * of_group(), panels_.size());
    for (int64_t i = group * of_group(), count = 0; i < end; i += count) {
      count = end - i == 2 && are_pair(i) ? 2 : 1;
      each(&panels_[i], count);
    }
  }

 private:
  bool are_pair(int64_t i) const {
    return panels_[i].features == kPanel && panels_[i + 1].features > kHalfPanel;
  }

  const PanelTiles& tiles_;
  const Panels& panels_;
  bool pairs_;
};

/// Runs a product.
class Runner {
 public:
  Runner(const Product& product, const ParallelFor& parallel_for)
      : p_(product),
        parallel_for_(parallel_for),
        tiles_(panel_tiles()),
        is_narrow_(product.weight->type() != WeightType::kFloat32),
        groups_(tiles_, *product.weight,
                product.image == nullptr ? product.rows >= 4 * tiles_.pair_rows
                                         : product.image->of_pool() == 1) {}

  void operator()() const {
    if (p_.image == nullptr) return multiply_matrix();
    multiply_image(*p_.image);
  }

 private:
  /// The rows of a block and two panels fit into a cache of the second level.
  static constexpr int64_t kBlockBytes = int64_t{1} << 18;

  /// Threads share the tiles of blocks: those of a group lie behind each other, then the groups of
  /// a block. They begin at whole tiles, so that it changes no bit where they do; each makes those
  /// panels float32 that are narrow and that it multiplies. Calls `each(block, group, tiles)`;
  /// `rows`, `inner`: of a tile.
  template <typename Each>
  void share_tiles(int64_t blocks, int64_t tiles, int64_t rows, int64_t inner,
                   const Each& each) const {
    const int64_t grain = grain_for(rows * inner * groups_.width());
    parallel_for_(blocks * groups_.count() * tiles, grain, [&](int64_t begin, int64_t end) {
      if (begin >= end) return;  // where there are none, or a caller's own asks for none
      int64_t tile = begin % tiles, group = begin / tiles % groups_.count();
      for (int64_t block = begin / tiles / groups_.count(); begin < end; tile = 0) {
        const int64_t some = std::min(end - begin, tiles - tile);
        each(block, group, Interval{tile, tile + some});
        begin += some;
        if (++group < groups_.count()) continue;
        group = 0;
        ++block;
      }
    });
  }

  // ---- matrices

  void multiply_matrix() const {
    const RowTiles cut = groups_.tiles_of(p_.rows);
    const int64_t step = cut.step;
    const int64_t row_bytes = static_cast<int64_t>(sizeof(float)) * p_.in;
    const Blocks blocks(p_.rows, kBlockBytes / std::max<int64_t>(1, row_bytes), step);
    const int64_t tiles = (std::min(blocks.rows, p_.rows) + step - 1) / step;
    const auto each = [&](int64_t block, int64_t group, const Interval& some) {
      const Interval all = some.behind(block * (blocks.rows / step));
      const Interval rows{cut.begin(all.begin), cut.begin(all.end)};
      // The last block may have fewer tiles than the others.
      if (rows.size() == 0) return;
      groups_.with(group, [&](const Panel* panel, int64_t panels) {
        multiply_rows(panel, panels, cut, rows);
      });
    };
    share_tiles(blocks.count, tiles, std::min(step, p_.rows), p_.in, each);
  }

  /// Some rows of a matrix times panels.
  void multiply_rows(const Panel* panel, int64_t panels, const RowTiles& cut,
                     const Interval& some) const {
    const float* const x = p_.x + some.begin * p_.x_stride;
    float* const y = p_.y + some.begin * p_.y_stride + panel->feature;
    if (!is_narrow_) {
      const Ends ends(p_.epilogue, panel, panels);
      Rows rows(x, p_.x_stride, y, p_.y_stride);
      tiles_.multiply({kAllInputs, ends, false}, panel, panels, rows, cut, some);
    } else if (p_.rows == 1 && tiles_.multiply_narrow != nullptr) {
      const Ends ends(p_.epilogue, panel, 1);
      tiles_.multiply_narrow({kAllInputs, ends, false}, *panel, p_.weight->type(), x, y);
    } else {
      Expanded expanded(tiles_, p_.weight->type(), *panel);
      const Pieces parts(p_.in, Expanded::kMost);
      for (int64_t i = 0; i < parts.count; ++i) {
        const Ends ends(i + 1 == parts.count ? p_.epilogue : Epilogue(), panel, 1);
        Rows rows(x + parts[i].begin, p_.x_stride, y, p_.y_stride);
        tiles_.multiply({kAllInputs, ends, i > 0}, &expanded.of(parts[i], {0, 1}, 1), 1, rows, cut,
                        some);
      }
    }
  }

  // ---- images

  void multiply_image(const Image& image) const {
    const Window& window = *image.window;
    const int64_t of_pool = image.of_pool();
    // Of positions, or of pools.
    const int64_t height = window.out_size[0] / image.pool[0];
    const int64_t width = window.out_size[1] / image.pool[1];
    // A block is lines of a sample, or whole samples.
    const int64_t line_bytes = static_cast<int64_t>(sizeof(float)) * image.pool[0] *
                               window.stride[0] * window.in_size[1] * p_.in;
    const int64_t most_lines = std::max<int64_t>(1, kBlockBytes / line_bytes);
    const Pieces lines(height, most_lines);
    const Pieces samples(p_.rows, std::max<int64_t>(1, most_lines / height));
    // Several tiles of pools at least, for threads to share.
    const int64_t most_pools =
        std::clamp<int64_t>(p_.rows * height * width / 3, 1, kPooledRows / of_pool);
    const auto tiles_in = [&](const Positions& block) {
      return of_pool == 1 ? tiles_of(block) : PoolTiles(block, most_pools).count();
    };
    int64_t tiles = 0;
    for (int64_t i = 0; i < lines.count; ++i) {
      tiles = std::max(tiles, tiles_in({{0, samples.largest()}, lines[i], {0, width}}));
    }
    const int64_t line = width * p_.y_stride;
    const Target all{{}, p_.y, p_.y_stride, line, height * line};
    const auto each = [&](int64_t number, int64_t group, const Interval& some) {
      const Positions block{samples[number / lines.count], lines[number % lines.count], {0, width}};
      groups_.with(group, [&](const Panel* panel, int64_t panels) {
        const Target to = all.behind(panel->feature);
        if (of_pool == 1) return multiply_positions(panel, panels, block, some, to);
        const PoolTiles cut(block, most_pools);
        const auto [begin, end] = some.within({0, cut.count()});
        for (int64_t tile = begin; tile < end; ++tile) multiply_pools(*panel, cut[tile], to);
      });
    };
    const int64_t rows = of_pool == 1 ? tiles_.rows : most_pools * of_pool;
    share_tiles(samples.count * lines.count, tiles, rows, p_.in * window.taps(), each);
  }

  /// The tiles that positions are in, region by region.
  int64_t tiles_of(const Positions& positions) const {
    int64_t result = 0;
    over_regions(*p_.image->window, positions, [&](const Region& region) {
      result += groups_.tiles_of(region.positions.count()).count();
    });
    return result;
  }

  /// Some of these tiles times panels.
  void multiply_positions(const Panel* panel, int64_t panels, const Positions& positions,
                          const Interval& tiles, const Target& to) const {
    const Window& window = *p_.image->window;
    Expanded expanded(tiles_, p_.weight->type(), *panel);
    const Pieces taps(window.taps(), kMostTaps);
    const Pieces inputs(p_.in, is_narrow_ ? Expanded::kMost / taps.largest() : p_.in);
    const int64_t parts = inputs.count * taps.count;
    for (int64_t part = 0; part < parts; ++part) {
      const Interval input = inputs[part / taps.count], tap = taps[part % taps.count];
      const Panel* from = is_narrow_ ? &expanded.of(input, tap, window.taps()) : panel;
      const Ends ends(part + 1 == parts ? p_.epilogue : Epilogue(), panel, panels);
      Interval left = tiles;  // from those of a region on
      over_regions(window, positions, [&](const Region& region) {
        const RowTiles cut = groups_.tiles_of(region.positions.count());
        const int64_t of_region = cut.count();
        const auto [begin, end] = left.within({0, of_region});
        left = {left.begin - of_region, left.end - of_region};
        if (begin == end) return;
        Place places[kMostTaps];
        // Longer loops are quicker, but take time to write down.
        const int64_t loop = std::clamp<int64_t>(8 * of_region, 16, 64);
        const Taps read =
            fill_taps(window, p_.in, region, tap, is_narrow_, from->width, loop, places);
        const Interval some{cut.begin(begin), cut.begin(end)};
        // With tiles of one panel's rows, of a pair each by itself.
        const int64_t side_by_side = cut.step == tiles_.pair_rows ? panels : 1;
        for (int64_t i = 0; i < panels; i += side_by_side) {
          const int64_t behind = i * kPanel;
          Rows rows(p_.x + input.begin, window, p_.in, region, some.begin, to.behind(behind));
          tiles_.multiply({read, ends, part > 0, behind}, from + i, side_by_side, rows, cut, some);
        }
      });
    }
  }

  /// The largest of each of these pools, at most kPooledRows positions, times a panel.
  void multiply_pools(const Panel& panel, const Positions& pools, const Target& to) const {
    const auto& [samples, lines, columns] = pools;
    const auto [down, right] = p_.image->pool;
    const Positions all{samples,
                        {lines.begin * down, lines.end * down},
                        {columns.begin * right, columns.end * right}};
    const int64_t line = all.columns.size() * kPanel;
    alignas(64) float results[kPooledRows * kPanel];
    multiply_positions(&panel, 1, all, {0, all.count()},
                       {all, results, kPanel, line, all.lines.size() * line});
    const float* from = results;
    for (int64_t s = samples.begin; s < samples.end; ++s) {
      for (int64_t i = lines.begin; i < lines.end; ++i, from += down * line) {
        float* const y = to.y + s * to.sample + i * to.line + columns.begin * to.column;
        tiles_.keep_largest({down, right}, from, line, columns.size(), panel.features, y,
                            to.column);
      }
    }
  }

  const Product& p_;
  const ParallelFor& parallel_for_;
  const PanelTiles& tiles_;
  bool is_narrow_;
  Groups groups_;
};

}  // namespace

void run(const Product& product, const ParallelFor& parallel_for) {
  Runner(product, parallel_for)();
}

}  // namespace nsn::kernels
