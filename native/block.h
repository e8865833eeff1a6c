// Strided blocks of memory, and how they are copied, a share at a time by as many threads as there are.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { BLOCK_DIMENSIONS = 5 };  // layers, rows, columns, channels, and one to spare

typedef struct {
    uint8_t *to;
    const uint8_t *from;
    uint64_t run;  // bytes that lie in a row at both ends
    uint32_t swap;  // bytes of an item whose order is turned round; 0: none
    uint32_t dimensions;
    uint64_t count[BLOCK_DIMENSIONS];  // outermost first
    int64_t to_step[BLOCK_DIMENSIONS], from_step[BLOCK_DIMENSIONS];
} block;

// Merge what lies in a row, so that the run is as long as it can be.
void block_simplify(block *);
uint64_t block_bytes(const block *);
// How many shares of about `share` bytes it has, and copying one of them. All of them may be copied at the same time.
uint64_t block_shares(const block *, uint64_t share);
void block_copy_share(const block *, uint64_t share, uint64_t index);
void block_copy(const block *);  // all of it

// The runs of a share, one after another.
typedef struct {
    int64_t to, from;  // of the next, from where the block's first are
    uint64_t bytes, left;  // of each, and how many
    uint64_t at[BLOCK_DIMENSIONS];
} block_runs;
block_runs block_begin(const block *, uint64_t share, uint64_t index);

static inline void block_next(const block *b, block_runs *r) {
    r->left--;
    for (uint32_t i = b->dimensions; i-- > 0;) {
        r->to += b->to_step[i];
        r->from += b->from_step[i];
        if (++r->at[i] < b->count[i]) break;
        r->to -= b->to_step[i] * (int64_t)b->count[i];
        r->from -= b->from_step[i] * (int64_t)b->count[i];
        r->at[i] = 0;
    }
}
