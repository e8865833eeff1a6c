#include "block.h"

#include <string.h>

static uint64_t rows_of(const block *b) {
    uint64_t rows = 1;
    for (uint32_t i = 0; i < b->dimensions; i++) rows *= b->count[i];
    return rows;
}

uint64_t block_bytes(const block *b) { return rows_of(b) * b->run; }

static void drop(block *b, uint32_t dimension) {
    for (uint32_t i = dimension; i + 1 < b->dimensions; i++) {
        b->count[i] = b->count[i + 1];
        b->to_step[i] = b->to_step[i + 1];
        b->from_step[i] = b->from_step[i + 1];
    }
    b->dimensions--;
}

void block_simplify(block *b) {
    for (uint32_t i = b->dimensions; i-- > 0;) {
        if (b->count[i] == 1) {
            drop(b, i);
        } else if (i == b->dimensions - 1) {
            if (b->to_step[i] != (int64_t)b->run || b->from_step[i] != (int64_t)b->run) continue;
            b->run *= b->count[i];
            drop(b, i);
        } else if (b->to_step[i] == b->to_step[i + 1] * (int64_t)b->count[i + 1] &&
                   b->from_step[i] == b->from_step[i + 1] * (int64_t)b->count[i + 1]) {
            b->count[i + 1] *= b->count[i];
            drop(b, i);
        }
    }
}

// A run longer than a share is cut by bytes, others are taken whole.
static uint64_t rows_a_share(const block *b, uint64_t share) { return b->run < share && b->run ? share / b->run : 1; }
static uint64_t cuts_of(const block *b, uint64_t share) {
    uint64_t step = b->swap ? share / b->swap * b->swap : share;
    return b->run > share ? (b->run + step - 1) / step : 1;
}

uint64_t block_shares(const block *b, uint64_t share) {
    uint64_t rows = rows_of(b), each = rows_a_share(b, share);
    return (rows + each - 1) / each * cuts_of(b, share);
}

static void copy_swapped(uint8_t *to, const uint8_t *from, uint64_t bytes, uint32_t width) {
    for (uint64_t i = 0; i < bytes; i += width)
        for (uint32_t k = 0; k < width; k++) to[i + k] = from[i + width - 1 - k];
}

static inline void copy_run(uint8_t *to, const uint8_t *from, uint64_t bytes, uint32_t swap) {
    if (swap) {
        copy_swapped(to, from, bytes, swap);
        return;
    }
    switch (bytes) {  // what strided texels have: as loads and stores
    case 1: *to = *from; return;
    case 2: memcpy(to, from, 2); return;
    case 3: memcpy(to, from, 3); return;
    case 4: memcpy(to, from, 4); return;
    case 8: memcpy(to, from, 8); return;
    case 16: memcpy(to, from, 16); return;
    default: memcpy(to, from, bytes);
    }
}

block_runs block_begin(const block *b, uint64_t share, uint64_t index) {
    uint64_t cuts = cuts_of(b, share), each = rows_a_share(b, share), rows = rows_of(b);
    uint64_t first = index / cuts * each, last = first + each < rows ? first + each : rows;
    block_runs r = {.bytes = b->run, .left = last > first ? last - first : 0};
    if (cuts > 1) {
        uint64_t step = b->swap ? share / b->swap * b->swap : share;
        uint64_t start = index % cuts * step;
        r.to = r.from = (int64_t)start;
        r.bytes = b->run - start < step ? b->run - start : step;
    }
    uint64_t below = 1;
    for (uint32_t i = b->dimensions; i-- > 0; below *= b->count[i]) {  // where the first row is
        r.at[i] = first / below % b->count[i];
        r.to += (int64_t)r.at[i] * b->to_step[i];
        r.from += (int64_t)r.at[i] * b->from_step[i];
    }
    return r;
}

void block_copy_share(const block *b, uint64_t share, uint64_t index) {
    const block mine = *b;  // that the compiler knows nobody writes to meanwhile
    for (block_runs r = block_begin(b, share, index); r.left; block_next(&mine, &r))
        copy_run(mine.to + r.to, mine.from + r.from, r.bytes, mine.swap);
}

void block_copy(const block *b) { block_copy_share(b, UINT64_MAX / 2, 0); }
